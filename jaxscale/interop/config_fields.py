"""Reading a `config.json` so that nothing in it is lost: what no map has taken is an error."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from jaxscale.config.explain import nearest
from jaxscale.errors import UserError

# They say how to run or train or name the model, not what it computes.
IGNORED = frozenset(
    {
        "architectures",
        "model_type",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "initializer_range",
        "initializer_factor",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "unk_token_id",
        "cache_implementation",
        "attn_implementation",
        "name_or_path",
        "task_specific_params",
        "torchscript",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "chunk_size_feed_forward",
        "id2label",
        "label2id",
        "problem_type",
        "num_labels",
        "pretraining_tp",
        "is_llama_config",
        "transformers.js_config",
        "gradient_checkpointing",
        "max_length",
        "min_length",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "early_stopping",
        "num_return_sequences",
    }
)
_NEUTRAL: tuple[Any, ...] = (None, False, "", [], {})


@dataclass(frozen=True)
class Fields:
    """The keys of a configuration, and which of them were understood.

    name: of the file, for messages.
    """

    name: str
    values: dict[str, Any]
    taken: set[str] = field(default_factory=set)

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default` where it is left out."""
        self.taken.add(key)
        return self.values.get(key, default)

    def integer(self, key: str, default: Any = None) -> int | None:
        """A whole number, or None for null. Raises UserError for anything else."""
        value = self.take(key, default)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self._wrong(key, value, "a whole number")

    def size(self, key: str, default: Any = None) -> int | None:
        """A positive whole number, or None for null. Raises UserError for anything else."""
        value = self.integer(key, default)
        if value is not None and value < 1:
            raise self._wrong(key, value, "a positive whole number")
        return value

    def number(self, key: str, default: Any = None) -> float | None:
        """A number, or None for null. Raises UserError for anything else."""
        value = self.take(key, default)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise self._wrong(key, value, "a number")

    def flag(self, key: str, default: Any = None) -> bool:
        """True or false. Raises UserError for anything else."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """An object; empty where it is left out or null. Raises UserError for anything else."""
        value = self.take(key)
        if not isinstance(value, dict | None):
            raise self._wrong(key, value, "an object")
        return value or {}

    def require(self, key: str, allowed: Collection[Any]) -> None:
        """Raises UserError if the key is there and has a value that only another model computes."""
        value = self.take(key, next(iter(allowed)))
        if value not in allowed:
            raise UserError(
                f"{self.name}: {key} is {value!r}, which this family of jaxscale cannot represent; it computes "
                f"{key}: {' or '.join(repr(one) for one in allowed)}"
            )

    def refuse_unknown(self, ignore: Iterable[str]) -> None:
        """Raises UserError for keys that nobody took and that are set to something."""
        known = self.taken | IGNORED | set(ignore)
        unknown = {
            key: value
            for key, value in self.values.items()
            if key not in known and not key.startswith("_") and value not in _NEUTRAL
        }
        if unknown:
            raise UserError(_unknown_message(self.name, unknown, self.taken))

    def _wrong(self, key: str, value: Any, wanted: str) -> UserError:
        return UserError(f"{self.name}: {key} is {value!r}, not {wanted}")


def _unknown_message(name: str, unknown: dict[str, Any], known: set[str]) -> str:
    lines = [f"  {key}: {value!r:.80}{nearest(key, known)}" for key, value in unknown.items()]
    options = " ".join(f"--ignore {key}" for key in unknown)
    return "\n".join(
        [
            f"{name} sets keys that jaxscale cannot represent, and dropping them could change what the model computes:",
            *lines,
            f"If they do not matter to the forward pass, import with {options}.",
        ]
    )
