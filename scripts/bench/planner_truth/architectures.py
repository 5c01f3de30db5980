"""Public architectures by name, for cases whose file does not list them: each from the model's own configuration."""

from collections.abc import Mapping
from typing import Any

HF = "config.json of the published checkpoint"

# In the format of the file's `models` block.
ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "gpt-oss-120b": {
        "L": 36, "D": 2880, "F": 2880, "N": 64, "K": 8, "H": 64, "V": 201088, "num_experts": 128, "top_k": 4,
        "windows": [128, None], "biases": True, "source": HF,
    },
    "gpt-oss-20b": {
        "L": 24, "D": 2880, "F": 2880, "N": 64, "K": 8, "H": 64, "V": 201088, "num_experts": 32, "top_k": 4,
        "windows": [128, None], "biases": True, "source": HF,
    },
    "qwen3-235b-a22b": {
        "L": 94, "D": 4096, "F": 1536, "N": 64, "K": 4, "H": 128, "V": 151936, "num_experts": 128, "top_k": 8,
        "source": HF,
    },
    "qwen3-30b-a3b": {
        "L": 48, "D": 2048, "F": 768, "N": 32, "K": 4, "H": 128, "V": 151936, "num_experts": 128, "top_k": 8,
        "source": HF,
    },
    "qwen3-32b": {"L": 64, "D": 5120, "F": 25600, "N": 64, "K": 8, "H": 128, "V": 151936, "source": HF},
    "qwen3-14b": {"L": 40, "D": 5120, "F": 17408, "N": 40, "K": 8, "H": 128, "V": 151936, "source": HF},
    "qwen3-8b": {"L": 36, "D": 4096, "F": 12288, "N": 32, "K": 8, "H": 128, "V": 151936, "source": HF},
    "qwen2.5-72b": {"L": 80, "D": 8192, "F": 29568, "N": 64, "K": 8, "H": 128, "V": 152064, "source": HF},
    "llama2-7b": {"L": 32, "D": 4096, "F": 11008, "N": 32, "K": 32, "H": 128, "V": 32000, "source": HF},
    "llama2-13b": {"L": 40, "D": 5120, "F": 13824, "N": 40, "K": 40, "H": 128, "V": 32000, "source": HF},
    "llama2-70b": {"L": 80, "D": 8192, "F": 28672, "N": 64, "K": 8, "H": 128, "V": 32000, "source": HF},
    "llama-65b": {"L": 80, "D": 8192, "F": 22016, "N": 64, "K": 64, "H": 128, "V": 32000, "source": HF},
    "llama3-8b": {"L": 32, "D": 4096, "F": 14336, "N": 32, "K": 8, "H": 128, "V": 128256, "source": HF},
    "llama3-70b": {"L": 80, "D": 8192, "F": 28672, "N": 64, "K": 8, "H": 128, "V": 128256, "source": HF},
    "llama3-405b": {"L": 126, "D": 16384, "F": 53248, "N": 128, "K": 8, "H": 128, "V": 128256, "source": HF},
    "llama3-1b": {"L": 16, "D": 2048, "F": 8192, "N": 32, "K": 8, "H": 64, "V": 128256, "tied": True, "source": HF},
    "llama3-3b": {"L": 28, "D": 3072, "F": 8192, "N": 24, "K": 8, "H": 128, "V": 128256, "tied": True, "source": HF},
    "llama4-scout-17b-16e": {
        "L": 48, "D": 5120, "F": 8192, "N": 40, "K": 8, "H": 128, "V": 202048, "num_experts": 16, "top_k": 1,
        "shared_experts": 1, "source": HF,
    },
    "gemma2-9b": {
        "L": 42, "D": 3584, "F": 14336, "N": 16, "K": 8, "H": 256, "V": 256128, "tied": True, "windows": [4096, None],
        "source": HF,
    },
    "gemma2-27b": {
        "L": 46, "D": 4608, "F": 36864, "N": 32, "K": 16, "H": 128, "V": 256128, "tied": True, "windows": [4096, None],
        "source": HF,
    },
    "gemma3-4b": {"L": 34, "D": 2560, "F": 10240, "N": 8, "K": 4, "H": 256, "V": 262144, "tied": True, "source": HF},
    "gemma3-12b": {"L": 48, "D": 3840, "F": 15360, "N": 16, "K": 8, "H": 256, "V": 262144, "tied": True, "source": HF},
    "gemma3-27b": {"L": 62, "D": 5376, "F": 21504, "N": 32, "K": 16, "H": 128, "V": 262144, "tied": True, "source": HF},
    "mistral-7b": {"L": 32, "D": 4096, "F": 14336, "N": 32, "K": 8, "H": 128, "V": 32000, "source": HF},
    "mixtral-8x7b": {
        "L": 32, "D": 4096, "F": 14336, "N": 32, "K": 8, "H": 128, "V": 32000, "num_experts": 8, "top_k": 2,
        "source": HF,
    },
    "mixtral-8x22b": {
        "L": 56, "D": 6144, "F": 16384, "N": 48, "K": 8, "H": 128, "V": 32768, "num_experts": 8, "top_k": 2,
        "source": HF,
    },
    "deepseek-v3": {
        "L": 61, "D": 7168, "F_dense": 18432, "F_expert": 2048, "N": 128, "V": 129280, "num_experts": 256, "top_k": 8,
        "shared_experts": 1, "first_dense_layers": 3, "attention": "mla", "q_lora": 1536, "kv_lora": 512,
        "qk_nope": 128, "qk_rope": 64, "v_head": 128, "source": HF,
    },
    "deepseek-v2": {
        "L": 60, "D": 5120, "F_dense": 12288, "F_expert": 1536, "N": 128, "V": 102400, "num_experts": 160, "top_k": 6,
        "shared_experts": 2, "first_dense_layers": 1, "attention": "mla", "q_lora": 1536, "kv_lora": 512,
        "qk_nope": 128, "qk_rope": 64, "v_head": 128, "source": HF,
    },
    "gpt3-175b": {"L": 96, "D": 12288, "F": 49152, "N": 96, "V": 51200, "tied": True, "source": "arXiv:2005.14165"},
    "gptneox-20b": {"L": 44, "D": 6144, "F": 24576, "N": 64, "V": 50432, "tied": False, "source": "arXiv:2204.06745"},
    "opt-175b": {"L": 96, "D": 12288, "F": 49152, "N": 96, "V": 50272, "tied": True, "source": "arXiv:2205.01068"},
    "bloom-176b": {"L": 70, "D": 14336, "F": 57344, "N": 112, "V": 250880, "tied": True, "source": "arXiv:2211.05100"},
    "gopher-280b": {"L": 80, "D": 16384, "F": 65536, "N": 128, "V": 32000, "tied": True, "source": "arXiv:2112.11446"},
    "palm-540b": {
        "L": 118, "D": 18432, "F": 73728, "N": 48, "K": 1, "H": 256, "V": 256000, "mlp_matrices": 3, "tied": True,
        "source": "arXiv:2204.02311, table 1",
    },
}  # fmt: skip

