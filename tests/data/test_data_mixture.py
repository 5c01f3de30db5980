import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxscale.data.mixture import BLOCK, Mixture, Source, block_quotas
from jaxscale.data.store import Store
from jaxscale.errors import UserError


@pytest.fixture(scope="module")
def store(store_of) -> Store:
    return store_of([list(range(1, 50))])


def mixture(store: Store, *weights: float) -> Mixture:
    return Mixture(tuple(Source(f"s{i}", store, w) for i, w in enumerate(weights)))


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_quotas_fill_the_block_and_are_within_one_row_of_the_weights(weights: list[float]) -> None:
    quotas = block_quotas(weights)
    assert quotas.sum() == BLOCK
    assert abs(quotas - np.array(weights) / sum(weights) * BLOCK).max() < 1 + 1e-6


def test_decimal_weights_are_exact(store: Store) -> None:
    assert block_quotas([0.7, 0.2, 0.1]).tolist() == [70_000, 20_000, 10_000]
    sources, _ = mixture(store, 0.7, 0.2, 0.1).assign(np.arange(BLOCK, 2 * BLOCK))
    assert np.bincount(sources).tolist() == [70_000, 20_000, 10_000]


def test_every_short_stretch_has_its_share(store: Store) -> None:
    """Three sources: the count of each in any prefix is within 2 rows of its share."""
    weights = np.array([5, 3, 2]) / 10
    sources, _ = mixture(store, 5, 3, 2).assign(np.arange(5000))
    counts = np.cumsum(sources[:, None] == np.arange(3), axis=0)
    assert abs(counts - weights * np.arange(1, 5001)[:, None]).max() <= 2


def test_rows_of_a_source_are_counted_without_gaps_across_blocks(store: Store) -> None:
    rows = np.arange(BLOCK - 500, BLOCK + 500)
    sources, ranks = mixture(store, 2, 1).assign(rows)
    for source in (0, 1):
        assert (np.diff(ranks[sources == source]) == 1).all()


def test_a_seek_gives_what_counting_from_zero_gives(store: Store) -> None:
    mixed = mixture(store, 3, 1)
    far = 10**15 + 12_345
    source, rank = mixed.assign(np.array([far]))
    block_of_far = far // BLOCK
    in_block, _ = mixed.assign(np.arange(far % BLOCK + 1))
    assert source[0] == in_block[-1]
    expected = block_of_far * block_quotas([3, 1])[source[0]]
    assert rank[0] == expected + np.count_nonzero(in_block[:-1] == source[0])


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_weights_must_be_positive(store: Store, weight: float) -> None:
    with pytest.raises(UserError, match=r"weight of s1 is .*must be positive"):
        mixture(store, 1, weight)


def test_a_weight_too_small_for_a_row_is_an_error(store: Store) -> None:
    with pytest.raises(UserError, match="weight of s1 is 1e-09 of the total"):
        mixture(store, 1, 1e-9)


def test_a_mixture_needs_a_store() -> None:
    with pytest.raises(UserError, match="at least one store"):
        Mixture(())
