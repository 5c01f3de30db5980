"""What each size of variants.py is run with. Imports nothing that a bare machine lacks: run.py starts with it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Defaults:
    """Variants to search, by semicolons: the likely best first, since a short run comes to few; fewer rows last."""

    ours: str
    torch: str


_TORCH = "rows=8,chunk=0;rows=8,chunk=0,attention=cudnn;rows=4,chunk=0"
# Of an H200's 139 GiB. 8b-layers: 2.27 billion parameters of 12 bytes are 25.4 GiB. With activations ours compiles to
# 66.8 GiB at 8 rows with its layers unrolled, 107.2 without, 61.9 with remat=dots, 70.6 at 4 rows (ahead.py). Torch's,
# by arithmetic at 8 rows: gradients 8.5, narrow weights 4.2, 132 KiB a token and layer are 33, and logits of 32,768
# tokens 8 (bfloat16) and 16 (fp32), their gradients as much: 25.4 + 8.5 + 4.2 + 33 + 48 = 119 at most.
SIZES = {
    "1b": Defaults("rows=8;rows=8,unroll=16;rows=4;rows=8,remat=dots", _TORCH),
    "1b-128": Defaults("rows=8,unroll=16;rows=8;rows=8,remat=dots;rows=4", _TORCH),
    "8b-layers": Defaults(
        "rows=8,unroll=8;rows=8;rows=8,remat=dots;rows=4",
        "rows=8,chunk=0;rows=8,chunk=4096;rows=8,chunk=0,attention=cudnn",
    ),
}
# The variant with the least memory of each contender: each layer is computed again, logits are formed in chunks.
# Torch's are larger, as torch.compile makes a piece of program of each.
LEAN = {"jaxscale": "remat=full,chunk=1024", "torch": "remat=full,chunk=4096"}
# Rows at which the search for the most begins. Ours at 64: 54.1 GiB of 1b, 86.3 of 8b-layers (ahead.py).
FIRST_ROWS = 64
