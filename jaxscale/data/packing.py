"""Windows of a token stream to the arrays a model trains on."""

import numpy as np
from jaxtyping import Int32, Int64

Batch = dict[str, Int32[np.ndarray, "rows sequence"]]
"""tokens, targets, segment_ids, positions: int32, [rows, sequence]."""

IGNORE = -1
"""Target of a token that has nothing to predict."""


def pack(
    windows: Int32[np.ndarray, "rows sequence+1"], lengths: Int64[np.ndarray, "rows"], eod_id: int
) -> Batch:
    """Inputs, targets and document borders of rows that hold `lengths` input tokens each.

    A window is a row's input tokens and the one that follows them. A target is the next token,
    IGNORE after an end of document (it belongs to the next one) and in padding. Segments count the
    documents of a row from 1, 0 is padding; the end-of-document token belongs to the document that
    it ends. Positions start at 0 in each piece of a document, also in one cut by the row's border.
    """
    tokens, following = windows[:, :-1], windows[:, 1:]
    column = np.arange(tokens.shape[1], dtype=np.int32)
    real = column < lengths[:, None]
    ends = real & (tokens == eod_id)
    starts = np.zeros_like(ends)
    starts[:, 1:] = ends[:, :-1]
    segments = 1 + np.cumsum(starts, axis=1, dtype=np.int32)
    first = np.maximum.accumulate(np.where(starts, column, 0), axis=1)
    return {
        "tokens": np.where(real, tokens, 0),
        "targets": np.where(real & ~ends, following, IGNORE),
        "segment_ids": np.where(real, segments, 0),
        "positions": np.where(real, column - first, 0),
    }
