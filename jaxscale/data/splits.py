"""Which text is for training and which is held out: decided by the text alone."""

import hashlib

TRAIN, EVAL = "train", "eval"
SPLITS = (TRAIN, EVAL)
BORDERS = ("\n\n", "\n", " ")
"""Where a text may be cut, best first: paragraphs, lines, words."""


def split_text(text: str, eval_fraction: float, split_by: str) -> dict[str, str]:
    """The part of a document that goes to each split.

    "hash" sends whole documents by their SHA-256, so that equal documents never land on both sides.
    "tail" cuts the end off every document, for corpora of so few documents that "hash" would leave
    a side empty. "none" holds nothing out.
    """
    if split_by == "hash":
        return {EVAL if _hash_fraction(text) < eval_fraction else TRAIN: text}
    if split_by == "tail":
        head, tail = cut_tail(text, eval_fraction)
        return {TRAIN: head, EVAL: tail} if tail.strip() and head.strip() else {TRAIN: text}
    return {TRAIN: text}


def cut_tail(text: str, fraction: float) -> tuple[str, str]:
    """Cuts off about `fraction` of the characters, after the nearest border of the best kind.

    The tail is between half and twice the fraction; it is empty if there is no border in there.
    """
    length = len(text)
    target = round(length * (1 - fraction))
    first = max(0, round(length * (1 - 2 * fraction)))
    last = round(length * (1 - fraction / 2))
    for border in BORDERS:
        before = text.rfind(border, first, target + len(border))
        after = text.find(border, target, last)
        cuts = [place + len(border) for place in (before, after) if place >= 0]
        if cuts:
            cut = min(cuts, key=lambda place: abs(place - target))
            return text[:cut], text[cut:]
    return text, ""


def _hash_fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / (1 << 48)
