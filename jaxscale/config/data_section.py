"""Where the text comes from and how it becomes batches."""

from typing import Any

from pydantic import Field, field_validator

from jaxscale.config.limits import LARGEST_COUNT, MOST_AT_ONCE
from jaxscale.config.section import Section


class Source(Section):
    """One source of text, or one prepared token store, of a mixture."""

    path: str = Field(description="file, directory, glob or token store; local, gs:// or s3://")
    weight: float = Field(1.0, gt=0, description="share of the rows, relative to the other sources")


class DataSection(Section):
    """Text sources, tokenizer, and the shape of a row."""

    train: list[Source] = Field(
        [], description="sources: a path, a list of paths, or a list of {path, weight}"
    )
    eval: str | None = Field(
        None, description="source of the evaluation set (default: eval_fraction of train)"
    )
    eval_fraction: float = Field(
        0.01, ge=0, lt=1, description="share of each source held out for evaluation"
    )
    tokenizer: str = Field(
        "bytes", description="bytes, train, or a tokenizer.json file or its directory"
    )
    tokenizer_vocab_size: int = Field(8192, ge=257, description="tokens, where tokenizer is train")
    sequence_length: int = Field(512, ge=2, le=LARGEST_COUNT, description="tokens in a row")
    text_key: str = Field(
        "text", description="field of a JSON line or Parquet column that holds the text"
    )
    document_separator: str | None = Field(
        None, description="string between documents inside a .txt file"
    )
    store: str = Field("runs/stores", description="directory for prepared token stores")
    workers: int = Field(2, ge=1, le=MOST_AT_ONCE, description="processes that prepare data")
    threads: int = Field(2, ge=1, le=MOST_AT_ONCE, description="threads that read batches")
    prefetch: int = Field(4, ge=1, le=MOST_AT_ONCE, description="batches read ahead of the device")

    @field_validator("train", mode="before")
    @classmethod
    def _accept_paths(cls, value: Any) -> Any:
        items = value if isinstance(value, list) else [value]
        return [{"path": item} if isinstance(item, str) else item for item in items]
