"""What lies beside exported programs: how to call them, and scripts that do, which import nothing but jax and numpy."""

from collections.abc import Iterable
from typing import Any

import jax
from jax import export as jax_export

_LOAD = '''\
"""{what}: python {file} TOKEN [TOKEN ...]. Needs jax and flatbuffers."""
import json, pathlib, sys
import jax, jax.export, numpy as np

here, params = pathlib.Path(__file__).resolve().parent, {{}}
names = {{"F32": "float32", "F16": "float16", "BF16": "bfloat16"}}
for file in here.glob("*.safetensors"):
    data = np.memmap(file, np.uint8, "r")
    first = 8 + int.from_bytes(data[:8].tobytes(), "little")
    for name, one in json.loads(data[8:first].tobytes()).items():
        if name != "__metadata__":
            begin, end = (first + offset for offset in one["data_offsets"])
            values = data[begin:end].view(jax.numpy.dtype(names[one["dtype"]]))
            params[name] = jax.numpy.asarray(values.reshape(one["shape"]))

tokens = np.array([[int(word) for word in sys.argv[1:]]], np.int32)
'''
_FORWARD = """\
program = jax.export.deserialize(bytearray((here / "forward.jax").read_bytes()))
logits = jax.jit(program.call)(params, tokens)
print("most likely next token:", int(logits[0, -1].argmax()))
"""
_DECODE = """\
program, count = jax.export.deserialize(bytearray((here / "decode.jax").read_bytes())), 16
step, cache = jax.jit(program.call, donate_argnums=(4, 5)), program.in_avals[-1]
layers, _, _, heads, width = cache.shape
shape, at = (layers, 1, tokens.shape[1] + count, heads, width), 0
key, value = jax.numpy.zeros(shape, cache.dtype), jax.numpy.zeros(shape, cache.dtype)
for _ in range(count):
    new = tokens.shape[1]
    positions, last = at + np.arange(new, dtype=np.int32)[None], np.array([new - 1], np.int32)
    logits, key, value = step(params, tokens, positions, last, key, value)
    at, tokens = at + new, np.asarray(logits.argmax(-1), np.int32)[:, None]
    print(tokens.item(), end=" ", flush=True)
"""
_README = """\
# {name} as StableHLO

Programs of `jax.export` for {platforms}, made with jax {version}; weights as safetensors, under the names in the tables
below. Nothing but `pip install jax flatbuffers` is needed:

```
{commands}
```

`exported = jax.export.deserialize(bytearray(open(FILE, "rb").read()))` gives a program; `jax.jit(exported.call)` runs
it on whatever jax runs on, `exported.mlir_module()` is its StableHLO as text, and `exported.mlir_module_serialized` the
portable bytecode that other compilers with a PJRT plugin take. Sizes with a name are symbolic: any will do{limits}.

## `forward.jax`: `(params, tokens) -> logits`

{forward}

`params` is a dictionary from name to array. A row's tokens are causal: what follows a token does not change its logits,
so rows of different lengths may be padded at the end.
{attention}
{decode}
## Parameters

{parameters}
"""
_DECODE_README = """
## `decode.jax`: `(params, tokens, positions, last, key, value) -> (logits, key, value)`

{signature}

One step of generation with a cache: first the prompt (`new` tokens at positions 0, 1, ...), then a token at a time.
`key` and `value` hold earlier tokens by position, so they begin as zeros of a `length` that fits prompt and
continuation, and each call's results are the next call's arguments (donate them). `positions` are those of the new
tokens in each row; pad a short row at the end with any tokens at the positions that follow: they are overwritten before
anything sees them. `last` is the place, among a row's new tokens, whose logits are wanted: that of its last token that
is not padding.
"""


def scripts(*, cached: bool) -> dict[str, str]:
    """Scripts by name: `run.py` runs the forward pass, `decode.py` continues with the cache."""
    load = {
        file: _LOAD.format(what=what, file=file)
        for file, what in (("run.py", "The next token"), ("decode.py", "Greedy continuation"))
    }
    found = {"run.py": load["run.py"] + _FORWARD}
    return found | {"decode.py": load["decode.py"] + _DECODE} if cached else found


def readme(
    name: str,
    *,
    forward: jax_export.Exported,
    decode: jax_export.Exported | None,
    limits: Iterable[str],
    sequence_length: int | None,
) -> str:
    """`README.md`: the calling convention. limits: of symbolic sizes."""
    limits = list(limits)
    params = _arguments(forward)[0]
    cached = decode is not None
    return _README.format(
        name=name,
        platforms=", ".join(forward.platforms),
        version=jax.__version__,
        commands="\n".join(f"python {file} 1 2 3" for file in scripts(cached=cached)),
        limits=f", within {', '.join(limits)}" if limits else "",
        forward=_signature(forward, ("tokens",), ("logits",)),
        attention=_attention(sequence_length),
        decode=_decode(decode),
        parameters=_table((path, aval) for path, aval in params.items()),
    )


def _attention(sequence_length: int | None) -> str:
    if sequence_length is None:
        return (
            "The length is symbolic, so attention forms all `sequence` x `sequence` scores of a layer at once: a\n"
            "loop over blocks of queries needs their number. For long rows export with `--sequence-length`."
        )
    return f"Rows have {sequence_length:,} tokens; attention goes over blocks of queries."


def _decode(decode: jax_export.Exported | None) -> str:
    if decode is None:
        return "\nThere is no decode step: the model is a module of its author's own, which keeps no cache.\n"
    names = ("tokens", "positions", "last", "key", "value")
    return _DECODE_README.format(signature=_signature(decode, names, ("logits", "key", "value")))


def _arguments(program: jax_export.Exported) -> tuple[Any, ...]:
    """Shapes of the positional arguments, in their structure."""
    arguments, _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    return tuple(arguments)


def _signature(
    program: jax_export.Exported, arguments: tuple[str, ...], results: tuple[str, ...]
) -> str:
    inward = zip(arguments, _arguments(program)[1:], strict=True)
    outward = zip(results, program.out_avals, strict=True)
    rows = [(name, aval) for name, aval in inward]
    return _table([*rows, *((f"-> {name}", aval) for name, aval in outward)])


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| `{name}` | {aval.dtype.name} | {_shape(aval)} |" for name, aval in rows]
    return "\n".join(["| | dtype | shape |", "|---|---|---|", *lines])


def _shape(aval: Any) -> str:
    return " x ".join(str(size) for size in aval.shape) or "scalar"
