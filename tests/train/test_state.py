"""States on disk: whole or absent, damage found whatever was damaged, and the one before it used instead."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small_run import as_batch, folders_of, small_model, small_rows, small_stage  # pyright: ignore[reportMissingImports]
from torch import Tensor

from herd.base.errors import CheckpointError
from herd.model.transformer import Transformer
from herd.train import state as state_module
from herd.train.optimizer import build_adamw
from herd.train.state import Progress, find_state, load_state, save_state
from herd.train.step import train_step

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
STAGE = small_stage()
ROWS = small_rows(60, seed=5)


def trained(num_steps: int) -> tuple[Transformer, torch.optim.AdamW]:
    """A model and its optimiser after some steps."""
    model = small_model()
    optimizer = build_adamw(model, STAGE)
    for step in range(num_steps):
        train_step(model, optimizer, as_batch(ROWS, 4 * step, 4), STAGE, lr=1e-2)
    return model, optimizer


def everything(model: Transformer, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for parameter in model.parameters() for _, value in sorted(optimizer.state[parameter].items())]
    return [*(parameter.detach().clone() for parameter in model.parameters()), *(value.clone() for value in moments)]


def progress(step: int) -> Progress:
    return Progress(step=step, num_samples=4 * step, num_counted=77 * step, seconds=0.125 * step)


def save(root: Path, step: int, *, run: str = "run", keep: int = 9) -> list[Tensor]:
    """Save the state of `step` steps; returns its tensors."""
    model, optimizer = trained(step)
    save_state(root, model, optimizer, progress(step), run=run, keep=keep)
    return everything(model, optimizer)


def load(root: Path, *, run: str = "run") -> tuple[Progress | None, list[Tensor]]:
    model = small_model(seed=99)
    optimizer = build_adamw(model, STAGE)
    return load_state(root, model, optimizer, run=run), everything(model, optimizer)


@pytest.fixture
def two_states(tmp_path: Path) -> tuple[Path, list[Tensor]]:
    """States of steps 1 and 2, and the tensors of the first."""
    first = save(tmp_path, 1)
    save(tmp_path, 2)
    return tmp_path, first


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the module warns of, also where another test has made herd's log its own."""
    logger = logging.getLogger("herd.train.state")
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.WARNING)
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.setLevel(logging.NOTSET)


def test_a_state_comes_back_bit_for_bit_into_a_model_with_other_weights(tmp_path: Path) -> None:
    saved = save(tmp_path, 3)
    found, restored = load(tmp_path)
    assert found == progress(3)
    assert len(saved) == len(restored) == 4 * len(list(small_model().parameters()))
    assert all(torch.equal(left, right) for left, right in zip(saved, restored, strict=True))


def test_the_step_after_a_restored_state_is_the_step_that_would_have_come(tmp_path: Path) -> None:
    model, optimizer = trained(2)
    save_state(tmp_path, model, optimizer, progress(2), run="run", keep=1)
    restored = small_model(seed=99)
    again = build_adamw(restored, STAGE)
    load_state(tmp_path, restored, again, run="run")
    results = [train_step(each, adam, as_batch(ROWS, 8, 4), STAGE, lr=1e-2) for each, adam in ((model, optimizer), (restored, again))]
    assert results[0] == results[1]
    assert all(torch.equal(left, right) for left, right in zip(everything(model, optimizer), everything(restored, again), strict=True))


def test_where_there_is_no_state_nothing_is_restored(tmp_path: Path) -> None:
    model = small_model()
    optimizer = build_adamw(model, STAGE)
    before = [parameter.clone() for parameter in model.parameters()]
    for root in (tmp_path, tmp_path / "absent"):
        assert find_state(root) is None
        assert load_state(root, model, optimizer, run="run") is None
    assert all(torch.equal(left, right) for left, right in zip(before, model.parameters(), strict=True))
    assert not optimizer.state


def test_the_newest_state_is_the_one_of_the_last_step(tmp_path: Path) -> None:
    for step in (2, 9, 10):
        model, optimizer = trained(1)
        save_state(tmp_path, model, optimizer, progress(step), run="run", keep=9)
    assert folders_of(tmp_path) == ["step-00000002", "step-00000009", "step-00000010"]
    assert load(tmp_path)[0] == progress(10)


