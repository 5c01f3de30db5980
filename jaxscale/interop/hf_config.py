"""`config.json` of Hugging Face as our `model:` section, and back."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from jaxscale.config.model_section import REQUIRED_SIZES, Family, ModelSection
from jaxscale.errors import UserError
from jaxscale.interop.config_fields import Fields
from jaxscale.interop.families import FAMILIES
from jaxscale.interop.families.gemma import GEMMA3
from jaxscale.interop.family import HfFamily
from jaxscale.interop.unknown_family import unknown_family
from jaxscale.models.architecture import Architecture, RopeScaling
from jaxscale.models.families import PRESETS, resolve

# Keys of the section beyond its sizes, all of which an architecture has under the same name.
_OPTIONAL = (
    "num_kv_heads",
    "head_dim",
    "mlp_dim",
    "tied_embeddings",
    "norm_epsilon",
    "rope_base",
    "rope_local_base",
    "rope_scaling",
    "window",
    "window_pattern",
    "attention_softcap",
    "logit_softcap",
    "query_scale",
    "qkv_bias",
    "qk_norm",
)
_SWITCHES = ("window", "window_pattern", "attention_softcap", "logit_softcap")


@dataclass(frozen=True)
class FromHf:
    """notes: what of the configuration was left out because it does not change what the model computes."""

    section: ModelSection
    family: HfFamily
    notes: tuple[str, ...]


def from_hf_config(
    config: Mapping[str, Any],
    name: str = "config.json",
    *,
    tensors: Collection[str] = (),
    ignore: Collection[str] = (),
) -> FromHf:
    """The section of a configuration; `name` stands for its file in messages.

    tensors: names in the files, which tell an unknown family's nearest. ignore: keys to pass over.
    Raises UserError for an unknown family, and for every key that would change the model and cannot be represented.
    """
    _refuse_quantized(config, name)
    config, notes = _text_part(config)
    family = next((one for one in FAMILIES if one.model_type == config.get("model_type")), None)
    if family is None:
        raise unknown_family(config, name, tensors)
    known = Fields(name, {key: value for key, value in config.items() if key not in ignore})
    arch = _architecture(family, known)
    for key, allowed in family.fixed.items():
        known.require(key, allowed)
    notes += [
        f"{key} {known.values[key]} is not used: jaxscale has no dropout"
        for key in family.dropouts
        if known.take(key)
    ]
    known.refuse_unknown(family.unused)
    return FromHf(section_of(arch, family.ours), family, tuple(notes))


def to_hf_config(section: ModelSection) -> tuple[HfFamily, dict[str, Any]]:
    """The family that computes what a section says, and its `config.json`, without dtype and token ids.

    Raises UserError where no family does, with what the section's own family would change.
    """
    if section.build is not None or section.planned_only:
        raise UserError("only models of a family can be written as a Hugging Face model")
    arch = resolve(section)
    own = [family for family in FAMILIES if arch.family in family.ours]
    lost = {family: _lost(family, arch) for family in own}
    others = (family for family in FAMILIES if family not in own and not _lost(family, arch))
    found = next((family for family in own if not lost[family]), None) or next(others, None)
    if found is None:
        raise UserError(
            f"no Hugging Face family computes this model: {own[0].architecture} differs in {'; '.join(lost[own[0]])}. "
            f"Leave out what the family {arch.family} does not have, or export to StableHLO"
        )
    return found, _config(found, arch)


def section_of(arch: Architecture, families: Collection[Family]) -> ModelSection:
    """The section with the fewest keys that means this architecture, in one of these families.

    Raises UserError if none of them does.
    """
    found = [section for family in families for section in _shortest(arch, family)]
    if not found:
        raise UserError(
            f"the model fits none of {', '.join(families)}: rotary scaling {arch.rope_scaling}, window {arch.window}"
        )
    return min(found, key=lambda section: len(section.model_fields_set))


def meaning(arch: Architecture) -> dict[str, Any]:
    """What an architecture computes, however it is spelled: windows and rotations are those of each layer."""
    spelled = {"family", "window", "window_pattern", "rope_base", "rope_local_base", "rope_scaling"}
    names = [field.name for field in fields(arch) if field.name not in spelled]
    layers = {f"layer {layer}": arch.kind(layer) for layer in range(arch.num_layers)}
    return {name: getattr(arch, name) for name in names} | layers


def _shortest(arch: Architecture, family: Family) -> list[ModelSection]:
    """One section, or none where the family's own values cannot be switched off."""
    required = {"family": family, **{name: getattr(arch, name) for name in REQUIRED_SIZES}}
    keys = {name: _spelled(arch, name) for name in _OPTIONAL}
    keys = {name: value for name, value in keys.items() if value is not None}
    if not _means(required | keys, arch):
        return []
    for name in list(keys):
        without = {other: value for other, value in keys.items() if other != name}
        keys = without if _means(required | without, arch) else keys
    return [ModelSection.model_validate(required | keys)]


