"""Qwen2 and Qwen2.5 (arXiv:2407.10671, arXiv:2412.15115), Qwen3 (arXiv:2505.09388)."""

from jaxscale.models.families.preset import Preset

QWEN2 = Preset(norm_epsilon=1e-6, rope_base=1_000_000.0, qkv_bias=True)
QWEN3 = Preset(norm_epsilon=1e-6, rope_base=1_000_000.0, qk_norm=True)
