"""What the fuzzer tries: configurations that are nearly right, files that are hardly YAML, lines full of mistakes."""

import functools
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import yaml
from fuzz_values import CLUSTERS, EVIL, PLAUSIBLE

Tree = dict[str, Any]


@dataclass
class Case:
    """A command line, and the files of the directory that it runs in."""

    arguments: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Where:
    """store: of tokens to train on. root: of the repository."""

    store: Path
    root: Path


def tiny(store: Path) -> Tree:
    """A run that trains in a second or two."""
    return {
        "name": "tiny",
        "model": {
            "family": "llama3",
            "vocab_size": 300,
            "max_positions": 32,
            "num_layers": 2,
            "embed_dim": 16,
            "num_heads": 2,
            "num_kv_heads": 2,
            "mlp_dim": 32,
        },
        "data": {"train": str(store), "sequence_length": 16, "threads": 1, "prefetch": 1},
        "training": {
            "steps": 2,
            "global_batch": 4,
            "eval_batches": 1,
            "sample_tokens": 0,
            "optimizer": {"name": "adamw", "learning_rate": 1e-3},
            "schedule": {"name": "constant", "warmup_steps": 0},
        },
        "plan": "auto",
        "checkpoint": {"every": 0, "keep_last": 1},
        "telemetry": {"log_every": 1, "trackers": []},
    }


def make_case(random: Random, where: Where) -> Case:
    """One case, by what `random` says and nothing else."""
    kinds: dict[Callable[[Random, Where], Case], int] = {
        _show: 24,
        _describe: 18,
        _plan: 22,
        _train: 8,
        _text: 10,
        _line: 12,
        _launch: 6,
    }
    (make,) = random.choices(list(kinds), weights=list(kinds.values()))
    return make(random, where)


def _show(random: Random, where: Where) -> Case:
    return _configured(random, where, ["config", "show"])


def _describe(random: Random, where: Where) -> Case:
    case = _configured(random, where, ["describe"])
    if random.random() < 0.4:
        case.arguments += random.choice([["--json"], ["--sequence-length", _word(random)]])
    return case


def _plan(random: Random, where: Where) -> Case:
    if random.random() < 0.4:
        model = random.choice(sorted((where.root / "configs/models").glob("*.yaml")))
        case = Case(["plan", str(model), *_overrides(random)])
    else:
        case = _configured(random, where, ["plan"])
    case.arguments += ["--on", random.choice(CLUSTERS[:9] if random.random() < 0.7 else CLUSTERS)]
    case.files["cluster.yaml"] = _cluster_file(random, where)
    options = (
        ["--json"],
        ["--batch", _word(random)],
        ["--seq", _word(random)],
        ["--top", _word(random)],
        ["--show", _word(random)],
        ["--formulas"],
        ["--executable"],
        [
            "--pin",
            random.choice(
                ["tensor<=8", "fsdp=64", "tensor=3", "remat=full", "x=1", "fsdp", "=", "data>=0"]
            ),
        ],
        ["--why", random.choice(["1", "2", "0", "fsdp=2", "x", ""])],
        ["--devices", _word(random)],
        [
            "--what-if",
            random.choice(["hbm=141GiB", "hbm=", "x=1", "hbm=-1GiB", "hbm=0", "=", "hbm=nanGiB"]),
        ],
        ["--html", random.choice(["page.html", "/", "no/such/page.html"])],
        ["--schedule", random.choice(["1f1b", "plan", "nope", ""])],
    )
    for option in random.sample(options, random.choice([0, 0, 1, 1, 2, 3])):
        case.arguments += option
    return case


def _train(random: Random, where: Where) -> Case:
    """Nearly right: most of these are refused, some train, and all of them end."""
    case = _configured(random, where, ["train"], mutations=random.choice([0, 1, 1, 1, 2]))
    case.arguments += [
        "--run-dir",
        random.choice(["run", "run", "run", "config.yaml", "/dev/null/x", "a/b/c"]),
    ]
    return case


def _text(random: Random, where: Where) -> Case:
    """A file that is not quite YAML, or YAML of another kind."""
    text = yaml.safe_dump(tiny(where.store)).encode()
    at = random.randrange(len(text))
    forms: Sequence[Callable[[], bytes]] = (
        lambda: text[:at],
        lambda: text[:at] + bytes([random.randrange(256)]) + text[at + 1 :],
        lambda: text[:at] + b"\t" + text[at:],
        lambda: text[:at] + b"&a [*a]" + text[at:],
        lambda: b"extends: config.yaml\n" + text,
        lambda: b"extends: [none.yaml, 3, null]\n" + text,
        lambda: b"extends: /\n" + text,
        lambda: b"extends: {a: 1}\n" + text,
        lambda: b"!!python/object/apply:os.system ['true']\n",
        lambda: b"model: &m {a: *m}\n",
        lambda: b"[" * 2000,
        lambda: b"- " * 500 + b"x",
        lambda: text + text,
        lambda: text.replace(b": ", b":"),
        lambda: b"\xff\xfe" + text.decode().encode("utf-16-le"),
        lambda: b"",
        lambda: b"---\n---\n",
        lambda: b"3",
        lambda: b"training: 2001-01-01\nmodel: 12:30:00\n",
        lambda: b"? {a: b}\n: c\n",
        lambda: b"a: !!binary xxx\n",
        lambda: bytes(random.randrange(256) for _ in range(200)),
    )
    content = random.choice(forms)()
    command = random.choice(
        [["config", "show"], ["describe"], ["train"], ["plan", "--on", "cpu:2"]]
    )
    return Case([*command, "config.yaml"], {"config.yaml": content})


