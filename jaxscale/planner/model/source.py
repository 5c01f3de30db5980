"""The planner's view of a configured model: its sizes, and its parameters as its own description has them."""

from dataclasses import replace

from jaxscale.config.model_section import ModelSection
from jaxscale.errors import UserError
from jaxscale.models.architecture import Architecture
from jaxscale.models.build import model_builder
from jaxscale.models.description import Description, ParamSpec, blueprint
from jaxscale.models.families import resolve
from jaxscale.parallel.rules import DEFAULT_RULES
from jaxscale.planner.model.parameters import EMBED, ParameterGroup, Place, parameter_groups
from jaxscale.planner.model.shape import Experts, LatentAttention, ModelShape


def shape_of(section: ModelSection, name: str) -> ModelShape:
    """Sizes of a model of ours. Raises UserError for a model of the user's own: its layers are not known."""
    if section.build is not None:
        raise UserError(
            f"model.build: {section.build}: the planner lays out transformers described by family and sizes; give the "
            "plan of a module of your own by hand (plan.data, plan.fsdp, plan.tensor)"
        )
    shape = shape_of_architecture(resolve(section), name)
    return replace(shape, experts=_experts(section), latent=_latent(section))


def shape_of_architecture(arch: Architecture, name: str) -> ModelShape:
    return ModelShape(
        name=name,
        layers=arch.num_layers,
        embed=arch.embed_dim,
        heads=arch.num_heads,
        kv_heads=arch.num_kv_heads,
        head_dim=arch.head_dim,
        mlp=arch.mlp_dim,
        mlp_products=3 if arch.gated_mlp else 2,
        vocab=arch.vocab_size,
        tied=arch.tied_embeddings,
        positions=arch.max_positions if arch.positions == "learned" else 0,
        windows=tuple(kind.window for kind in arch.kinds),
    )


def groups_of(section: ModelSection) -> tuple[ParameterGroup, ...]:
    """One group a parameter of the module itself, split as the default rules split it.

    A model that cannot be built yet has the groups that its sizes say.
    """
    if section.planned_only:
        return parameter_groups(shape_of(section, ""))
    return groups_of_description(blueprint(model_builder(section)).description)


def groups_of_description(description: Description) -> tuple[ParameterGroup, ...]:
    return tuple(_group(path, spec) for path, spec in description.items())


def _experts(section: ModelSection) -> Experts | None:
    experts = section.experts
    if experts is None:
        return None
    return Experts(
        count=experts.count,
        per_token=experts.per_token,
        mlp=experts.mlp_dim,
        shared=experts.shared,
        dense_layers=experts.dense_layers,
        dense_mlp=(section.mlp_dim or 0) if experts.dense_layers else 0,
    )


def _latent(section: ModelSection) -> LatentAttention | None:
    latent = section.latent_attention
    if latent is None:
        return None
    return LatentAttention(
        query_rank=latent.query_rank,
        kv_rank=latent.kv_rank,
        nope_dim=latent.nope_dim,
        rope_dim=latent.rope_dim,
        value_dim=latent.value_dim,
    )


def _group(path: str, spec: ParamSpec) -> ParameterGroup:
    layers = spec.shape[spec.axes.index("layers")] if "layers" in spec.axes else 1
    split = [axis for name in spec.axes if name for axis in DEFAULT_RULES[name]]
    # Where the trainer splits over fsdp, axes that only the planner knows yet share the same dim.
    if "fsdp" in split:
        split += [axis for axis in EMBED if axis not in split]
    # The first dim of a stacked parameter is its layers'.
    is_vector = len(spec.shape) - ("layers" in spec.axes) < 2
    return ParameterGroup(
        path,
        spec.size // layers,
        tuple(split),
        _place(path, spec),
        layers,
        is_vector=is_vector,
    )


def _place(path: str, spec: ParamSpec) -> Place:
    if "layers" in spec.axes:
        return "layer"
    return "embedding" if "embed" in path or "position" in path else "head"
