from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from jaxscale.data.manifest import Manifest, Options, TokenizerRecord, write_manifest
from jaxscale.data.store import Store, StoreWriter

EOD = 0
StoreOf = Callable[[list[list[int]]], Store]


@pytest.fixture(scope="session")
def moby_dick() -> Path:
    return Path(__file__).parents[2] / "configs" / "text" / "moby-dick.txt"


@pytest.fixture(scope="session")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> StoreOf:
    """Makes a store of documents given as token ids (end of document, 0, is added)."""
    numbers = count()

    def make(documents: list[list[int]]) -> Store:
        folder = tmp_path_factory.mktemp("stores") / str(next(numbers)) / "train"
        folder.mkdir(parents=True)
        stream = np.array([x for document in documents for x in (*document, EOD)], np.uint32)
        ends = np.cumsum([len(document) + 1 for document in documents], dtype=np.int64)
        writer = StoreWriter(folder, len(stream), len(documents), vocab_size=1 << 20)
        writer.append(stream, ends)
        record = TokenizerRecord("tokenizer.json", "f" * 64, 1 << 20, EOD)
        write_manifest(
            folder,
            Manifest(
                split="train",
                split_by="none",
                num_documents=len(documents),
                num_tokens=len(stream),
                num_text_bytes=0,
                options=Options(),
                tokenizer=record,
                sources=(),
                checksums=writer.finish(),
            ),
        )
        return Store.open(folder)

    return make
