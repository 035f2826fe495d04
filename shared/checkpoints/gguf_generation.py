"""The settings of generation that a GGUF file states, as generation_config.json has them."""

from collections.abc import Callable
from typing import Any, Final

from layermesh.shared.checkpoints.gguf_header import GGUFHeader
from layermesh.shared.errors import UnsupportedModelError

_END_TOKENS: Final = ("eos", "eot", "eom")
_SAMPLING: Final = "general.sampling."
_SETTINGS: Final = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty",
}  # fmt: skip
_DRAWS: Final = frozenset(("temp", "top_k", "top_p", "min_p"))  # stated where tokens are to be drawn, which no key says
_SUPPRESSED: Final = "tokenizer.ggml.suppress_tokens"
# A turn of gpt-oss consists of several messages, each with an end of its own; a file states one of the ends of a turn.
_HARMONY_ENDS: Final = ("<|return|>", "<|endoftext|>", "<|call|>")
_HARMONY_MESSAGE_END: Final = "<|end|>"


def generation_settings(header: GGUFHeader, config: Any, token_id: Callable[[str], int | None]) -> dict[str, Any]:
    """Return what generation_config.json is to say; `token_id` looks a text up in the vocabulary.

    Sampling that transformers does not have keeps its key, so that it is named as not applied. Raises UnsupportedModelError
    for a list of suppressed tokens that is too long to keep.
    """
    settings: dict[str, Any] = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": _ends(header, config, token_id),
        "pad_token_id": config.pad_token_id,
        **_sampling(header),
    }
    if _SUPPRESSED in header.array_lengths:
        if header.metadata.get(_SUPPRESSED) is None:
            count = header.array_lengths[_SUPPRESSED]
            raise UnsupportedModelError(
                f"cannot run {header.path}: its key '{_SUPPRESSED}' lists {count} tokens, more than layermesh keeps. Use this "
                "model's safetensors."
            )
        settings["suppress_tokens"] = header.metadata[_SUPPRESSED]
    return {name: value for name, value in settings.items() if value is not None}


def _ends(header: GGUFHeader, config: Any, token_id: Callable[[str], int | None]) -> Any:
    """Return the ids that end an answer; the end of a turn is one, as in llama.cpp."""
    stated = list(config.eos_token_id) if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stated += [header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _END_TOKENS]
    if config.model_type == "gpt_oss":
        message_end = token_id(_HARMONY_MESSAGE_END)
        stated = [end for end in stated if end != message_end] + [token_id(text) for text in _HARMONY_ENDS]
    ends = [end for end in dict.fromkeys(stated) if end is not None]
    return ends if len(ends) > 1 else ends[0] if ends else None


def _sampling(header: GGUFHeader) -> dict[str, Any]:
    stated = {key.removeprefix(_SAMPLING): value for key, value in header.metadata.items() if key.startswith(_SAMPLING)}
    known = {_SETTINGS[name]: value for name, value in stated.items() if name in _SETTINGS}
    if stated.keys() & _DRAWS:
        known["do_sample"] = stated.get("temp") != 0
    return known | {f"{_SAMPLING}{name}": value for name, value in stated.items() if name not in _SETTINGS}
