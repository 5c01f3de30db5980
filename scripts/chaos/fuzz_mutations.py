"""Small changes to what is right: a value of another kind, a key misspelt or gone, an override that nearly parses."""

import functools
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import yaml
from fuzz_values import EVIL, PLAUSIBLE

Tree = dict[str, Any]


def mutate(random: Random, tree: Tree) -> None:
    """Change one thing, anywhere: a value, a key, a section, or a key that exists and was not given."""
    kind = random.random()
    if kind < 0.8:
        key = random.choice(leaves())
        _set(tree, key, _value_for(random, key))
        return
    parent, key = random.choice(list(_places(tree)))
    if kind < 0.9:
        parent[key] = _value(random)
    elif kind < 0.94:
        del parent[key]
    else:
        parent[_misspelt(random, str(key))] = parent.pop(key)


def _value(random: Random) -> Any:
    return deepcopy(random.choice(EVIL if random.random() < 0.6 else PLAUSIBLE))


def _misspelt(random: Random, key: str) -> str:
    where = random.randrange(len(key))
    return random.choice(
        [key[:where] + key[where + 1 :], key + "s", key.upper(), key[::-1], f"{key}.x", ""]
    )


def _places(tree: Tree) -> list[tuple[Tree, Any]]:
    found: list[tuple[Tree, Any]] = []
    for key, value in tree.items():
        found.append((tree, key))
        if isinstance(value, dict):
            found += _places(value)
    return found


def _set(tree: Tree, path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        inner = tree.get(part)
        if not isinstance(inner, dict):
            inner = tree[part] = {}
        tree = inner
    tree[path[-1]] = value


@functools.cache
def known_keys() -> dict[tuple[str, ...], Tree]:
    """Every key of the configuration with what its own schema says of it."""
    from jaxscale.config.text import schema

    found: dict[tuple[str, ...], Tree] = {}
    full = schema()

    def walk(node: Tree, path: tuple[str, ...]) -> None:
        if "$ref" in node:
            walk(full["$defs"][node["$ref"].rsplit("/", 1)[1]], path)
        for form in (*node.get("anyOf", ()), *node.get("oneOf", ())):
            walk(form, path)
        for name, inner in node.get("properties", {}).items():
            found[*path, name] = inner
            walk(inner, (*path, name))

    walk(full, ())
    return found


@functools.cache
def leaves() -> list[tuple[str, ...]]:
    """Keys that hold a value and no other keys."""
    keys = known_keys()
    inner = {key[:end] for key in keys for end in range(len(key))}
    return sorted(set(keys) - inner)


def _value_for(random: Random, key: tuple[str, ...]) -> Any:
    """A value of a key: mostly of its kind, so that more is asked than whether kinds are checked."""
    forms = known_keys().get(key, {})
    kinds = [forms, *forms.get("anyOf", ())]
    choices = [value for form in kinds for value in form.get("enum", [])]
    for form in kinds:
        choices += _OF_KIND.get(form.get("type", ""), [])
    return _value(random) if not choices or random.random() < 0.15 else random.choice(choices)


# Small ones, that a tiny run could do with.
_OF_KIND: dict[str, list[Any]] = {
    "integer": [0, 1, 1, 2, 2, 3, 4, 4, 5, 6, 8, 8, 12, 16, 32, 64, 300],
    "number": [0.0, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0, 1.5, 10.0, 1e-3, 1e-8],
    "boolean": [True, False],
    "null": [None],
    "array": [[], ["a"], [1, 1], [2], [0.5, 0.5]],
    "object": [{}, {"attention": "reference"}, {"mlp": "tensor"}, {"name": "lion"}],
}


def overrides(random: Random) -> list[str]:
    keys = [".".join(path) for path in leaves()]
    forms: Sequence[Callable[[], str]] = (
        lambda: _override(random, random.choice(keys)),
        lambda: _override(random, random.choice(keys)),
        lambda: (
            f"{random.choice(keys)}={random.choice(['[', '{', '*x', '&x', '!!python/name:os.system', '- -', '%'])}"
        ),
        lambda: f"{_misspelt(random, random.choice(keys))}=1",
        lambda: f"{random.choice(keys)}.x=1",
        lambda: random.choice(
            ["", "=", "a", ".=1", "a..b=1", "=x", "model", "training.steps==3", " = "]
        ),
    )
    return [random.choice(forms)().replace("\x00", "") for _ in range(random.randrange(4))]


def _override(random: Random, key: str) -> str:
    value = _value_for(random, tuple(key.split(".")))
    return f"{key}={yaml.safe_dump(value, default_flow_style=True)[:3000].removesuffix('...' + chr(10)).strip()}"


def word(random: Random) -> str:
    return random.choice(
        ["0", "1", "2", "3", "8", "1024", "-1", "x", "", "1e3", "99999999999999999999", "2.5"]
    )


def cluster_file(random: Random, root: Path) -> bytes:
    tree = yaml.safe_load(
        random.choice(sorted((root / "configs/clusters").glob("*.yaml"))).read_text()
    )
    for _ in range(random.choice([0, 1, 1, 2])):
        parent, key = random.choice(list(_places(tree)))
        parent[key] = _value(random)
    return yaml.safe_dump(tree, allow_unicode=True).encode(errors="replace")
