"""Tiny models of every family, and a batch of packed documents, for tests that train."""

from typing import Any

import numpy as np

from jaxscale.config.model_section import ModelSection
from jaxscale.config.run_sections import TrainingSection

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "max_positions": 16,
    "num_layers": 2,
    "embed_dim": 32,
    "num_heads": 8,
    "head_dim": 8,
    "mlp_dim": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama3": {"num_kv_heads": 8},
    "mistral": {"num_kv_heads": 8, "window": 5},
    "qwen2": {"num_kv_heads": 8},
    "qwen3": {"num_kv_heads": 8},
    "gemma2": {"num_kv_heads": 8, "window": 5},
    # One layer in three sees everything: two layers do not fill the pattern, five go beyond it.
    "gemma3": {"num_kv_heads": 8, "window": 5, "window_pattern": 3},
}


def tiny_model(family: str, **changes: Any) -> ModelSection:
    sizes = {**SIZES, **FAMILIES[family], **changes}
    if family == "gpt2":
        sizes.pop("head_dim")
    return ModelSection(family=family, **sizes)


def tiny_training(**changes: Any) -> TrainingSection:
    settings: dict[str, Any] = {"steps": 5, "global_batch": 16, "z_loss": 1e-3, "loss_chunk": 24}
    optimizer = {"learning_rate": 1e-2}
    return TrainingSection.model_validate({"optimizer": optimizer, **settings, **changes})


def packed_batch(step: int, rows: int = 16, length: int = 16) -> dict[str, np.ndarray]:
    """Two documents a row with a border that moves, padding behind them: an uneven number of valid targets a row."""
    random = np.random.default_rng(step)
    tokens = random.integers(1, 64, (rows, length + 1)).astype(np.int32)
    border = random.integers(3, length - 4, (rows, 1))
    end = random.integers(length - 4, length + 1, (rows, 1))
    place = np.arange(length, dtype=np.int32)[None]
    segments = np.where(place >= end, 0, np.where(place < border, 1, 2)).astype(np.int32)
    last = (place == border - 1) | (place >= end - 1)
    return {
        "tokens": np.where(segments > 0, tokens[:, :-1], 0).astype(np.int32),
        "targets": np.where(last, -1, tokens[:, 1:]).astype(np.int32),
        "segment_ids": segments,
        "positions": np.where(
            segments == 2, place - border, np.where(segments == 1, place, 0)
        ).astype(np.int32),
    }
