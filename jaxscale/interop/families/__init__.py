"""Every family of Hugging Face that is read and written. A new one is a file here and a line below."""

from jaxscale.interop.families.gemma import GEMMA2, GEMMA3
from jaxscale.interop.families.gpt2 import GPT2
from jaxscale.interop.families.llama import LLAMA
from jaxscale.interop.families.mistral import MISTRAL
from jaxscale.interop.families.qwen import QWEN2, QWEN3

FAMILIES = (GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3)
