"""PyTorch with transformers' Llama, eager or through torch.compile.

bfloat16 is autocast over fp32 weights, as the JAX contenders cast fp32 weights.
"""

import contextlib

import shape
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def run(chosen: shape.Options, *, compiled: bool = False) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.VOCAB,
        hidden_size=shape.WIDTH,
        intermediate_size=shape.MLP,
        num_hidden_layers=shape.LAYERS,
        num_attention_heads=shape.HEADS,
        num_key_value_heads=shape.KV_HEADS,
        head_dim=shape.HEAD_DIM,
        max_position_embeddings=shape.SEQUENCE,
        rms_norm_eps=shape.NORM_EPSILON,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=shape.LEARNING_RATE,
        betas=shape.BETAS,
        weight_decay=shape.WEIGHT_DECAY,
        fused=True,
    )
    tokens = torch.randint(0, shape.VOCAB, (shape.BATCH, shape.SEQUENCE))
    narrow = chosen.dtype == "bfloat16"

    def step() -> float:
        context = torch.autocast("cpu", torch.bfloat16) if narrow else contextlib.nullcontext()
        with context:
            loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    shape.measure(step, chosen)
