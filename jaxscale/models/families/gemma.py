"""Gemma 2 (arXiv:2408.00118) and Gemma 3, text only (arXiv:2503.19786)."""

from jaxscale.models.families.preset import Preset

GEMMA2 = Preset(
    norm_epsilon=1e-6,
    norm_offset=True,
    post_norms=True,
    activation="gelu_tanh",
    window=4096,
    window_pattern=2,
    attention_softcap=50.0,
    logit_softcap=30.0,
    embed_scale=True,
    tied_embeddings=True,
)
GEMMA3 = Preset(
    norm_epsilon=1e-6,
    norm_offset=True,
    post_norms=True,
    activation="gelu_tanh",
    rope_base=1_000_000.0,
    rope_local_base=10_000.0,
    window=1024,
    window_pattern=6,
    qk_norm=True,
    embed_scale=True,
    tied_embeddings=True,
)
