"""`jaxscale generate` says what the model says: cached or not, on any mesh, alone or in a batch, whole or in pieces."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
import pytest
from cli_cases import call, succeed
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers

from jaxscale.data.tokenizers import ByteTokenizer, load_tokenizer
from jaxscale.models.description import bind
from jaxscale.models.generation import stream
from jaxscale.models.sampling import Sampling
from jaxscale.training.sampling import sample_text, stream_text
from jaxscale.training.trained import load_trained

PROMPTS = ("The whale ", "a", "Call me Ishmael. S")
GREEDY = ("--temperature", "0", "--tokens", "12")
ONE_DEVICE = "plan.data=1"
DRAWN = ("--tokens", "24", "--temperature", "1.2")


def generate(run: Path, *arguments: str, prompts: tuple[str, ...] = PROMPTS[:1]) -> str:
    asked = [part for prompt in prompts for part in ("--prompt", prompt)]
    return succeed("generate", run, *asked, ONE_DEVICE, *arguments)


def by_hand(run: Path, prompt: str, num_tokens: int) -> str:
    """The most likely token of a whole forward pass, again and again, without a cache."""
    trained = load_trained(run, [ONE_DEVICE], warn=print)
    model = bind(trained.model, trained.params)
    forward = jax.jit(model.__call__)
    tokens = list(prompt.encode())
    for _ in range(num_tokens):
        padded = np.zeros((1, 48), np.int32)  # Causal: what follows the text does not matter.
        padded[0, : len(tokens)] = tokens
        tokens.append(int(np.argmax(forward(padded)[0, len(tokens) - 1])))
    return bytes(tokens).decode(errors="replace") + "\n"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_argmax_of_the_full_pass(trained: Path, prompt: str) -> None:
    text = generate(trained, *GREEDY, prompts=(prompt,))
    assert text == by_hand(trained, prompt, 12)
    assert len(set(text.removeprefix(prompt))) > 3  # Not one letter again and again.


@pytest.mark.parametrize(
    "mesh",
    [(), ("plan.tensor=2",), ("plan.fsdp=2",), ("plan.tensor=2", "plan.fsdp=2")],
)
def test_any_mesh_says_the_same(trained: Path, mesh: tuple[str, ...]) -> None:
    """No mesh asked for: all eight devices."""
    there = succeed("generate", trained, "--prompt", PROMPTS[0], *GREEDY, *mesh)
    assert there == generate(trained, *GREEDY)


def test_a_batch_says_what_each_prompt_says_alone(trained: Path) -> None:
    alone = [generate(trained, *GREEDY, prompts=(prompt,)) for prompt in PROMPTS]
    assert generate(trained, *GREEDY, prompts=PROMPTS) == "\n".join(alone)


def test_a_seed_repeats_its_text_and_another_seed_does_not(trained: Path) -> None:
    first = generate(trained, *DRAWN, "--seed", "1")
    assert generate(trained, *DRAWN, "--seed", "1") == first
    assert generate(trained, *DRAWN, "--seed", "2") != first


def test_the_likeliest_token_alone_is_greedy(trained: Path) -> None:
    greedy = generate(trained, "--temperature", "0", "--tokens", "24")
    assert generate(trained, *DRAWN, "--top-k", "1") == greedy
    assert generate(trained, *DRAWN, "--top-p", "1e-6") == greedy
    assert generate(trained, *DRAWN) != greedy


def test_without_a_number_of_tokens_all_positions_are_used(trained: Path) -> None:
    text = generate(trained, "--temperature", "0")
    assert text == generate(trained, "--temperature", "0", "--tokens", "38")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompt", "four", "--tokens", "45"), "at most 44 new tokens"),
        (("--prompt", "x" * 48), "over max_positions 48"),
        (("--tokens", "0"), "max_new_tokens 0"),
        (("--temperature", "-1"), "temperature -1.0: use 0 for greedy"),
        (("--temperature", "nan"), "nan is not a finite number"),
        (("--top-p", "0"), "top_p 0.0 is not in (0, 1]"),
        (("--top-p", "1.5"), "top_p 1.5 is not in (0, 1]"),
        (("--top-k", "0"), "top_k 0 keeps no token"),
        (("--seed", "-1"), "'--seed'"),
        (("--step", "7"), "no checkpoint 7"),
        (("--prompt", "\udcff"), "is not text"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_anything_is_printed(
    trained: Path, arguments: tuple[str, ...], message: str
) -> None:
    answer = call("generate", trained, ONE_DEVICE, *arguments)
    assert (answer.status, answer.out) == (2, "")
    assert message in answer.err


class Watched(io.StringIO):
    """Remembers how many tokens had been drawn at each write."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn, self.seen = 0, list[int]()

    def write(self, text: str) -> int:
        self.seen += [self.drawn] if text else []
        return super().write(text)

    def watch(self, frame: FrameType, event: str, _: object) -> None:
        self.drawn += event == "call" and frame.f_code is stream.__code__


