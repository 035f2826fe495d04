"""The tokens with which a model says that it has finished."""

from collections.abc import Mapping
from typing import Any, Final

from layermesh.coordinator.tokenizer import Tokenizer

# How chat templates end a turn: ChatML, Llama 3, Gemma, Phi, OpenChat, Llama 4, Gemma 4.
_END_OF_TURN: Final = (
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>", "<|eot|>", "<turn|>",
)  # fmt: skip


def stop_token_ids(
    generation_config: Mapping[str, Any],
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    *,
    chat: bool,
    template: str | None = None,
) -> frozenset[int]:
    """Return the ids after which a model says nothing more.

    They are the union of what its generation_config.json, its config.json and its tokenizer call the end of text. In a
    `chat` the end of a turn, as the model's template writes it, is one too, unless generation_config.json lists
    several: then its authors thought of it, and in some models (gpt-oss) a turn ends in the middle of an answer. `template` is
    the one in use where it is not the model's usual one.
    """
    listed = _ids(generation_config)
    own = listed | _ids(config) | _ids(config.get("text_config"))
    if tokenizer is None:
        return own
    if tokenizer.eos_token_id is not None:
        own |= {tokenizer.eos_token_id}
    return own | _end_of_turn_ids(tokenizer, template) if chat and len(listed) < 2 else own


def _ids(config: object) -> frozenset[int]:
    value = config.get("eos_token_id") if isinstance(config, Mapping) else None
    ids = value if isinstance(value, list | tuple) else [value]
    return frozenset(id_ for id_ in ids if isinstance(id_, int) and not isinstance(id_, bool) and id_ >= 0)


def _end_of_turn_ids(tokenizer: Tokenizer, template: str | None) -> frozenset[int]:
    template = template or tokenizer.chat_template or ""
    ids = (tokenizer.token_id(token) for token in _END_OF_TURN if token in template)
    return frozenset(id_ for id_ in ids if id_ is not None)
