"""A form with a file, read as it comes: bounded in size and time, whole or gone, however it is cut."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from herd.stack.errors import RequestError
from herd.stack.uploads import FORM_SLACK_BYTES, Upload, read_upload

HEAD = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\nContent-Type: text/plain\r\n\r\n'
TAIL = b'\r\n--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--xyz--\r\n'


def read(path: Path, pieces: Sequence[bytes], *, max_bytes: int = 1000, length: int | None = None, stalls: bool = False) -> Upload:
    """Read a form that comes in these pieces, and then no more."""
    left = list(pieces)
    headers = [(b"content-type", b"multipart/form-data; boundary=xyz")]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))

    async def receive() -> dict[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or stalls}
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "method": "POST", "headers": headers, "path": "/v1/files", "query_string": b""}, receive)
    return asyncio.run(read_upload(request, path, max_bytes=max_bytes, timeout_s=0.2))


@settings(max_examples=100)
@given(data=st.binary(max_size=300), places=st.lists(st.integers(0, 600), max_size=6))
def test_a_file_comes_out_byte_for_byte_however_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, places: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "upload.part"
    body = HEAD + data + TAIL
    edges = sorted({0, len(body), *(place for place in places if place < len(body))})
    upload = read(path, [body[begin:end] for begin, end in pairwise(edges)])
    assert path.read_bytes() == data
    assert (upload.filename, upload.size_bytes, upload.fields) == ("a.jsonl", len(data), {"purpose": "batch"})
    path.unlink()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"pieces": [HEAD + b"x" * 1001 + TAIL]}, "too_large"),
        ({"pieces": [HEAD + TAIL], "length": 1001 + FORM_SLACK_BYTES}, "too_large"),
        ({"pieces": [HEAD, *[b"x" * 100] * 2000]}, "too_large"),
        ({"pieces": [b"--xyz\r\n" + b"A: b\r\n" * 100_000]}, "too_large"),
        ({"pieces": [HEAD + b"x"], "stalls": True}, "slow"),
        ({"pieces": [HEAD + b"x"]}, "format"),
        ({"pieces": [b"--xyz\r\nContent-Disposition: form-data; name=" + b"a" * 9000 + b"\r\n\r\n"]}, "format"),
        ({"pieces": [b"".join(b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' for _ in range(17))]}, "format"),
    ],
    ids=range(8),
)
def test_a_form_that_is_too_much_is_refused_and_leaves_nothing(tmp_path: Path, options: Any, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(tmp_path / "upload.part", **options)
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    import tracemalloc

    pieces = [HEAD, *[bytes(65536)] * 800, TAIL]
    tracemalloc.start()
    upload = read(tmp_path / "upload.part", pieces, max_bytes=10**8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert upload.size_bytes == 800 * 65536 and peak < 4 * 2**20
