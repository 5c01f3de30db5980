import hashlib
import subprocess
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.data.loader import Batches, eval_batches, iterate
from jaxscale.data.mixture import Mixture, Source
from jaxscale.data.packing import IGNORE, Batch
from jaxscale.data.store import Store, check_vocab
from jaxscale.errors import UserError

FIELDS = ("tokens", "targets", "segment_ids", "positions")


def numbered_documents(lengths: list[int]) -> list[list[int]]:
    """Documents in which no token occurs twice."""
    ends = np.cumsum(lengths)
    return [
        list(range(end - n + 1, end + 1)) for n, end in zip(lengths, ends.tolist(), strict=True)
    ]


def assert_same(a: Batch, b: Batch) -> None:
    for field in FIELDS:
        np.testing.assert_array_equal(a[field], b[field])


@pytest.fixture(scope="module")
def mixture(store_of) -> Mixture:
    small = store_of(numbered_documents([30, 7, 55, 1, 12, 90]))
    large = store_of(numbered_documents([211, 3, 400]))
    return Mixture((Source("small", small, 1), Source("large", large, 3)))


def test_borders_and_masks_by_hand(store_of) -> None:
    store = store_of([[5, 6, 7], [8, 9]])  # The stream is 5 6 7 0 8 9 0.
    first, second = eval_batches(store, sequence_length=5, batch=1)
    assert {name: values.tolist() for name, values in first.items()} == {
        "tokens": [[5, 6, 7, 0, 8]],
        "targets": [[6, 7, 0, IGNORE, 9]],
        "segment_ids": [[1, 1, 1, 1, 2]],
        "positions": [[0, 1, 2, 3, 0]],
    }
    assert {name: values.tolist() for name, values in second.items()} == {
        "tokens": [[9, 0, 0, 0, 0]],
        "targets": [[0, IGNORE, IGNORE, IGNORE, IGNORE]],
        "segment_ids": [[1, 1, 0, 0, 0]],
        "positions": [[0, 1, 0, 0, 0]],
    }


def test_batches_are_int32_of_the_asked_shape(mixture: Mixture) -> None:
    batch = Batches(mixture, sequence_length=16, global_batch=6).rows(3)
    assert set(batch) == set(FIELDS)
    assert all(v.dtype == np.int32 and v.shape == (6, 16) for v in batch.values())


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    sequence_length=st.integers(1, 50),
    seed=st.integers(0, 2**63),
)
def test_an_epoch_has_every_token_once(
    store_of, lengths: list[int], sequence_length: int, seed: int
) -> None:
    documents = numbered_documents([*lengths, sequence_length])
    store = store_of(documents)
    batches = Batches(Mixture.of(store), sequence_length, global_batch=1, seed=seed)
    per_epoch = -(-store.num_tokens // sequence_length)
    inputs = Counter(x for document in documents for x in (*document, 0))
    targets = Counter(x for document in documents for x in (*document, 0)[1:])
    for epoch in range(3):
        seen, wanted = Counter(), Counter()
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            batch = batches.rows(step)
            seen.update(batch["tokens"][batch["segment_ids"] > 0].tolist())
            wanted.update(batch["targets"][batch["targets"] != IGNORE].tolist())
        assert seen == inputs
        assert wanted == targets


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    sequence_length=st.integers(1, 50),
    batch=st.integers(1, 5),
)
def test_evaluation_has_every_token_once_in_order(
    store_of, lengths: list[int], sequence_length: int, batch: int
) -> None:
    documents = numbered_documents(lengths)
    store = store_of(documents)
    seen = list(eval_batches(store, sequence_length, batch))
    assert all(values.shape == (batch, sequence_length) for b in seen for values in b.values())
    tokens = np.concatenate([b["tokens"][b["segment_ids"] > 0] for b in seen])
    targets = np.concatenate([b["targets"][b["targets"] != IGNORE] for b in seen])
    assert tokens.tolist() == [x for document in documents for x in (*document, 0)]
    assert targets.tolist() == [x for document in documents for x in (*document, 0)[1:]]


def test_evaluation_slices_make_up_the_whole(store_of) -> None:
    store = store_of(numbered_documents([100]))
    whole = list(eval_batches(store, 8, 6))
    parts = [list(eval_batches(store, 8, 6, rows=slice(*r))) for r in ((0, 2), (2, 6))]
    for batch, low, high in zip(whole, *parts, strict=True):
        assert_same(batch, {f: np.concatenate([low[f], high[f]]) for f in FIELDS})


def test_epochs_differ_in_order_and_in_cuts(store_of) -> None:
    store = store_of(numbered_documents([400]))
    batches = Batches(Mixture.of(store), sequence_length=10, global_batch=41)
    starts = [[o.token_ranges[0][0] for o in batches.describe(epoch)] for epoch in (0, 1)]
    assert [o.epoch for o in batches.describe(1)] == [1] * 41
    assert sorted(starts[0]) != sorted(starts[1])
    first, second = ([o.window for o in batches.describe(epoch)] for epoch in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(41))


def test_the_seed_changes_the_order(mixture: Mixture) -> None:
    one, other = (Batches(mixture, 16, 8, seed=seed).rows(0)["tokens"] for seed in (0, 1))
    assert not np.array_equal(one, other)


def test_slices_of_a_batch_make_up_the_whole(mixture: Mixture) -> None:
    batches = Batches(mixture, sequence_length=16, global_batch=8, seed=5)
    for step in (0, 7, 10**12):
        halves = [batches.rows(step, 0, 3), batches.rows(step, 3, 8)]
        assert_same(batches.rows(step), {f: np.concatenate([h[f] for h in halves]) for f in FIELDS})


