"""GPT-2: fused projections, stored as (in, out)."""

from jaxscale.interop.family import HfFamily
from jaxscale.interop.names import Entry, Piece, one

LAYER = "transformer.h.{layer}."

NAMES = (
    one("transformer.wte.weight", "embedding/table"),
    one("transformer.wpe.weight", "positions/table"),
    Entry(
        f"{LAYER}attn.c_attn.weight",
        (
            Piece("layers/attention/query", "embed (heads head_dim)"),
            Piece("layers/attention/key", "embed (kv_heads head_dim)"),
            Piece("layers/attention/value", "embed (kv_heads head_dim)"),
        ),
        dim=1,
    ),
    Entry(
        f"{LAYER}attn.c_attn.bias",
        (
            Piece("layers/attention/query_bias", "(heads head_dim)"),
            Piece("layers/attention/key_bias", "(kv_heads head_dim)"),
            Piece("layers/attention/value_bias", "(kv_heads head_dim)"),
        ),
    ),
    one(f"{LAYER}attn.c_proj.weight", "layers/attention/output", "(heads head_dim) embed"),
    one(f"{LAYER}attn.c_proj.bias", "layers/attention/output_bias"),
    one(f"{LAYER}mlp.c_fc.weight", "layers/mlp/up"),
    one(f"{LAYER}mlp.c_fc.bias", "layers/mlp/up_bias"),
    one(f"{LAYER}mlp.c_proj.weight", "layers/mlp/down"),
    one(f"{LAYER}mlp.c_proj.bias", "layers/mlp/down_bias"),
    one(f"{LAYER}ln_1.weight", "layers/attention_norm/scale"),
    one(f"{LAYER}ln_1.bias", "layers/attention_norm/bias"),
    one(f"{LAYER}ln_2.weight", "layers/mlp_norm/scale"),
    one(f"{LAYER}ln_2.bias", "layers/mlp_norm/bias"),
    one("transformer.ln_f.weight", "final_norm/scale"),
    one("transformer.ln_f.bias", "final_norm/bias"),
    one("lm_head.weight", "head/table"),
)


GPT2 = HfFamily(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    ours=("gpt2", "gpt3"),
    names=NAMES,
    keys={
        "vocab_size": "vocab_size",
        "max_positions": "n_positions",
        "num_layers": "n_layer",
        "embed_dim": "n_embd",
        "num_heads": "n_head",
        "mlp_dim": "n_inner",
        "norm_epsilon": "layer_norm_epsilon",
        "tied_embeddings": "tie_word_embeddings",
    },
    defaults={
        "vocab_size": 50_257,
        "n_positions": 1024,
        "n_layer": 12,
        "n_embd": 768,
        "n_head": 12,
        "n_inner": None,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    fixed={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    # Heads of classifiers, and how the same scores are computed.
    unused=frozenset(
        {
            "n_ctx",
            "reorder_and_upcast_attn",
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
        }
    ),
    dropouts=("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    read=lambda _, __: {},
    write=lambda _: {},
)
