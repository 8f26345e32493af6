"""The pipeline's closed forms against a simulation, op by op, of the interleaved schedule; and how layers are dealt out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.errors import ConfigError
from herd.model.presets import preset
from herd.plan.mesh import Mesh
from herd.plan.pipeline import bubble_share, in_flight, run_length, stages

BIG = preset("llama-3.1-405b")
Op = tuple[str, int, int]


def order(rank: int, pp: int, virtual: int, count: int) -> list[Op]:
    """The ops (kind, chunk of the whole model, micro-batch) of a rank, in order: 1F1B, interleaved in runs of `pp` micro-batches."""
    total = count * virtual

    def op(kind: str, number: int) -> Op:
        turn, place = divmod(number, pp * virtual)
        chunk = place // pp if kind == "F" else virtual - 1 - place // pp
        return kind, chunk * pp + rank, turn * pp + number % pp

    warm_up = min(pp - rank - 1 if virtual == 1 else 2 * (pp - rank - 1) + (virtual - 1) * pp, total)
    ops = [op("F", number) for number in range(warm_up)]
    for number in range(total - warm_up):
        ops += [op("F", warm_up + number), op("B", number)]
    return ops + [op("B", number) for number in range(total - warm_up, total)]


def simulate(pp: int, virtual: int, count: int) -> tuple[int, list[int]]:
    """Time until all is done where a chunk's forward takes 1 and its backward 2, and each rank's chunks in flight at most."""
    ready: dict[Op, int] = {}
    queues = [order(rank, pp, virtual, count) for rank in range(pp)]
    clocks, held, most = [0] * pp, [0] * pp, [0] * pp
    last = pp * virtual - 1
    while any(queues):
        moved = False
        for rank, queue in enumerate(queues):
            while queue:
                kind, chunk, micro_batch = queue[0]
                before = ("F", chunk - 1, micro_batch) if kind == "F" else ("B", chunk + 1, micro_batch)
                needs = [] if (kind, chunk) == ("F", 0) else [("F", last, micro_batch) if (kind, chunk) == ("B", last) else before]
                if any(need not in ready for need in needs):
                    break
                start = max([clocks[rank], *(ready[need] for need in needs)])
                clocks[rank] = ready[queue.pop(0)] = start + (1 if kind == "F" else 2)
                held[rank] += 1 if kind == "F" else -1
                most[rank] = max(most[rank], held[rank])
                moved = True
        assert moved, "the schedule is stuck"
    return max(clocks), most


@pytest.mark.parametrize(("pp", "virtual", "rounds"), [(2, 1, 4), (4, 1, 2), (4, 2, 1), (4, 2, 3), (4, 4, 2), (8, 2, 2), (3, 3, 2)])
def test_bubble_and_chunks_in_flight_are_those_of_the_schedule(pp: int, virtual: int, rounds: int) -> None:
    count = pp * rounds
    mesh = Mesh(pp=pp, virtual_stages=virtual)
    took, most = simulate(pp, virtual, count)
    work = 3 * count * virtual
    assert took == pytest.approx(work * (1 + bubble_share(mesh, count)))
    assert run_length(mesh, count) == pp
    assert [in_flight(mesh, rank, count) for rank in range(pp)] == most


def test_the_405b_has_one_slot_a_chunk() -> None:
    parts = stages(BIG, Mesh(tp=8, pp=16, virtual_stages=8))
    assert [part.num_layers for part in parts] == [7, *[8] * 14, 7]
    assert parts[0].chunks == (0, *[1] * 7) and parts[-1].chunks == (*[1] * 7, 0)
    assert [part.has_embedding for part in parts] == [True, *[False] * 15] and parts[-1].has_head


@given(pp=st.integers(1, 12), virtual=st.integers(1, 6), layers=st.integers(1, 90))
def test_every_layer_is_somewhere_and_stages_differ_by_little(pp: int, virtual: int, layers: int) -> None:
    config = replace(preset("llama-3.2-1b"), num_hidden_layers=layers)
    chunks = virtual if pp > 1 else 1
    mesh = Mesh(pp=pp, virtual_stages=chunks)
    if pp * chunks > layers + 2:
        with pytest.raises(ConfigError, match="chunks"):
            mesh.check(config)
        return
    parts = stages(config, mesh)
    assert sum(part.num_layers for part in parts) == layers and len(parts) == pp
    assert all(len(part.chunks) == chunks and min(part.chunks) >= 0 for part in parts)
    assert sum(part.has_embedding for part in parts) == sum(part.has_head for part in parts) == 1


def test_a_run_is_as_long_as_the_pipeline_or_what_there_is() -> None:
    mesh = Mesh(pp=4, virtual_stages=2)
    assert [run_length(mesh, count) for count in (2, 4, 8, 12)] == [2, 4, 4, 4]
    assert run_length(Mesh(dp=4), 8) == 1 and in_flight(Mesh(dp=4), 0, 8) == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"tp": 0}, "tp is 0"), ({"zero": 4}, "zero is 4"), ({"virtual_stages": 2}, "need a pipeline"), ({"pp": -1}, "pp is -1")],
)
def test_a_mesh_that_cannot_be_is_refused_by_name(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Mesh(**sizes)


def test_a_mesh_that_the_model_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="tp 16 does not divide the model's 8 KV heads"):
        Mesh(tp=16).check(BIG)
