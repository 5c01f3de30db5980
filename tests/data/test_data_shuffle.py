import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxscale.data.shuffle import mix, permute


def order(size: int, *key: int) -> list[int]:
    index = np.arange(size, dtype=np.int64)
    return permute(index, size, np.broadcast_to(mix(*key), (size,))).tolist()


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_every_index_goes_to_a_different_place(size: int, key: int) -> None:
    assert sorted(order(size, key)) == list(range(size))


def test_the_order_never_changes() -> None:
    """A run that resumes with a later version must see the same batches."""
    assert order(10, 7) == [4, 0, 2, 7, 9, 5, 1, 3, 6, 8]


@pytest.mark.parametrize("size", [2**40 + 1, 3 * 10**15])
def test_a_seek_into_a_huge_epoch_needs_no_table(size: int) -> None:
    index = np.array([0, 1, size // 2, size - 1], np.int64)
    places = permute(index, size, np.broadcast_to(mix(1), (4,)))
    assert len(set(places.tolist())) == 4
    assert ((places >= 0) & (places < size)).all()


def test_places_are_uniform_over_keys() -> None:
    """Over 20,000 keys index 0 falls in each of 10 places 2,000 times, give or take 5 sigma."""
    keys = mix(np.arange(20_000, dtype=np.int64))
    places = permute(np.zeros(20_000, np.int64), 10, keys)
    counts = np.bincount(places, minlength=10)
    assert abs(counts - 2000).max() < 5 * np.sqrt(20_000 * 0.1 * 0.9)


def test_neighbors_do_not_stay_neighbors() -> None:
    """In a random order of 10,000, about 2 pairs stay side by side (one in either direction)."""
    places = np.array(order(10_000, 3))
    assert np.count_nonzero(abs(np.diff(places)) == 1) < 12


def test_hashes_differ_with_each_value_and_their_order() -> None:
    keys = [mix(1, 2), mix(2, 1), mix(1, 3), mix(1, 2, 0), mix(-1), mix(2**63)]
    assert len({int(key[0]) for key in keys}) == len(keys)