def test_each_token_is_printed_before_the_next_is_drawn(trained: Path) -> None:
    out, prompt = Watched(), PROMPTS[0]
    sys.setprofile(out.watch)
    try:
        call("generate", trained, "--prompt", prompt, *GREEDY, ONE_DEVICE, out=out)
    finally:
        sys.setprofile(None)
    assert out.getvalue().isascii()  # So that each token is a character, and a piece.
    assert out.seen[:12] == list(range(1, 13))


def test_a_tokenizer_that_hides_leading_spaces_keeps_words_apart(tmp_path: Path) -> None:
    """Decoded alone, "▁a ▁whale" is "a whale": the space behind the prompt would be lost."""
    engine = Engine(models.WordLevel({"▁so": 0, "▁a": 1, "▁whale": 2, "</s>": 3}, unk_token="</s>"))
    engine.pre_tokenizer, engine.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.decode([1, 2]) == "a whale"

    def sampler(*_: Any) -> Iterator[list[list[int]]]:
        yield from ([[1]], [[2]])

    settings: dict[str, Any] = {"num_tokens": 2, "sampling": Sampling(), "seed": 0}
    assert sample_text(sampler, tokenizer, {}, ["so"], **settings) == ["so a whale"]
    assert list(stream_text(sampler, tokenizer, {}, "so", **settings)) == [" a", " whale"]


WHALES = "a \N{LATIN SMALL LETTER E WITH ACUTE} \u9be8\N{SPOUTING WHALE}!"


def pieces_of(text: bytes) -> tuple[list[str], list[int], str]:
    """A model that says these bytes: the pieces of its stream, the tokens drawn before each, and all at once."""
    drawn: list[int] = []

    def sampler(_: Any, prompts: Any, *others: Any) -> Iterator[list[list[int]]]:
        for number, byte in enumerate(text, start=1):
            drawn[:] = [number]
            yield [[byte]]

    settings: dict[str, Any] = {"num_tokens": 99, "sampling": Sampling(), "seed": 0}
    pieces, ready = [], []
    for piece in stream_text(sampler, ByteTokenizer(), {}, "so ", **settings):
        pieces.append(piece)
        ready.append(drawn[0])
    (whole,) = sample_text(sampler, ByteTokenizer(), {}, ["so "], **settings)
    return pieces, ready, whole


def test_pieces_come_as_soon_as_their_characters_are_whole() -> None:
    """Characters of 1, 2, 3 and 4 bytes, and the number of tokens that each had to wait for."""
    pieces, ready, whole = pieces_of(WHALES.encode())
    assert pieces == list(WHALES)
    assert ready == [1, 2, 4, 5, 8, 12, 13]
    assert whole == "so " + WHALES


@pytest.mark.parametrize("text", [WHALES.encode()[:-3], b"\xff\xfeab\xe9", b"\xf0\x9f\x90", b""])
def test_pieces_of_broken_text_add_up_to_the_whole(text: bytes) -> None:
    pieces, _, whole = pieces_of(text)
    assert "so " + "".join(pieces) == whole == "so " + text.decode(errors="replace")