def _line(random: Random, where: Where) -> Case:
    """A command with arguments from anywhere."""
    commands = (
        *(
            ["status"],
            ["describe"],
            ["plan"],
            ["train"],
            ["eval"],
            ["generate"],
            ["export"],
            ["config", "show"],
        ),
        *(
            ["config", "schema"],
            ["data", "inspect"],
            ["data", "prepare"],
            ["import", "hf"],
            ["checkpoint", "list"],
        ),
        *(
            ["checkpoint", "verify"],
            ["checkpoint", "copy"],
            ["checkpoint", "prune"],
            ["import"],
            ["checkpoint"],
        ),
        *(
            ["data"],
            ["config"],
            ["nope"],
            ["--version"],
            ["--help"],
            ["dashboard", "none"],
            ["launch"],
        ),
    )
    words = (
        *(
            "config.yaml",
            "none.yaml",
            ".",
            "/",
            "",
            "run",
            "run/checkpoints",
            "--json",
            "--help",
            "-h",
            "--step",
            "-1",
        ),
        *(
            "--nope",
            "--",
            "-",
            "\u00e9",
            "a=b",
            "training.steps=1",
            "training.steps",
            "=",
            "..",
            "--run-dir",
            "x" * 3000,
        ),
        *(
            "--to",
            "hf",
            "stablehlo",
            "--step=3",
            "--prompt",
            "--text",
            "--from",
            "0",
            "1e9",
            "--on",
            "cpu:2",
            "/dev/null",
        ),
    )
    chosen = [random.choice(words) for _ in range(random.randrange(5))]
    files = {"config.yaml": yaml.safe_dump(tiny(where.store)).encode()}
    return Case([*random.choice(commands), *chosen], files)


def _launch(random: Random, where: Where) -> Case:
    """Launchers say what they would do (`--dry-run`), whatever they are asked."""
    target = random.choice(["local", "ssh", "tpu-vm", "slurm", "k8s", "nope"])
    names = {"tpu-vm": ["name"]}.get(target, [])
    case = _configured(
        random, where, ["launch", target, *names], mutations=random.choice([0, 0, 1])
    )
    options = (
        ["-n", _word(random)],
        ["--nodes", _word(random)],
        ["--hosts", random.choice(["hosts", "none", "config.yaml", "/"])],
        ["--zone", random.choice(["us-central2-b", "", "-x"])],
        ["--image", random.choice(["me/image:1", "", "a b"])],
        ["--accelerator", random.choice(["v5p-128", "", "x"])],
        ["--create"],
        ["--spot"],
        ["--queue", "q"],
        ["--nope"],
    )
    for option in random.sample(options, random.randrange(4)):
        case.arguments += option
    case.files["hosts"] = random.choice(
        [b"", b"node-0\nnode-1\n", b"user@node-0 slots=8\n", b"\xff\n", b"a b c\n"]
    )
    # Before the configuration's own arguments end, in case something would start.
    case.arguments.insert(2, "--dry-run")
    return case


def _configured(
    random: Random, where: Where, command: list[str], mutations: int | None = None
) -> Case:
    tree = tiny(where.store)
    for _ in range(random.choice([1, 1, 1, 2, 3]) if mutations is None else mutations):
        _mutate(random, tree)
    text = yaml.safe_dump(tree, allow_unicode=True)
    overrides = _overrides(random) if random.random() < 0.3 else []
    return Case(
        [*command, "config.yaml", *overrides],
        {"config.yaml": text.encode(errors="surrogateescape")},
    )


def _mutate(random: Random, tree: Tree) -> None:
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


def _overrides(random: Random) -> list[str]:
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


def _word(random: Random) -> str:
    return random.choice(
        ["0", "1", "2", "3", "8", "1024", "-1", "x", "", "1e3", "99999999999999999999", "2.5"]
    )


def _cluster_file(random: Random, where: Where) -> bytes:
    tree = yaml.safe_load(
        random.choice(sorted((where.root / "configs/clusters").glob("*.yaml"))).read_text()
    )
    for _ in range(random.choice([0, 1, 1, 2])):
        parent, key = random.choice(list(_places(tree)))
        parent[key] = _value(random)
    return yaml.safe_dump(tree, allow_unicode=True).encode(errors="replace")
