"""Llama 2 (arXiv:2307.09288), Llama 3, 3.1 (arXiv:2407.21783) and the small text models of 3.2."""

from dataclasses import replace

from jaxscale.models.architecture import RopeScaling
from jaxscale.models.families.preset import Preset

LLAMA2 = Preset()
LLAMA3 = Preset(rope_base=500_000.0)
LLAMA3_1 = replace(LLAMA3, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192))
LLAMA3_2 = replace(LLAMA3, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192), tied_embeddings=True)
