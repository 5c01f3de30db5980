"""GPT-2 (Radford et al. 2019) and GPT-3 (arXiv:2005.14165; its sparse layers were never released: all dense here)."""

from jaxscale.models.families.preset import Preset

GPT2 = Preset(
    norm="layer",
    activation="gelu_tanh",
    gated_mlp=False,
    mlp_ratio=4,
    positions="learned",
    qkv_bias=True,
    output_biases=True,
    tied_embeddings=True,
)
GPT3 = GPT2