def test_only_the_newest_states_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert folders_of(tmp_path) == ["step-00000003", "step-00000004"]
    save(tmp_path, 5, keep=1)
    assert folders_of(tmp_path) == ["step-00000005"]


def test_a_state_of_another_configuration_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1, run="0123456789abcdef")
    with pytest.raises(CheckpointError, match=r"another configuration \(0123456789ab, this one is fedcba987654\)") as caught:
        load(tmp_path, run="fedcba9876543210")
    assert "--restart" in str(caught.value.hint)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def zero_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64] + bytes(64))


def another_type(path: Path) -> None:
    path.write_text('["step", 2]')


DAMAGE: list[Callable[[Path], None]] = [cut, halve, empty, lengthen, zero_the_end, another_type, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_state_is_passed_over_for_the_one_before_it(
    two_states: tuple[Path, list[Tensor]], warnings: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    root, first = two_states
    newest = root / "step-00000002"
    damage(newest / name)
    found, restored = load(root)
    assert found == progress(1)
    assert all(torch.equal(left, right) for left, right in zip(first, restored, strict=True))
    assert f"{newest} is damaged and is passed over" in warnings.text


def test_a_flipped_bit_anywhere_in_the_record_is_found_or_harmless(two_states: tuple[Path, list[Tensor]]) -> None:
    root, _ = two_states
    path = root / "step-00000002" / "state.json"
    whole = path.read_bytes()
    expected = {key: value for key, value in json.loads(whole).items() if key != "seal"}
    passed_over = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << 3 * place % 8]) + whole[place + 1 :])
        found = find_state(root)
        assert found is not None
        folder, record = found
        if folder.name == "step-00000001":
            passed_over += 1
        else:
            assert {key: record.get(key) for key in expected} == expected
    # What may pass is white space and the name of the seal itself.
    assert passed_over > 0.9 * len(whole)


@pytest.mark.parametrize("name", FILES[:2])
def test_a_flipped_bit_anywhere_in_weights_or_moments_is_found(two_states: tuple[Path, list[Tensor]], name: str) -> None:
    root, _ = two_states
    path = root / "step-00000002" / name
    whole = path.read_bytes()
    for number, place in enumerate(range(0, len(whole), len(whole) // 40)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << number % 8]) + whole[place + 1 :])
        found = find_state(root)
        assert found is not None and found[0].name == "step-00000001", place
    path.write_bytes(whole)
    assert find_state(root) is not None and load(root)[0] == progress(2)


def test_files_of_two_states_do_not_make_one(two_states: tuple[Path, list[Tensor]]) -> None:
    root, _ = two_states
    (root / "step-00000001" / FILES[0]).replace(root / "step-00000002" / FILES[0])
    assert find_state(root) is None


def test_a_damaged_state_is_replaced_when_its_step_is_saved_again(two_states: tuple[Path, list[Tensor]]) -> None:
    root, _ = two_states
    cut(root / "step-00000002" / FILES[0])
    save(root, 2)
    assert load(root)[0] == progress(2)
    assert folders_of(root) == ["step-00000001", "step-00000002"]


class Killed(BaseException):
    """What no handler in the code under test may swallow."""


@pytest.mark.parametrize(("name", "call"), [("save_file", 1), ("optimizer_tensors", 1), ("save_file", 2), ("_digest", 1), ("_digest", 2)])
def test_a_save_that_fails_leaves_the_states_as_they_were(
    two_states: tuple[Path, list[Tensor]], monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    root, _ = two_states
    real, calls = getattr(state_module, name), 0

    def fail(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return real(*args)

    model, optimizer = trained(3)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(state_module, name, fail)
        save_state(root, model, optimizer, progress(3), run="run", keep=1)
    assert folders_of(root) == ["step-00000001", "step-00000002"]
    assert load(root)[0] == progress(2)


def test_what_a_killed_save_left_behind_is_never_read_and_goes_with_the_next_save(two_states: tuple[Path, list[Tensor]]) -> None:
    root, _ = two_states
    for name in (".step-00000003.partial-ab12", ".step-00000002.old-cd34/was"):
        leftover = root / name
        leftover.mkdir(parents=True)
        (leftover / "state.json").write_text((root / "step-00000002" / "state.json").read_text())
    assert load(root)[0] == progress(2)
    save(root, 4)
    assert folders_of(root) == ["step-00000001", "step-00000002", "step-00000004"]
