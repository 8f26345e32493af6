"""A block's file is taken as it was written or not at all: any damage, any other block, key or layout is no file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.engine.disk.block_file import CHECKSUM_BYTES, HEADER_BYTES, BlockFormat

KEY = bytes(range(32))
DIGEST = b"d" * 32
CONTENTS = st.binary(min_size=1, max_size=300)


def format_of(content: bytes, *, layout: str = "float32[2]", key: bytes = KEY) -> BlockFormat:
    return BlockFormat(layout=layout, content_bytes=len(content), key=key)


def file_of(content: bytes, digest: bytes = DIGEST) -> bytearray:
    return bytearray(b"".join(format_of(content).encode(digest, memoryview(content))))


@given(content=CONTENTS, digest=st.binary(min_size=32, max_size=32))
def test_what_is_written_is_read(content: bytes, digest: bytes) -> None:
    data = file_of(content, digest)
    assert len(data) == format_of(content).file_bytes == HEADER_BYTES + len(content) + CHECKSUM_BYTES
    assert format_of(content).decode(data, digest) == content


@given(content=CONTENTS, data=st.data())
def test_a_flipped_bit_anywhere_is_seen(content: bytes, data: st.DataObject) -> None:
    file = file_of(content)
    place = data.draw(st.integers(0, 8 * len(file) - 1))
    file[place // 8] ^= 1 << place % 8
    assert format_of(content).decode(file, DIGEST) is None


@given(content=CONTENTS, data=st.data())
def test_a_file_that_is_cut_or_goes_on_is_none(content: bytes, data: st.DataObject) -> None:
    file = file_of(content)
    assert format_of(content).decode(file[: data.draw(st.integers(0, len(file) - 1))], DIGEST) is None
    assert format_of(content).decode(file + data.draw(st.binary(min_size=1, max_size=9)), DIGEST) is None


@given(data=st.binary(max_size=600))
def test_noise_is_none(data: bytes) -> None:
    assert format_of(bytes(100)).decode(bytearray(data), DIGEST) is None


def test_another_block_s_file_under_this_name_is_none() -> None:
    assert format_of(b"abc").decode(file_of(b"abc", b"e" * 32), DIGEST) is None


@pytest.mark.parametrize("change", [{"layout": "float16[4]"}, {"key": bytes(32)}])
def test_another_layout_or_key_is_none(change: dict[str, str]) -> None:
    assert format_of(b"abc", **change).decode(file_of(b"abc"), DIGEST) is None  # type: ignore[arg-type]
