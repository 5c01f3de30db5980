"""Rotary positions and windows as `config.json` spells them, in its older and its newer form."""

from collections.abc import Mapping
from typing import Any

from jaxscale.errors import UserError
from jaxscale.interop.config_fields import Fields
from jaxscale.models.architecture import Architecture, RopeScaling

FULL, SLIDING = "full_attention", "sliding_attention"
# rope_parameters (transformers 5) holds what rope_theta and rope_scaling held before.
_LLAMA3 = {
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original_positions": "original_max_position_embeddings",
}


def read_rope(fields: Fields, base: float) -> tuple[float, RopeScaling | None]:
    """Base and stretching where all layers share them; `base` where none is given."""
    theta = fields.number("rope_theta", base)
    new, old = fields.mapping("rope_parameters"), fields.mapping("rope_scaling")
    if new and old and new != old:
        raise UserError(f"{fields.name}: rope_parameters {new} and rope_scaling {old} contradict")
    return _parsed(fields.name, new or old, theta or base)


def read_two_ropes(
    fields: Fields, base: float, local_base: float
) -> tuple[float, RopeScaling | None, float]:
    """Gemma 3: base and stretching of layers that see everything, and the base of those with a window."""
    theta = fields.number("rope_theta", base) or base
    local_theta = fields.number("rope_local_base_freq", local_base) or local_base
    old, new = fields.mapping("rope_scaling"), fields.mapping("rope_parameters")
    if set(new) - {FULL, SLIDING}:
        raise UserError(f"{fields.name}: rope_parameters has to say {FULL} and {SLIDING}: {new}")
    base, scaling = _parsed(fields.name, new.get(FULL) or old, theta)
    local_base, local_scaling = _parsed(fields.name, new.get(SLIDING) or {}, local_theta)
    if local_scaling is not None:
        raise UserError(f"{fields.name}: stretched rotary positions in layers with a window")
    return base, scaling, local_base


def write_rope(arch: Architecture) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`: the form that both old and new readers understand."""
    return {"rope_theta": arch.rope_base, "rope_scaling": _written(arch.rope_scaling)}


def read_windows(
    fields: Fields, window: int | None, usual: list[str]
) -> tuple[int | None, int | None]:
    """The window and window_pattern of ours, from `layer_types`; `usual` is what it is where it is left out.

    Raises UserError for windows that do not follow "every n-th layer sees everything".
    """
    kinds = fields.take("layer_types")
    kinds = usual if kinds is None else kinds
    if not isinstance(kinds, list) or len(kinds) != len(usual) or set(kinds) - {FULL, SLIDING}:
        raise UserError(
            f"{fields.name}: layer_types must say {FULL} or {SLIDING} for each of {len(usual)} layers, not {kinds!r}"
        )
    if window is None or SLIDING not in kinds:
        return None, None
    if FULL not in kinds:
        return window, None
    pattern = kinds.index(FULL) + 1
    if kinds != layer_types(len(kinds), pattern):
        raise UserError(
            f"{fields.name}: layer_types does not follow 'every n-th layer sees everything', the one pattern that "
            f"jaxscale has: {kinds}"
        )
    return window, pattern


def layer_types(num_layers: int, pattern: int) -> list[str]:
    return [SLIDING if (layer + 1) % pattern else FULL for layer in range(num_layers)]


def write_layer_types(arch: Architecture) -> list[str]:
    """What every layer sees, by its number."""
    kinds = (arch.kind(layer) for layer in range(arch.num_layers))
    return [FULL if kind.window is None else SLIDING for kind in kinds]


def _parsed(name: str, rope: Mapping[str, Any], base: float) -> tuple[float, RopeScaling | None]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = float(rope.get("rope_theta", base))
    common = {"rope_type", "type", "rope_theta"}
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(
            f"{name}: partial_rotary_factor {rope['partial_rotary_factor']}: heads are rotated whole here"
        )
    match kind:
        case "default":
            _only(name, rope, common)
            return base, None
        case "linear":
            _only(name, rope, {*common, "factor"})
            return base, RopeScaling(_number(name, rope, "factor"))
        case "llama3":
            _only(name, rope, {*common, "factor", *_LLAMA3.values()})
            given = {ours: _number(name, rope, theirs) for ours, theirs in _LLAMA3.items()}
            original = int(given.pop("original_positions"))
            factor = _number(name, rope, "factor")
            return base, RopeScaling(factor, **given, original_positions=original)
    raise UserError(
        f"{name}: rotary positions of type {kind!r} cannot be represented; jaxscale has default, linear and llama3"
    )


def _number(name: str, rope: Mapping[str, Any], key: str) -> float:
    value = rope.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise UserError(f"{name}: rotary positions need {key}, a number, not {value!r}")
    return float(value)


def _only(name: str, rope: Mapping[str, Any], known: set[str]) -> None:
    unknown = {key: rope[key] for key in rope if key not in known | {"partial_rotary_factor"}}
    if unknown:
        raise UserError(f"{name}: rotary positions with {unknown}, which jaxscale cannot represent")


def _written(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if scaling.original_positions is None:
        return {"rope_type": "linear", "factor": scaling.factor}
    llama3 = {theirs: getattr(scaling, ours) for ours, theirs in _LLAMA3.items()}
    return {"rope_type": "llama3", "factor": scaling.factor, **llama3}


def single_rope(fields: Fields, base: float, window: int | None) -> dict[str, Any]:
    """rope_base, rope_local_base and rope_scaling of ours, where all layers share one rotation."""
    base, scaling = read_rope(fields, base)
    if scaling is not None and window is not None:
        raise UserError(
            f"{fields.name}: stretched rotary positions together with windows of {window} tokens: jaxscale stretches "
            "only layers without a window"
        )
    return {"rope_base": base, "rope_local_base": base, "rope_scaling": scaling}