def test_the_global_batch_regroups_the_same_rows(mixture: Mixture) -> None:
    """Row 12 of the run is row 12 whether steps take 4 rows or 12."""
    small, large = (Batches(mixture, 16, n, seed=5) for n in (4, 12))
    three = [small.rows(step) for step in (3, 4, 5)]
    assert_same(large.rows(1), {f: np.concatenate([b[f] for b in three]) for f in FIELDS})


OTHER_PROCESS = """
import hashlib, sys
from jaxscale.data.loader import Batches
from jaxscale.data.mixture import Mixture, Source
from jaxscale.data.store import Store
small, large, start, stop = sys.argv[1:]
sources = Source("a", Store.open(small), 1), Source("b", Store.open(large), 3)
batches = Batches(Mixture(sources), 16, 8, seed=5)
batch = [batches.rows(step, int(start), int(stop)) for step in range(4)]
print(hashlib.sha256(b"".join(v.tobytes() for b in batch for v in b.values())).hexdigest())
"""


def test_two_processes_read_the_two_halves(mixture: Mixture) -> None:
    batches = Batches(mixture, sequence_length=16, global_batch=8, seed=5)
    whole = [batches.rows(step) for step in range(4)]
    paths = [source.store.path for source in mixture.sources]
    for start, stop in ((0, 4), (4, 8)):
        half = b"".join(v[start:stop].tobytes() for batch in whole for v in batch.values())
        command = [sys.executable, "-c", OTHER_PROCESS, *paths, str(start), str(stop)]
        output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        assert output.strip() == hashlib.sha256(half).hexdigest()


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_iterating_from_a_step_is_what_replaying_gives(mixture: Mixture, threads: int) -> None:
    batches = Batches(mixture, sequence_length=16, global_batch=8, seed=5)
    replayed = list(islice(iterate(batches, threads=threads), 20))[12:]
    resumed = list(iterate(batches, start_step=12, stop_step=20, threads=threads))
    assert [step for step, _ in resumed] == list(range(12, 20))
    for (step, batch), (replayed_step, replay) in zip(resumed, replayed, strict=True):
        assert step == replayed_step
        assert_same(batch, replay)
        assert_same(batch, batches.rows(step))


def test_iterating_over_a_slice_gives_its_rows(mixture: Mixture) -> None:
    batches = Batches(mixture, sequence_length=16, global_batch=8, seed=5)
    step, batch = next(iterate(batches, start_step=3, rows=slice(2, 5)))
    assert step == 3
    assert_same(batch, batches.rows(3, 2, 5))


def test_a_description_names_the_tokens_of_each_row(mixture: Mixture) -> None:
    batches = Batches(mixture, sequence_length=16, global_batch=40, seed=5)
    stores = {source.name: source.store for source in mixture.sources}
    batch = batches.rows(2)
    for origin in batches.describe(2):
        store = stores[origin.source]
        tokens = np.concatenate([store.read(*r) for r in origin.token_ranges])
        real = batch["segment_ids"][origin.row] > 0
        np.testing.assert_array_equal(batch["tokens"][origin.row][real], tokens)
        first, last = origin.documents
        assert store.document_offsets[first] <= origin.token_ranges[0][0]
        assert origin.token_ranges[-1][1] <= store.document_offsets[last + 1]
    assert {origin.source for origin in batches.describe(2)} == {"small", "large"}
    named = str(batches.describe(2, 3, 4)[0])
    assert named.startswith("row 3: ")
    assert "tokens" in named


def test_packing_wastes_less_than_one_percent(store_of) -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 200).tolist()
    store = store_of(numbered_documents(lengths))
    batches = Batches(Mixture.of(store), 128, global_batch=-(-store.num_tokens // 128))
    padding = batches.rows(0)["segment_ids"] == 0
    assert padding.mean() < 0.01
    assert batches.tokens_per_epoch == store.num_tokens == padding.size - padding.sum()


def test_a_store_smaller_than_a_row_is_an_error(store_of) -> None:
    store = store_of([[1, 2, 3]])
    with pytest.raises(UserError, match="has 4 tokens, less than one row of 4"):
        Batches(Mixture.of(store), sequence_length=4, global_batch=1)
    Batches(Mixture.of(store), sequence_length=3, global_batch=1)


def test_sizes_must_be_positive(mixture: Mixture) -> None:
    with pytest.raises(UserError, match="sequence_length is 0"):
        Batches(mixture, sequence_length=0, global_batch=1)
    with pytest.raises(UserError, match="global_batch is -1"):
        Batches(mixture, sequence_length=1, global_batch=-1)
    with pytest.raises(UserError, match="batch is 0"):
        list(eval_batches(mixture.sources[0].store, 4, 0))


def test_an_empty_store_cannot_be_evaluated(store_of) -> None:
    with pytest.raises(UserError, match=r"no tokens to evaluate on: raise eval_fraction"):
        list(eval_batches(store_of([]), 4, 1))


def test_steps_and_rows_outside_the_run_are_our_mistakes(mixture: Mixture) -> None:
    batches = Batches(mixture, sequence_length=4, global_batch=2)
    for step, start, stop in ((-1, 0, 1), (0, 1, 3), (0, 2, 1)):
        with pytest.raises(IndexError):
            batches.rows(step, start, stop)


def test_a_store_must_fit_the_models_vocabulary(store_of) -> None:
    store: Store = store_of([[1]])
    check_vocab(store, 1 << 20)
    with pytest.raises(UserError, match="1048576 tokens but the model's vocabulary is 1000"):
        check_vocab(store, 1000)