# Families whose attention and MLP read one normalized input: MaxText's own models of 2023 (MaxText/layers/models.py at
# 76bd53b0f, DecoderLayer), PaLM (arXiv:2204.02311, section 2), GPT-J and GPT-NeoX (arXiv:2204.06745, section 2.1),
# Falcon (arXiv:2311.16867, section 3).
PARALLEL = ("maxtext-", "palm", "gptneox", "gpt-j", "falcon")

# Patterns of local and global attention by family; a file's entry may leave them out.
WINDOWS: Mapping[str, tuple[int | None, ...]] = {
    "gemma3": (1024, 1024, 1024, 1024, 1024, None),
    "gemma2": (4096, None),
    "gpt-oss": (128, None),
}

# Tokens that a family was trained on, as its paper or model card says.
TRAINING_TOKENS: Mapping[str, float] = {
    "llama3": 15e12, "llama2": 2e12, "gpt3": 300e9, "palm": 780e9, "deepseek-v3": 14.8e12, "bloom": 366e9,
}  # fmt: skip

# Tokens of a training sequence of a family, where a case names none.
SEQUENCES: Mapping[str, int] = {
    "llama3": 8192, "llama2": 4096, "gemma3": 32768, "gemma2": 8192, "mistral": 8192, "mixtral": 4096,
    "deepseek": 4096, "qwen": 4096, "gpt-2": 1024, "gpt": 2048, "mpt": 2048, "palm": 2048,
}  # fmt: skip
DEFAULT_SEQUENCE = 2048

# Widths and heads of GPT models by size (Brown et al. 2020, table 2.1; Narayanan et al. 2021, table 1), for cases that
# give nothing but a number of parameters.
GPT_SIZES = (
    (125e6, 768, 12), (350e6, 1024, 16), (760e6, 1536, 16), (1.3e9, 2048, 16), (2.7e9, 2560, 32), (3.6e9, 3072, 32),
    (6.7e9, 4096, 32), (13e9, 5120, 40), (18.4e9, 6144, 48), (39.1e9, 8192, 64), (76.1e9, 10240, 80),
    (145.6e9, 12288, 96), (310.1e9, 16384, 128), (529.6e9, 20480, 128), (1008e9, 25600, 160),
)  # fmt: skip
