"""Somebody else's model, open for reading: known and checked, nothing of it read yet; and its parameters as ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import NamedSharding

from jaxscale.checkpoint.store_arrays import in_boxes
from jaxscale.checkpoint.stored import Box
from jaxscale.config.model_section import ModelSection
from jaxscale.interop.names import NameMap, ReadNamed, read_ours
from jaxscale.models.description import Blueprint, Params


@dataclass(frozen=True)
class OpenModel:
    """What an import reads from.

    section: the model in our words.
    read_theirs: boxes of its tensors, by the names of `names`.
    tokenizer_files: reads its tokenizer's files, by name; `tokenizer.json` is the one that we use.
    facts: where it comes from, for whoever looks at the import later (plain JSON).
    notes: what of its configuration is left out.
    strip_elements: what is best read at once; None: all that is asked for.
    """

    section: ModelSection
    model: Blueprint
    names: NameMap
    read_theirs: ReadNamed
    tokenizer_files: Callable[[], Mapping[str, bytes]]
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())
    strip_elements: int | None = None

    def read(self, path: str, box: Box) -> np.ndarray[Any, Any]:
        """A box of a parameter of ours, in the dtype of the description.

        Raises UserError for values that are not numbers, and for files that end early.
        """
        dtype = self.model.description[path].dtype
        return read_ours(self.names, path, box, self.read_theirs, dtype, self.strip_elements)


def load_params(source: OpenModel, shardings: Mapping[str, NamedSharding]) -> Params:
    """All parameters in their places; each process reads what its own devices hold, box by box."""
    return {
        path: in_boxes(spec.shape, shardings[path], partial(source.read, path))
        for path, spec in source.model.description.items()
    }
