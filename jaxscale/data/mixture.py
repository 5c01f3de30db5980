"""Which store each row of the endless training sequence comes from."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from jaxtyping import Int32, Int64

from jaxscale.data.store import Store
from jaxscale.errors import UserError

BLOCK = 100_000
"""Rows after which the pattern repeats: weights are exact to one row in this many."""


@dataclass(frozen=True)
class Source:
    """A store and its share of the rows, relative to the other sources."""

    name: str
    store: Store
    weight: float = 1.0


@dataclass(frozen=True)
class Mixture:
    """Stores mixed by weight: row g of the training sequence is row n of source s.

    In every BLOCK rows each source has its exact quota (weights rounded to 1/BLOCK), spread as
    evenly as can be. Raises UserError for weights that are not positive or too small to give a row,
    and for stores made with different tokenizers.
    """

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        _check_weights(self.sources)
        _check_same_tokenizer(self.sources)

    @classmethod
    def of(cls, store: Store) -> "Mixture":
        return cls((Source(store.name, store),))

    def assign(
        self, rows: Int64[np.ndarray, "rows"]
    ) -> tuple[Int64[np.ndarray, "rows"], Int64[np.ndarray, "rows"]]:
        """For each global row: the source, and how many rows of that source come before it."""
        source_of, rank_of, quotas = self._pattern
        block, place = np.divmod(rows, BLOCK)
        source = source_of[place].astype(np.int64)
        return source, block * quotas[source] + rank_of[place]

    @cached_property
    def _pattern(
        self,
    ) -> tuple[Int32[np.ndarray, "block"], Int32[np.ndarray, "block"], Int64[np.ndarray, "source"]]:
        quotas = block_quotas([source.weight for source in self.sources])
        source_of = np.repeat(np.arange(len(quotas), dtype=np.int32), quotas)
        rank_of = np.concatenate([np.arange(quota, dtype=np.int32) for quota in quotas])
        # The i-th of q rows is due in the middle of the i-th q-th of the block.
        due = (rank_of + 0.5) / quotas[source_of]
        order = np.argsort(due, kind="stable")
        return source_of[order], rank_of[order], quotas


def block_quotas(weights: list[float]) -> Int64[np.ndarray, "source"]:
    """Rows of a block that each weight gets: rounded down, the rest to the largest remainders."""
    exact = [Fraction(weight) for weight in weights]
    shares = [weight / sum(exact) * BLOCK for weight in exact]
    quotas = [int(share) for share in shares]
    remainders = sorted(range(len(shares)), key=lambda i: (quotas[i] - shares[i], i))
    for i in remainders[: BLOCK - sum(quotas)]:
        quotas[i] += 1
    return np.array(quotas, np.int64)


def _check_weights(sources: tuple[Source, ...]) -> None:
    if not sources:
        raise UserError("a mixture needs at least one store")
    for source in sources:
        if not 0 < source.weight < float("inf"):
            raise UserError(
                f"the weight of {source.name} is {source.weight}: weights must be positive numbers "
                f"(leave the store out to give it none)"
            )
    quotas = block_quotas([source.weight for source in sources])
    for source, quota in zip(sources, quotas, strict=True):
        if quota == 0:
            total = sum(source.weight for source in sources)
            raise UserError(
                f"the weight of {source.name} is {source.weight / total:.2g} of the total, less "
                f"than one row in {BLOCK}: raise it or leave the store out"
            )


def _check_same_tokenizer(sources: tuple[Source, ...]) -> None:
    first = sources[0]
    for source in sources[1:]:
        ours, theirs = first.store.manifest.tokenizer, source.store.manifest.tokenizer
        if ours.fingerprint != theirs.fingerprint:
            raise UserError(
                f"the stores of a mixture need one tokenizer, but {first.name} has fingerprint "
                f"{ours.fingerprint[:16]} and {source.name} has {theirs.fingerprint[:16]}: prepare "
                f"one of them again with the other's tokenizer"
            )
