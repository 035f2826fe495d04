"""What generation_config.json says: which of it is applied where, and what is not applied and has to be named."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from layermesh.coordinator.score_settings import SCORE_SETTINGS
from layermesh.shared.checkpoints.json_files import read_object

# Applied by SamplingParams, by the stop tokens, and by the limits of a request.
_APPLIED: Final = SCORE_SETTINGS | {
    "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "eos_token_id", "max_new_tokens",
    "max_length", "stop_strings",
}  # fmt: skip
# Settings that leave the tokens of one answer as they are: bookkeeping, outputs, caches, compilation, speculation (which
# chooses the same tokens), and what only beams and encoders use.
_HARMLESS: Final = frozenset((
    "pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version", "use_cache", "cache_config",
    "max_cache_len", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "low_memory", "compile_config", "disable_compile", "continuous_batching_config",
    "prefill_chunk_size", "length_penalty", "early_stopping", "diversity_penalty", "use_mtp", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "prompt_lookup_num_tokens",
    "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
    "assistant_ensemble_weight", "speculation_type", "trust_remote_code",
))  # fmt: skip
_ONE: Final = "one sequence is followed from token to token"
# What follows from leaving a setting out, and for which values it matters.
_NOT_APPLIED: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "num_beams": (_ONE, lambda value: value != 1),
    "num_beam_groups": (_ONE, lambda value: value != 1),
    "constraints": (_ONE, bool),
    "force_words_ids": (f"{_ONE}, and nothing is forced into it", bool),
    "penalty_alpha": ("tokens are chosen by their scores alone", bool),
    "dola_layers": ("scores are those of the last layer", bool),
    "guidance_scale": ("scores are those of the prompt alone", lambda value: value != 1),
    "token_healing": ("the prompt ends with the tokens that its tokenizer makes", bool),
    "max_time": ("an answer ends by its length, not by the clock", bool),
    "num_return_sequences": ("each prompt gets one answer", lambda value: value != 1),
    "is_assistant": ("an answer does not end where the model is unsure", bool),
    "cache_implementation": ("keys and values are kept in full precision", lambda value: "quantized" in str(value)),
    "forced_decoder_ids": ("nothing is forced, as in transformers", bool),
}


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """When answers end, by the model's generation_config.json: tokens of an answer, of prompt and answer, and texts."""

    max_new_tokens: int | None
    max_length: int | None
    stop_strings: tuple[str, ...]

    @classmethod
    def of(cls, generation_config: Mapping[str, Any]) -> "AnswerLimits":
        """Read them. Raises ValueError for a value of another kind, `eos_token_id` included, which is read elsewhere."""
        _check_ends(generation_config.get("eos_token_id"))
        stop = generation_config.get("stop_strings") or []
        strings = tuple(stop) if isinstance(stop, list) else (stop,)
        if not all(isinstance(string, str) and string and is_encodable(string) for string in strings):
            raise ValueError(f"stop_strings must be a text or a list of texts, not {ascii(stop)[:60]}")
        return cls(_length(generation_config, "max_new_tokens"), _length(generation_config, "max_length"), strings)


def is_encodable(text: str) -> bool:
    """Return whether `text` is Unicode: it may come with lone surrogates, out of JSON or of another encoding."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _length(generation_config: Mapping[str, Any], name: str) -> int | None:
    value = generation_config.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a whole number of tokens, not {str(value)[:60]}")
    return value


def _check_ends(value: Any) -> None:
    ids = value if isinstance(value, list) else [value]
    if not all(id_ is None or (isinstance(id_, int) and not isinstance(id_, bool)) for id_ in ids):
        raise ValueError(f"eos_token_id must be a token id or a list of them, not {str(value)[:60]}")


def read_generation_config(config_dir: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of generation_config.json in `config_dir`.

    Where there is no such file, `config`, the model's config.json, may hold settings as older models' do: its own come before
    those of the part that makes text. Token ids are read from there elsewhere. Raises CheckpointError.
    """
    path = config_dir / "generation_config.json"
    if path.is_file():
        return read_object(path)
    parts = (config.get(name) for name in ("decoder", "generator", "text_config"))
    inner: dict[str, Any] = next((part for part in parts if isinstance(part, dict)), {})
    known = (_APPLIED | _NOT_APPLIED.keys()) - {"eos_token_id"}
    return {name: value for part in (inner, config) for name, value in part.items() if name in known and value is not None}


def unapplied_settings(generation_config: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that could change tokens and is not applied: what it is and what follows."""
    lines = [
        f"{name} {str(value)[:40]} of generation_config.json is not applied: {_NOT_APPLIED[name][0]}"
        for name, value in generation_config.items()
        if name in _NOT_APPLIED and value is not None and _NOT_APPLIED[name][1](value)
    ]
    known = _APPLIED | _HARMLESS | _NOT_APPLIED.keys()
    unknown = [
        ascii(name)[1:-1][:40]
        for name, value in generation_config.items()
        if name not in known and not name.startswith("_") and value not in (None, False, [], {}, "")
    ]
    if unknown:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        lines.append(f"{', '.join(unknown[:8])}{more} of generation_config.json is not applied: layermesh has no such setting")
    return lines
