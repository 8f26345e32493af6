"""The loader: no token lost, doubled or leaked; the same stream for any workers, ranks and resumes; exact shares, phases and limits."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_token_shards import write_dataset  # pyright: ignore[reportMissingImports]

from herd.base.errors import ConfigError, DoesNotFitError, UsageError
from herd.data.loader import Batches, Loader, RowSource, StreamMixture
from herd.data.order import key_of, keyed, permuted, shuffled
from herd.data.packed import PackedTokens, cut
from herd.data.rows import Document, Rows, best_fit, pack, split_document
from herd.data.schedule import MixPhase, Schedule, deal

# Orders


@settings(max_examples=100)
@given(count=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_is_one(count: int, key: int) -> None:
    assert sorted(permuted(key, np.arange(count), count).tolist()) == list(range(count))


def test_a_permutation_is_the_same_everywhere_and_needs_no_memory() -> None:
    assert key_of(7, "epoch", "web", 0) == 7808165682347917185
    assert permuted(5, np.arange(5), 10).tolist() == [7, 1, 9, 2, 3]
    assert permuted(5, np.array([10**15]), 10**16).tolist() != [10**15]
    assert shuffled(3, np.arange(6)).tolist() == [4, 1, 0, 5, 3, 2]


def test_permutations_of_different_keys_are_unlike_and_even() -> None:
    first = np.zeros((20, 20))
    for key in range(2000):
        first[np.arange(20), permuted(key, np.arange(20), 20)] += 1
    assert (abs(first - 100) < 50).all(), "every place goes everywhere equally often"
    assert len({tuple(permuted(key, np.arange(50), 50).tolist()) for key in range(200)}) == 200
    assert len(np.unique(keyed(1, np.arange(10_000, dtype=np.uint64)))) == 10_000


# Packing on disk


@settings(max_examples=150)
@given(lengths=st.lists(st.integers(0, 40), max_size=30), capacity=st.integers(2, 17), split=st.booleans())
def test_documents_are_cut_as_in_memory(lengths: list[int], capacity: int, split: bool) -> None:
    expected: list[tuple[int, int, int]] = []
    for number, length in enumerate(lengths):
        if length < 2 or (not split and length > capacity):
            continue
        start = 0
        for piece in split_document(Document(ids=range(length)), capacity):
            expected.append((number, start, len(piece.ids)))
            start += len(piece.ids)
    documents, starts, sizes = cut(np.array(lengths, dtype=np.int64), capacity, split=split)
    assert list(zip(documents.tolist(), starts.tolist(), sizes.tolist(), strict=True)) == expected


@settings(max_examples=100)
@given(lengths=st.lists(st.integers(1, 20), max_size=60), most=st.integers(1, 5))
def test_a_bin_takes_so_many_items_at_most(lengths: list[int], most: int) -> None:
    bins = best_fit(lengths, 20, max_items=most)
    assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
    assert all(len(items) <= most and sum(lengths[item] for item in items) <= 20 for items in bins)


def numbered_shards(lengths: list[list[int]]) -> list[list[list[int]]]:
    """Documents in which no two tokens are equal."""
    total = 0
    shards: list[list[list[int]]] = []
    for shard in lengths:
        shards.append([])
        for length in shard:
            shards[-1].append(list(range(total, total + length)))
            total += length
    return shards


LENGTHS = st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=4)


@settings(max_examples=60)
@given(lengths=LENGTHS, sequence_length=st.integers(2, 16), split=st.booleans(), window=st.integers(1, 10))
def test_no_token_is_lost_doubled_or_leaked(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], sequence_length: int, split: bool, window: int
) -> None:
    shards = numbered_shards(lengths)
    rows = PackedTokens(write_dataset(tmp_path_factory.mktemp("packed") / "t", shards), sequence_length, split=split, window=window)
    tokens, documents, counts = rows.take(np.arange(len(rows)))
    kept = [ids for shard in shards for ids in shard if len(ids) >= 2 and (split or len(ids) <= sequence_length + 1)]
    assert sorted(tokens[documents >= 0].tolist()) == [token for ids in kept for token in ids]
    assert (tokens[documents < 0] == rows.dataset.pad_id).all() and not counts[documents < 0].any()
    owner = {token: number for number, ids in enumerate(kept) for token in ids}
    for row in range(len(rows)):
        for number in range(documents[row].max() + 1):
            piece = tokens[row][documents[row] == number].tolist()
            assert len({owner[token] for token in piece}) == 1 and piece == list(range(piece[0], piece[0] + len(piece)))
            assert not counts[row][documents[row] == number][0] and counts[row][documents[row] == number][1:].all()
    assert rows.num_documents == sum(map(len, shards)) and rows.num_dropped == rows.num_documents - len(kept)
    assert rows.num_tokens == sum(map(len, kept))


def test_a_packing_is_kept_and_found_again_and_fills_its_rows(tmp_path: Path) -> None:
    rng = random.Random(0)
    shards = [[[1] * rng.randint(2, 900) for _ in range(2000)] for _ in range(2)]
    data = write_dataset(tmp_path / "t", shards)
    rows = PackedTokens(data, 511, window=1000)
    assert rows.fill > 0.97
    about = rows.folder / "packing.json"
    before = about.stat().st_mtime_ns
    again = PackedTokens(data, 511, window=1000)
    assert about.stat().st_mtime_ns == before and again.fingerprint == rows.fingerprint
    assert PackedTokens(data, 255, window=1000).fingerprint != rows.fingerprint
    assert PackedTokens(data, 511, window=1000, cache=tmp_path / "elsewhere").folder.parent == tmp_path / "elsewhere"
    with pytest.raises(ConfigError, match="sequence_length 0"):
        PackedTokens(data, 0)
    (tmp_path / "file").touch()
    with pytest.raises(DoesNotFitError, match="cannot write the packing"):
        PackedTokens(data, 100, cache=tmp_path / "file")


def test_the_rows_are_those_of_packing_in_memory(tmp_path: Path) -> None:
    rng = random.Random(1)
    documents = [[rng.randrange(100) for _ in range(rng.randint(1, 60))] for _ in range(200)]
    expected = pack([Document(ids=ids) for ids in documents], 31, pad_id=69_999)
    tokens, numbers, counts = PackedTokens(write_dataset(tmp_path / "t", [documents]), 31).take(np.arange(len(expected)))
    np.testing.assert_array_equal(tokens, expected.tokens)
    np.testing.assert_array_equal(numbers, expected.documents)
    np.testing.assert_array_equal(counts, expected.counts)


def test_the_mask_of_dialogues_is_kept(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "t", [[[1, 2, 3, 4], [5, 6]]], counts=[[[True, False, False, True], None]])
    tokens, _, counts = PackedTokens(data, 7).take(np.array([0]))
    assert tokens[0][counts[0]].tolist() == [4, 6]


# Schedules


@settings(max_examples=200)
@given(
    weights=st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]), min_size=1, max_size=5).filter(any),
    length=st.integers(1, 50),
    left=st.lists(st.integers(0, 60), min_size=5, max_size=5),
    rounds=st.integers(1, 4),
)
def test_a_block_is_dealt_out_whole_and_within_the_limits(weights: list[float], length: int, left: list[int], rounds: int) -> None:
    shares, remaining = np.array(weights), np.array(left[: len(weights)], dtype=np.int64)
    owed = np.zeros(len(weights))
    for _ in range(rounds):
        quotas, owed = deal(shares, owed, length, remaining)
        assert (quotas >= 0).all() and (quotas <= remaining).all() and (quotas[shares == 0] == 0).all()
        assert quotas.sum() == min(length, remaining[shares > 0].sum())
        remaining = remaining - quotas


@settings(max_examples=100)
@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=5), samples=st.integers(1, 400), block=st.integers(1, 64))
def test_shares_are_exact_at_the_end_of_every_block(weights: list[float], samples: int, block: int) -> None:
    names = [str(number) for number in range(len(weights))]
    schedule = Schedule(names, [MixPhase(from_sample=0, weights=dict(zip(names, weights, strict=True)))], seed=1, limits={}, block=block)
    end = samples // block * block
    used = schedule.used(end)
    for name, weight in zip(names, weights, strict=True):
        assert abs(used[name] - end * weight / sum(weights)) <= 1.0 + 1e-6


@settings(max_examples=25)
@given(
    changes=st.lists(st.integers(1, 300), max_size=3, unique=True).map(sorted),
    limits=st.lists(st.none() | st.integers(0, 200), min_size=3, max_size=3),
    block=st.integers(1, 50),
    order=st.randoms(),
)
def test_a_sample_is_the_same_however_it_is_asked_for(
    changes: list[int], limits: list[int | None], block: int, order: random.Random
) -> None:
    def make() -> Schedule:
        phases = [
            MixPhase(from_sample=start, weights={"a": 1.0, "b": float(number), "c": 0.5}) for number, start in enumerate([0, *changes])
        ]
        return Schedule("abc", phases, seed=3, limits=dict(zip("abc", limits, strict=True)), block=block)

    whole = make()
    whole.used(400)
    end = min(400, whole.ended_at if whole.ended_at is not None else 400)
    sources, turns = whole.locate(0, end)
    counts: Counter[int] = Counter()
    for source, turn in zip(sources.tolist(), turns.tolist(), strict=True):
        assert turn == counts[source], "the turns of a source follow one another"
        counts[source] += 1
    assert whole.used(end) == {name: counts[number] for number, name in enumerate("abc")}
    assert all(limit is None or counts[number] <= limit for number, limit in enumerate(limits))
    other = make()
    numbers = list(range(end))
    order.shuffle(numbers)
    for number in numbers[:25]:
        one = other.locate(number, 1)
        assert (one[0][0], one[1][0]) == (sources[number], turns[number])
    with pytest.raises(IndexError):
        if whole.ended_at is None:
            raise IndexError
        whole.locate(end, 1)


def test_weights_change_at_their_sample() -> None:
    phases = [
        MixPhase(from_sample=0, weights={"a": 1.0}),
        MixPhase(from_sample=37, weights={"b": 1.0}),
        MixPhase(from_sample=90, weights={"a": 1, "b": 3}),
    ]
    sources, _ = Schedule("ab", phases, seed=0, limits={}, block=16).locate(0, 1000)
    assert set(sources[:37]) == {0} and set(sources[37:90]) == {1}
    assert abs(np.mean(sources[90:]) - 0.75) < 0.01


def test_a_source_at_its_limit_leaves_its_share_to_the_others() -> None:
    schedule = Schedule("abc", [MixPhase(from_sample=0, weights={"a": 2, "b": 1, "c": 1})], seed=0, limits={"a": 50}, block=32)
    assert schedule.used(96) == {"a": 48, "b": 24, "c": 24}
    assert schedule.used(992) == {"a": 50, "b": 471, "c": 471}


@pytest.mark.parametrize(
    "phases",
    [
        [],
        [MixPhase(from_sample=3, weights={"a": 1})],
        [MixPhase(from_sample=0, weights={"a": 1}), MixPhase(from_sample=0, weights={"a": 1})],
        [MixPhase(from_sample=0, weights={"z": 1})],
    ],
    ids=["none", "late", "unordered", "unknown"],
)
def test_phases_that_cannot_be_are_refused(phases: list[MixPhase]) -> None:
    with pytest.raises(ConfigError):
        Schedule("ab", phases, seed=0, limits={})
    for wrong in ({"a": -1.0}, {"a": float("inf")}, {"a": 0.0}, {}):
        with pytest.raises(ConfigError):
            MixPhase(from_sample=0, weights=wrong)


# Mixtures and loaders


def rows_of(count: int, *, mark: int, length: int = 4) -> Rows:
    tokens = np.zeros((count, length), dtype=np.int32)
    tokens[:, 0], tokens[:, 1] = mark, np.arange(count)
    return Rows(tokens=tokens, documents=np.full((count, length), mark, dtype=np.int16), counts=tokens % 2 == 1)


def mixture_of(sizes: list[int], *, seed: int = 0, block: int = 16, **more: object) -> StreamMixture:
    sources: dict[str, RowSource] = {f"s{number}": rows_of(size, mark=number) for number, size in enumerate(sizes)}
    weights = {name: 1.0 + number for number, name in enumerate(sources)}
    return StreamMixture(sources, weights, seed=seed, block=block, **more)  # pyright: ignore[reportArgumentType]


def test_a_mixture_offers_batches_and_both_rows_are_sources(tmp_path: Path) -> None:
    assert isinstance(mixture_of([3]), Batches)
    assert isinstance(rows_of(1, mark=0), RowSource)
    assert isinstance(PackedTokens(write_dataset(tmp_path / "t", [[[1, 2]]]), 3), RowSource)
    tokens, documents, counts = mixture_of([3, 4]).batch(0, 5)
    assert (tokens.dtype, documents.dtype, counts.dtype) == (np.int32, np.int16, np.bool_) and tokens.shape == (5, 4)


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_every_row_comes_once_an_epoch(sizes: list[int], seed: int) -> None:
    mixture = mixture_of(sizes, seed=seed)
    tokens = mixture.batch(0, 150)[0]
    for source, size in enumerate(sizes):
        rows = tokens[tokens[:, 0] == source][:, 1].tolist()
        epochs = [rows[start : start + size] for start in range(0, len(rows), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs if len(epoch) == size)
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
    assert mixture.epochs(150) == {f"s{n}": int((tokens[:, 0] == n).sum()) / size for n, size in enumerate(sizes)}


def test_tokens_documents_and_mask_of_a_sample_are_those_of_one_row() -> None:
    sources = {"a": rows_of(5, mark=0), "b": rows_of(3, mark=1)}
    tokens, documents, counts = StreamMixture(sources, {"a": 1.0, "b": 2.0}, seed=0).batch(0, 40)
    for number, (mark, row) in enumerate(tokens[:, :2]):
        rows = list(sources.values())[mark]
        np.testing.assert_array_equal(tokens[number], rows.tokens[row])
        np.testing.assert_array_equal(documents[number], rows.documents[row])
        np.testing.assert_array_equal(counts[number], rows.counts[row])


def test_epochs_seeds_and_sources_have_orders_of_their_own() -> None:
    def drawn(sizes: list[int], seed: int, source: int = 0) -> list[int]:
        tokens = mixture_of(sizes, seed=seed).batch(0, 400)[0]
        return [int(row) for mark, row in tokens[:, :2] if mark == source]

    assert drawn([50], 1)[:50] != drawn([50], 1)[50:100]
    assert drawn([50], 1)[:50] != drawn([50], 2)[:50]
    assert drawn([50, 50], 1, 0)[:50] != drawn([50, 50], 1, 1)[:50]


def test_weights_are_relative_and_a_source_of_weight_zero_is_never_read() -> None:
    def picks(weights: list[float]) -> list[tuple[int, int]]:
        sources = {name: rows_of(size, mark=size) for name, size in zip("abc", (3, 4, 5), strict=True)}
        tokens = StreamMixture(sources, dict(zip("abc", weights, strict=True)), seed=1).batch(0, 60)[0]
        return [(int(mark), int(row)) for mark, row in tokens[:, :2]]

    assert picks([1, 3, 0]) == picks([100, 300, 0])
    assert {mark for mark, _ in picks([1, 3, 0])} == {3, 4}


def stream(loaders: list[Loader], steps: int) -> list[list[tuple[int, int]]]:
    """The samples of some steps, all ranks one after another."""
    return [[(int(row[0]), int(row[1])) for loader in loaders for row in next(loader)[0]] for _ in range(steps)]


def ranks(mixture: StreamMixture, world_size: int, workers: int, batch_size: int = 14) -> list[Loader]:
    return [Loader(mixture, batch_size=batch_size, rank=rank, world_size=world_size, workers=workers) for rank in range(world_size)]


@pytest.mark.parametrize("workers", [0, 1, 2, 7])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_neither_workers_nor_ranks_change_the_stream(workers: int, world_size: int) -> None:
    plain = stream(ranks(mixture_of([5, 11, 8]), 1, 0), 12)
    loaders = ranks(mixture_of([5, 11, 8]), world_size, workers)
    assert stream(loaders, 12) == plain
    for loader in loaders:
        loader.close()


@settings(max_examples=25)
@given(
    before=st.integers(1, 4),
    after=st.integers(1, 4),
    stop=st.integers(0, 6),
    workers=st.sampled_from([0, 1, 2, 7]),
    sizes=st.lists(st.integers(4, 20), min_size=8, max_size=8),
)
def test_a_resume_on_another_world_size_neither_skips_nor_repeats(
    before: int, after: int, stop: int, workers: int, sizes: list[int]
) -> None:
    def read(loaders: list[Loader], batches: list[int]) -> list[tuple[int, int]]:
        return [(int(row[0]), int(row[1])) for size in batches for loader in loaders for row in loader.next_batch(size)[0]]

    plain = read(ranks(mixture_of([5, 11]), 1, 0), sizes)
    first = ranks(mixture_of([5, 11]), before, workers)
    got = read(first, sizes[:stop])
    state = first[-1].state_dict()
    second = ranks(mixture_of([5, 11]), after, workers)
    for loader in second:
        loader.load_state_dict(state)
    got += read(second, sizes[stop:])
    assert got == plain, "batches of any size, as in a ramp"
    for loader in (*first, *second):
        loader.close()


def test_the_end_of_the_data_ends_the_loader_and_is_told_before() -> None:
    mixture = mixture_of([4, 6], max_epochs={"s0": 2.0, "s1": 1.5})
    loader = Loader(mixture, batch_size=5, workers=2)
    rows = [tuple(row[:2]) for tokens, _, _ in loader for row in tokens.tolist()]
    assert len(rows) == 15 and Counter(source for source, _ in rows)[0] in (6, 7, 8), "17 samples are three whole batches and two samples"
    assert mixture.schedule.ended_at == 17
    loader.close()
    with pytest.raises(DoesNotFitError, match="ends after 17 samples, 18 are asked for") as caught:
        mixture_of([4, 6], max_epochs={"s0": 2.0, "s1": 1.5}, num_samples=18)
    assert "max_epochs" in str(caught.value.hint)
    assert len(mixture_of([4, 6], max_epochs={"s0": 2.0, "s1": 1.5}, num_samples=17)) == 17


@pytest.mark.parametrize("workers", [0, 2])
def test_a_rank_without_a_sample_gets_an_empty_part(workers: int) -> None:
    loaders = ranks(mixture_of([5]), 3, workers)
    assert [len(loader.next_batch(2)[0]) for loader in loaders] == [0, 1, 1]
    for loader in loaders:
        loader.close()


def test_a_state_of_other_data_is_refused() -> None:
    state = Loader(mixture_of([5, 11]), batch_size=4).state_dict()
    for other in (mixture_of([5, 12]), mixture_of([5, 11], seed=1), mixture_of([5, 11], max_epochs={"s0": 1.0})):
        with pytest.raises(UsageError, match="other data"):
            Loader(other, batch_size=4).load_state_dict(state)


def test_what_cannot_be_mixed_or_read_is_refused() -> None:
    sources: dict[str, RowSource] = {"a": rows_of(2, mark=0), "empty": rows_of(0, mark=1), "long": rows_of(2, mark=2, length=6)}
    for weights, message in (
        ({"a": 1.0, "empty": 1.0}, "'empty' is empty"),
        ({"a": 1.0, "long": 1.0}, "rows of 4 and 6 tokens"),
        ({"b": 1.0}, "unknown source 'b'"),
        ({"a": 0.0}, "no positive weight"),
    ):
        with pytest.raises(ConfigError, match=message):
            StreamMixture(sources, weights, seed=0)
    assert StreamMixture(sources, {"a": 1.0, "empty": 0.0}, seed=0).names == ["a"]
    with pytest.raises(IndexError):
        mixture_of([3], num_samples=10).batch(8, 3)
    with pytest.raises(TypeError):
        len(mixture_of([3]))
    for wrong in ({"rank": 2, "world_size": 2}, {"batch_size": 1, "world_size": 2}, {"workers": -1}, {"ahead": 0}):
        with pytest.raises(ConfigError):
            Loader(mixture_of([3]), **{"batch_size": 4, **wrong})


def test_a_long_run_is_found_at_once_from_anywhere() -> None:
    mixture = mixture_of([1000, 3000], block=64)
    late = mixture.batch(64 * 600 + 5, 3)[0]
    fresh = mixture_of([1000, 3000], block=64)
    fresh.batch(64 * 599, 1)
    np.testing.assert_array_equal(fresh.batch(64 * 600 + 5, 3)[0], late)
    assert len(mixture.schedule._marks) == 3, "a state is kept for every 256th block"


@pytest.mark.parametrize("workers", [0, 1, 2, 7])
def test_tokens_from_disk_come_once_an_epoch_through_ranks_and_workers(tmp_path: Path, workers: int) -> None:
    rng = random.Random(2)
    shards = numbered_shards([[rng.randint(2, 70) for _ in range(60)] for _ in range(4)])
    halves = [write_dataset(tmp_path / name, part, vocab_size=20_000) for name, part in (("a", shards[:2]), ("b", shards[2:]))]
    sources: dict[str, RowSource] = {name: PackedTokens(half, 31, window=25) for name, half in zip("ab", halves, strict=True)}
    once = {"a": 1.0, "b": 1.0}
    mixture = StreamMixture(sources, {"a": 1.0, "b": 2.0}, seed=1, max_epochs=once, block=16)
    mixture.schedule.used(10**6)
    end = mixture.schedule.ended_at
    assert end == sum(len(source) for source in sources.values())
    # Two ranks, then from a saved state three, to the last sample.
    seen: list[int] = []
    sizes = [8] * (end // 8) + [end % 8 or 8] * (end % 8 > 0)
    state = None
    for world_size, batches in ((2, sizes[:9]), (3, sizes[9:])):
        loaders = [Loader(mixture, batch_size=8, rank=rank, world_size=world_size, workers=workers) for rank in range(world_size)]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
        for size in batches:
            for loader in loaders:
                tokens, documents, _ = loader.next_batch(size)
                seen += tokens[documents >= 0].tolist()
        state = loaders[0].state_dict()
        for loader in loaders:
            loader.close()
    assert sorted(seen) == [token for shard in shards for ids in shard for token in ids]
