"""Which tensor of a file is which of a name map, and what does not fit."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from jaxscale.errors import UserError
from jaxscale.interop.names import NameMap, Tensor


class Shaped(Protocol):
    """What is looked at of a stored tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...


Stored = TypeVar("Stored", bound=Shaped)

# Masks and tables that a program makes for itself, and older files carry.
_BUFFERS = re.compile(r"(\.attn\.(masked_)?bias|\.rotary_emb\.inv_freq)$")
# What of a model that sees is not its text model.
_SIGHT = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")
_SHOWN = 12


def match(names: NameMap, stored: Mapping[str, Stored], where: str) -> dict[str, Stored]:
    """The tensors by the name that the map has for them, which files may spell with another prefix.

    Raises UserError naming every tensor that is missing, not known, or of another shape.
    """
    spelled = spelling(names, stored)
    wanted = {tensor.name: tensor for tensor in names.tensors}
    found = {name: stored.get(spelled(name)) for name in wanted}
    unused = stored.keys() - {spelled(name) for name in wanted}
    extra = [name for name in stored if name in unused and not _is_left_out(name)]
    lines = list(_differences(wanted, found))
    lines += [f"  not known: {name} {list(stored[name].shape)}" for name in extra]
    if lines:
        raise UserError(_mismatch(where, lines))
    return {name: stored[spelled(name)] for name in wanted}


def spelling(names: NameMap, stored: Mapping[str, Shaped]) -> "Spelling":
    """How these files spell the map's names: as they are, without the base's prefix, or inside a model that sees."""
    first = names.tensors[0].name
    return next((s for s in _SPELLINGS if s(first) in stored), _SPELLINGS[0])


@dataclass(frozen=True)
class Spelling:
    """A prefix of the map's names that is another one in the files."""

    prefix: str = ""
    instead: str = ""
    before: str = ""

    def __call__(self, name: str) -> str:
        if self.prefix and name.startswith(self.prefix):
            return self.instead + name.removeprefix(self.prefix)
        return self.before + name


_SPELLINGS = (
    Spelling(),
    Spelling("model.", ""),
    Spelling("transformer.", ""),
    Spelling("model.", "model.language_model."),
    Spelling(before="language_model."),
)


def _is_left_out(name: str) -> bool:
    return bool(_BUFFERS.search(name) or _SIGHT.search(name))


def _differences(wanted: Mapping[str, Tensor], found: Mapping[str, Stored | None]) -> Iterator[str]:
    for name, tensor in wanted.items():
        stored = found[name]
        if stored is None:
            yield f"  missing: {name} {list(tensor.shape)}"
        elif stored.shape != tensor.shape:
            yield f"  {name} is {list(stored.shape)} in the files, {list(tensor.shape)} in the model"


def _mismatch(where: str, lines: Sequence[str]) -> str:
    more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    head = f"the tensors in {where} are not those of the model in its config.json ({len(lines)} differ):"
    return "\n".join([head, *lines[:_SHOWN], *more])
