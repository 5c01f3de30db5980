"""Mistral 7B (arXiv:2310.06825): v0.1 has a window of 4096 tokens in every layer; later releases say `window: 0`."""

from jaxscale.models.families.preset import Preset

MISTRAL = Preset(window=4096)
