"""What the fuzzer tries: configurations that are nearly right, files that are hardly YAML, lines full of mistakes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import yaml
from fuzz_mutations import Tree, cluster_file, mutate, overrides, word
from fuzz_values import CLUSTERS


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
        case.arguments += random.choice([["--json"], ["--sequence-length", word(random)]])
    return case


def _plan(random: Random, where: Where) -> Case:
    if random.random() < 0.4:
        model = random.choice(sorted((where.root / "configs/models").glob("*.yaml")))
        case = Case(["plan", str(model), *overrides(random)])
    else:
        case = _configured(random, where, ["plan"])
    case.arguments += ["--on", random.choice(CLUSTERS[:9] if random.random() < 0.7 else CLUSTERS)]
    case.files["cluster.yaml"] = cluster_file(random, where.root)
    options = (
        ["--json"],
        ["--batch", word(random)],
        ["--seq", word(random)],
        ["--top", word(random)],
        ["--show", word(random)],
        ["--formulas"],
        ["--executable"],
        [
            "--pin",
            random.choice(
                ["tensor<=8", "fsdp=64", "tensor=3", "remat=full", "x=1", "fsdp", "=", "data>=0"]
            ),
        ],
        ["--why", random.choice(["1", "2", "0", "fsdp=2", "x", ""])],
        ["--devices", word(random)],
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


COMMANDS = (
    *("status", "describe", "plan", "train", "eval", "generate", "export", "config show"),
    *("config schema", "data inspect", "data prepare", "import hf", "checkpoint list"),
    *("checkpoint verify", "checkpoint copy", "checkpoint prune", "import", "checkpoint"),
    *("data", "config", "nope", "--version", "--help", "dashboard none", "launch"),
)
WORDS = (
    *("config.yaml", "none.yaml", ".", "/", "", "run", "run/checkpoints", "--json", "--help"),
    *("-h", "--step", "-1", "--nope", "--", "-", "\u00e9", "a=b", "training.steps=1"),
    *("training.steps", "=", "..", "--run-dir", "x" * 3000, "--to", "hf", "stablehlo"),
    *("--step=3", "--prompt", "--text", "--from", "0", "1e9", "--on", "cpu:2", "/dev/null"),
)


def _line(random: Random, where: Where) -> Case:
    """A command with arguments from anywhere."""
    chosen = [random.choice(WORDS) for _ in range(random.randrange(5))]
    files = {"config.yaml": yaml.safe_dump(tiny(where.store)).encode()}
    return Case([*random.choice(COMMANDS).split(), *chosen], files)


def _launch(random: Random, where: Where) -> Case:
    """Launchers say what they would do (`--dry-run`), whatever they are asked."""
    target = random.choice(["local", "ssh", "tpu-vm", "slurm", "k8s", "nope"])
    names = {"tpu-vm": ["name"]}.get(target, [])
    case = _configured(
        random, where, ["launch", target, *names], mutations=random.choice([0, 0, 1])
    )
    options = (
        ["-n", word(random)],
        ["--nodes", word(random)],
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
        mutate(random, tree)
    text = yaml.safe_dump(tree, allow_unicode=True)
    given = overrides(random) if random.random() < 0.3 else []
    return Case(
        [*command, "config.yaml", *given],
        {"config.yaml": text.encode(errors="surrogateescape")},
    )
