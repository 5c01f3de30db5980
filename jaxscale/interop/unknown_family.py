"""The message for a model of a family that is not read: which one is nearest, and what differs."""

import re
from collections.abc import Collection, Mapping
from difflib import SequenceMatcher
from typing import Any

from jaxscale.errors import UserError
from jaxscale.interop.config_fields import IGNORED
from jaxscale.interop.families import FAMILIES
from jaxscale.interop.family import HfFamily

_SHOWN = 6


def unknown_family(config: Mapping[str, Any], name: str, tensors: Collection[str]) -> UserError:
    """The error for a configuration whose model_type no family has; `tensors` are the names in its files."""
    kind, patterns = str(config.get("model_type")), {_pattern(tensor) for tensor in tensors}
    family = max(FAMILIES, key=lambda one: _likeness(one, kind, config, patterns))
    known, near = ", ".join(one.model_type for one in FAMILIES), family.model_type
    said = (
        f"model_type {kind!r} is not one"
        if config.get("model_type")
        else "it has no model_type, one of those"
    )
    head = f"{name}: {said} that jaxscale reads ({known}). Nearest: {near}. What differs:"
    advice = f"If it computes what {near} computes, say model_type: {near} in its configuration."
    return UserError("\n".join([head, *_differences(family, config, patterns), advice]))


def _likeness(
    family: HfFamily, kind: str, config: Mapping[str, Any], patterns: Collection[str]
) -> tuple[float, float]:
    names = {entry.name for entry in family.names}
    keys = {*family.keys.values(), *family.fixed, *family.unused}
    shared = len(names & set(patterns)) + len(keys & config.keys())
    return shared, SequenceMatcher(None, kind, family.model_type).ratio()


def _differences(
    family: HfFamily, config: Mapping[str, Any], patterns: Collection[str]
) -> list[str]:
    known = {*family.keys.values(), *family.fixed, *family.unused, *family.dropouts, *IGNORED}
    known |= {"rope_theta", "rope_scaling", "rope_parameters", "sliding_window", "layer_types"}
    names = {entry.name for entry in family.names}
    keys = [f"{key}={value!r:.40}" for key, value in config.items() if key not in known]
    lists = {
        "keys of its own": keys,
        "tensors of its own": sorted(set(patterns) - names),
        "tensors it lacks": sorted(names - set(patterns) - _optional(names)) if patterns else [],
    }
    found = [f"  {title}: {_short(items)}" for title, items in lists.items() if items]
    return found or ["  nothing but the name"]


def _optional(names: Collection[str]) -> set[str]:
    """Biases, norms of heads and an untied head: members of a family may lack them."""
    return {
        one for one in names if one.startswith("lm_head") or "_norm." in one or "_proj.bias" in one
    }


def _pattern(tensor: str) -> str:
    return re.sub(r"\.\d+\.", ".{layer}.", tensor, count=1)


def _short(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
