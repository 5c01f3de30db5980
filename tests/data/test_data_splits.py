from hypothesis import given
from hypothesis import strategies as st

from jaxscale.data.splits import cut_tail, split_text


def test_the_hash_holds_out_about_the_fraction() -> None:
    """Of 20,000 documents at 10 %, 2,000 are held out, give or take 5 sigma (212)."""
    held_out = sum("eval" in split_text(f"document {i}", 0.1, "hash") for i in range(20_000))
    assert abs(held_out - 2000) < 212


def test_raising_the_fraction_only_adds_to_what_is_held_out() -> None:
    texts = [f"document {i}" for i in range(500)]
    few, more = ({t for t in texts if "eval" in split_text(t, f, "hash")} for f in (0.1, 0.3))
    assert few < more


def test_the_tail_begins_at_a_paragraph() -> None:
    text = "\n\n".join(f"Paragraph {i} has\ntwo lines." for i in range(100))
    head, tail = cut_tail(text, 0.1)
    assert head + tail == text
    assert tail.startswith("Paragraph 90")
    assert head.endswith("\n\n")


def test_without_paragraphs_it_begins_at_a_line_or_a_word() -> None:
    assert cut_tail("\n".join("line" for _ in range(100)), 0.2)[1].startswith("line")
    assert cut_tail(" ".join("word" for _ in range(100)), 0.2)[1].startswith("word")
    assert cut_tail("x" * 100, 0.2) == ("x" * 100, "")


def test_a_far_paragraph_does_not_win_over_a_near_line() -> None:
    text = "title\n\n" + "\n".join("line" for _ in range(100))
    _, tail = cut_tail(text, 0.1)
    assert 0.05 * len(text) <= len(tail) <= 0.2 * len(text)


@given(text=st.text("ab \n"), fraction=st.floats(0.01, 0.99))
def test_nothing_is_lost_and_the_tail_is_between_half_and_twice(text: str, fraction: float) -> None:
    head, tail = cut_tail(text, fraction)
    assert head + tail == text
    # A border of two characters and rounding may move the cut by three characters.
    assert not tail or fraction / 2 * len(text) - 3 <= len(tail) <= 2 * fraction * len(text) + 3


def test_no_split_is_all_training() -> None:
    assert split_text("text", 0.0, "none") == {"train": "text"}
