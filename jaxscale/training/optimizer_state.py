"""Optimizer state as a flat mapping from readable names to arrays, for checkpoints, and back.

    {"optimizer": state}  <->  {"optimizer/adam/mu/layers/attention/query": ..., ...}

Names are the keys of the tree joined by "/". Positions in tuples and optax's wrappers
(`inner_state`) say nothing and are left out, except where two names would then be equal: those
keep all their keys.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

Leaf = TypeVar("Leaf")

_WRAPPERS = frozenset({"inner_state", "inner_states"})


def flatten_state(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by name; optax.EmptyState and optax.MaskedNode have none."""
    leaves = [leaf for _, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    return dict(zip(_names(tree), leaves, strict=True))


def unflatten_state(like: Any, flat: Mapping[str, Leaf]) -> Any:
    """A tree of the structure of `like` (of arrays, shapes, anything) with the leaves of `flat`.

    Raises ValueError if names are missing or left over.
    """
    names = _names(like)
    missing, unknown = sorted(set(names) - set(flat)), sorted(set(flat) - set(names))
    if missing or unknown:
        raise ValueError(
            f"optimizer state does not fit: {len(missing)} missing {missing[:5]}, "
            f"{len(unknown)} unknown {unknown[:5]}"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in names])


def _names(tree: Any) -> list[str]:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    short = [_join(path, terse=True) for path in paths]
    full = [_join(path, terse=False) for path in paths]
    uses = Counter(short)
    names = [brief if uses[brief] == 1 else long for brief, long in zip(short, full, strict=True)]
    assert len(set(names)) == len(names), f"two leaves of one name: {Counter(names).most_common(1)}"
    return names


def _join(path: tuple[Any, ...], *, terse: bool) -> str:
    return "/".join(_text(key) for key in path if not (terse and _is_noise(key)))


def _is_noise(key: Any) -> bool:
    if isinstance(key, GetAttrKey):
        return key.name in _WRAPPERS
    return isinstance(key, SequenceKey | FlattenedIndexKey)


def _text(key: Any) -> str:
    match key:
        case DictKey():
            return str(key.key)
        case GetAttrKey():
            return str(key.name)
        case SequenceKey():
            return str(key.idx)
        case FlattenedIndexKey():
            return str(key.key)
    raise AssertionError(f"unknown kind of tree key: {key!r}")