def _spelled(arch: Architecture, name: str) -> Any:
    value = getattr(arch, name)
    if isinstance(value, RopeScaling):
        return {key: number for key, number in asdict(value).items() if number is not None}
    return value or 0 if name in _SWITCHES else value


def _means(section: Mapping[str, Any], arch: Architecture) -> bool:
    try:
        return meaning(resolve(ModelSection.model_validate(section))) == meaning(arch)
    except UserError:
        return False  # A size that was left out does not follow from the others.


def _architecture(family: HfFamily, config: Fields) -> Architecture:
    preset = asdict(PRESETS[family.ours[0]])
    del preset["mlp_ratio"]
    sizes = {ours: _value(config, family, ours, key) for ours, key in family.keys.items()}
    sizes |= _followed(sizes, config.name)
    values = preset | {"query_scale": float(sizes["head_dim"])} | sizes
    values |= family.read(config, sizes)
    values["rope_local_base"] = values["rope_local_base"] or values["rope_base"]
    return Architecture(family=family.ours[0], **values)


def _value(config: Fields, family: HfFamily, ours: str, key: str) -> Any:
    default = family.defaults[key]
    if ours == "tied_embeddings":
        return config.flag(key, default)
    if ours == "norm_epsilon":
        return config.number(key, default)
    return config.size(key, default)


def _followed(sizes: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Sizes that were left out and follow from others."""
    width, heads = sizes["embed_dim"], sizes["num_heads"]
    if sizes.get("head_dim") is None and width % heads:
        raise UserError(
            f"{name}: width {width} does not divide over {heads} heads, and there is no head_dim"
        )
    followed = {"num_kv_heads": heads, "head_dim": width // heads, "mlp_dim": 4 * width}
    return {key: value for key, value in followed.items() if sizes.get(key) is None}


def _config(family: HfFamily, arch: Architecture) -> dict[str, Any]:
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{theirs: getattr(arch, ours) for ours, theirs in family.keys.items()},
        **{key: allowed[0] for key, allowed in family.fixed.items()},
        **family.write(arch),
    }


def _lost(family: HfFamily, arch: Architecture) -> list[str]:
    """What would differ if a family's configuration were written and read again."""
    try:
        back = meaning(_architecture(family, Fields("config.json", _config(family, arch))))
    except UserError as error:
        return [str(error)]
    return [
        f"{key}: {back[key]} for {value}"
        for key, value in meaning(arch).items()
        if back[key] != value
    ]


def _refuse_quantized(config: Mapping[str, Any], name: str) -> None:
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else "?"
        raise UserError(
            f"{name}: the weights are quantized ({method}): import the checkpoint in bfloat16 or float32"
        )


def _text_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """The text model of one that also sees: Gemma 3 from 4B on is published so."""
    if config.get("model_type") != "gemma3" or not isinstance(config.get("text_config"), dict):
        return config, []
    text = {**config["text_config"], "model_type": GEMMA3.model_type}
    return text, ["only the text model is imported, without what sees images"]
