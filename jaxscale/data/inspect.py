"""A batch as the model sees it, for eyes."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from jaxscale.data.packing import IGNORE, Batch
from jaxscale.data.tokenizers import Tokenizer

if TYPE_CHECKING:
    from rich.text import Text

BORDER = "\N{BOX DRAWINGS HEAVY VERTICAL}"
COLORS = ("cyan", "green", "yellow", "magenta")


def render_batch(
    batch: Batch, tokenizer: Tokenizer, max_rows: int = 4, *, origins: Sequence[object] = ()
) -> "Text":
    """The text of the first rows, for a Rich console; `.plain` of it is the string.

    Documents change color and are set apart by a bar with their segment number. What the model is
    not asked to continue is dim and in brackets; padding is counted; control characters are
    escaped. `origins`, one a row if any, say where the rows come from.
    """
    from rich.text import Text

    num_rows, length = batch["tokens"].shape
    text = Text()
    for row in range(min(num_rows, max_rows)):
        fields = {name: values[row] for name, values in batch.items()}
        text.append(_headline(row, fields), style="bold")
        if origins:
            origin = str(origins[row]).removeprefix(f"row {row}: ")
            text.append(f"from {origin}\n", style="dim")
        _render_row(text, fields, tokenizer)
        text.append("\n")
    if num_rows > max_rows:
        text.append(f"and {num_rows - max_rows} more rows of {length} tokens\n", style="dim")
    return text


def _headline(row: int, fields: dict[str, np.ndarray]) -> str:
    segments = fields["segment_ids"]
    return (
        f"row {row}: {np.count_nonzero(segments)} of {len(segments)} tokens, "
        f"documents: {segments.max()}, "
        f"targets: {np.count_nonzero(fields['targets'] != IGNORE)}\n"
    )


def _render_row(text: "Text", fields: dict[str, np.ndarray], tokenizer: Tokenizer) -> None:
    """Decodes tokens together that agree in document and mask: a character may span tokens."""
    marks = zip(fields["segment_ids"].tolist(), (fields["targets"] == IGNORE).tolist(), strict=True)
    place, shown = 0, 0
    for (segment, masked), run in groupby(marks):
        count = len(list(run))
        if segment not in (0, shown):
            text.append(f"{BORDER}{segment} ", style="bold red")
            shown = segment
        if segment == 0:
            text.append(f"{BORDER}padding x {count}", style="dim")
        else:
            written = escape(tokenizer.decode(fields["tokens"][place : place + count].tolist()))
            style = "dim" if masked else COLORS[segment % len(COLORS)]
            text.append(f"[{written}]" if masked else written, style=style)
        place += count
    text.append("\n")


def escape(text: str) -> str:
    """Printable characters as they are, all others as Python would write them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
