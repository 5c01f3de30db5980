"""The tokenizer of a run as Hugging Face reads it."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxscale.checkpoint.locate import TOKENIZER_FOLDER
from jaxscale.checkpoint.places import Place, copy_file, file_names
from jaxscale.data.tokenizers import BYTES, FILE_NAME, FileTokenizer, Tokenizer, load_tokenizer
from jaxscale.interop.journal import write_atomically

CONFIG_FILE = "tokenizer_config.json"
_END_OF_DOCUMENT = "<|endoftext|>"


@dataclass(frozen=True)
class RunTokenizer:
    """A run's tokenizer. folder: its files, None for bytes."""

    tokenizer: Tokenizer
    folder: Place | None


def find_tokenizer(run: Place | None, fingerprint: str | None) -> RunTokenizer | None:
    """The tokenizer that a checkpoint was trained with, from its run directory; None where it is not to be found.

    fingerprint: as the checkpoint notes it.
    """
    folder = None if run is None else run / TOKENIZER_FOLDER
    if folder is not None and folder.is_dir():
        return RunTokenizer(load_tokenizer(str(folder)), folder)
    of_bytes = load_tokenizer(BYTES)
    if fingerprint == of_bytes.fingerprint:
        return RunTokenizer(of_bytes, None)
    return None


def write_hf_tokenizer(found: RunTokenizer, out: Path, max_positions: int | None) -> None:
    """`tokenizer.json` and what goes with it. Files that came with an imported model are passed on as they are."""
    if found.folder is not None:
        for name in file_names(found.folder):
            copy_file(found.folder / name, out / name)
    if not (out / FILE_NAME).is_file():
        write_atomically(out / FILE_NAME, bytes_definition())
    if not (out / CONFIG_FILE).is_file():
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": _name(found.tokenizer, start_of_text(found.tokenizer)),
            "eos_token": _name(found.tokenizer, found.tokenizer.eod_id),
            "clean_up_tokenization_spaces": False,
            "model_max_length": max_positions,
        }
        write_atomically(out / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def start_of_text(tokenizer: Tokenizer) -> int:
    """The token before a text: the tokenizer's own, or the end of the document before."""
    return tokenizer.start_ids[0] if tokenizer.start_ids else tokenizer.eod_id


def _name(tokenizer: Tokenizer, id_: int) -> str:
    if isinstance(tokenizer, FileTokenizer):
        return str(tokenizer.engine.id_to_token(id_))
    return _END_OF_DOCUMENT


def bytes_definition() -> str:
    """A `tokenizer.json` whose ids are those of our bytes: 0 to 255, and 256 for the end of a document.

    Byte-level vocabularies write each byte as one printable character: GPT-2's table, which the library has in the
    order of characters, not of bytes.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    engine = Tokenizer(models.BPE(vocab={_printable(byte): byte for byte in range(256)}, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(_END_OF_DOCUMENT, special=True, normalized=False)])
    return str(engine.to_str(pretty=True))


def _printable(byte: int) -> str:
    """GPT-2's `bytes_to_unicode`: printable Latin-1 stays, the others follow 255 in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in visible:
        return chr(byte)
    hidden = [other for other in range(256) if other not in visible]
    return chr(256 + hidden.index(byte))
