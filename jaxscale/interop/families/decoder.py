"""What the decoders of Hugging Face since Llama share: the names of their tensors."""

from jaxscale.interop.names import Entry, one

LAYER = "model.layers.{layer}."

HEAD = one("lm_head.weight", "head/table")
EMBEDDING = one("model.embed_tokens.weight", "embedding/table")
FINAL_NORM = one("model.norm.weight", "final_norm/scale")


def _attention(letter: str, path: str, heads: str) -> tuple[Entry, ...]:
    theirs, ours = f"{LAYER}self_attn.{letter}", f"layers/attention/{path}"
    return (
        one(f"{theirs}_proj.weight", ours, f"({heads} head_dim) embed"),
        one(f"{theirs}_proj.bias", f"{ours}_bias", f"({heads} head_dim)"),
        one(f"{theirs}_norm.weight", f"{ours}_norm/scale"),
    )


def decoder(*norms: tuple[str, str]) -> tuple[Entry, ...]:
    """The map of a family whose layers have these norms, as pairs of their name and ours."""
    return (
        EMBEDDING,
        *_attention("q", "query", "heads"),
        *_attention("k", "key", "kv_heads"),
        *_attention("v", "value", "kv_heads"),
        one(f"{LAYER}self_attn.o_proj.weight", "layers/attention/output", "embed (heads head_dim)"),
        one(f"{LAYER}mlp.gate_proj.weight", "layers/mlp/gate", "mlp embed"),
        one(f"{LAYER}mlp.up_proj.weight", "layers/mlp/up", "mlp embed"),
        one(f"{LAYER}mlp.down_proj.weight", "layers/mlp/down", "embed mlp"),
        *(one(f"{LAYER}{theirs}.weight", f"layers/{ours}/scale") for theirs, ours in norms),
        FINAL_NORM,
        HEAD,
    )


TWO_NORMS = decoder(
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "mlp_norm"),
)
FOUR_NORMS = decoder(
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "attention_post_norm"),
    ("pre_feedforward_layernorm", "mlp_norm"),
    ("post_feedforward_layernorm", "mlp_post_norm"),
)
