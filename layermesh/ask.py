"""One line of a file of prompts, checked before anything heavy is imported."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from layermesh.coordinator.conversation import ChatOptions, check_messages
from layermesh.coordinator.generation_config import is_encodable
from layermesh.settings import GenerationSettings, Prompt, check_length, check_prompt, check_sampling, is_whole
from layermesh.shared.errors import UsageError

_PROMPTS: Final = ("prompt", "messages", "prompt_ids")
_SETTINGS: Final = tuple(GenerationSettings.__annotations__)


@dataclass(frozen=True, slots=True)
class Ask:
    """The `index`-th prompt of a batch; `settings` are the command's own with what the line says otherwise."""

    index: int
    id: str | int | None
    prompt: Prompt
    settings: GenerationSettings

    @classmethod
    def of(cls, index: int, value: Any, settings: GenerationSettings) -> "Ask":
        """Return what a line says, `value` being its JSON. Raises UsageError where it cannot be meant so."""
        if isinstance(value, str):
            value = {"prompt": value}
        if not isinstance(value, dict):
            raise UsageError('a line is an object with a "prompt", or a text, and nothing else.')
        if unknown := value.keys() - {"id", *_PROMPTS, *_SETTINGS}:
            known = ", ".join(("id", *_PROMPTS, *_SETTINGS))
            raise UsageError(f"a line has no {', '.join(sorted(unknown))}; it has {known}.")
        own = {name: _checked(name, value[name]) for name in _SETTINGS if name in value}
        merged = cast("GenerationSettings", {**settings, **own, **_variables(settings, own)})
        chat = ChatOptions.of(merged)
        prompt = _prompt(value, merged, chat)
        check_length(merged.get("max_new_tokens"))
        check_sampling(cast("GenerationSettings", own))
        return cls(index, _id(value.get("id")), prompt, merged)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that are others for another prompt, other settings or another id."""
        settings = {name: value for name, value in self.settings.items() if value is not None and value is not False}
        content = json.dumps([self.id, self.prompt, settings], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def _id(value: Any) -> str | int | None:
    if value is not None and not isinstance(value, str) and not is_whole(value):
        raise UsageError(f"an id is a text or a whole number, not {value!r}.")
    return value


def _variables(settings: GenerationSettings, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line's own variables of the chat template over those of the command; null: none at all."""
    mine = own.get("chat_template_kwargs")
    return {"chat_template_kwargs": {**(settings.get("chat_template_kwargs") or {}), **mine}} if isinstance(mine, dict) else {}


def _prompt(value: Mapping[str, Any], settings: GenerationSettings, chat: ChatOptions) -> Prompt:
    """The one prompt of a line; anything but a text goes without a system message."""
    given = [name for name in _PROMPTS if name in value]
    if len(given) != 1:
        raise UsageError(f"a line has one of prompt, messages and prompt_ids, not {' and '.join(given) or 'none of them'}.")
    (name,) = given
    if settings.get("system") is not None and (name != "prompt" or settings.get("raw")):
        what = "raw text" if name == "prompt" else name
        raise UsageError(f'a system message goes with a text in a chat template, not with {what}. Say "system": null here.')
    if chat.given and (name == "prompt_ids" or (name == "prompt" and settings.get("raw"))):
        first = chat.given[0]
        raise UsageError(f'{first} goes with a chat template, and here is none. Set "{first}": null, or remove it.')
    return _READERS[name](value[name], settings)


def _text(value: Any, settings: GenerationSettings) -> Prompt:
    if not isinstance(value, str):
        raise UsageError(f"a prompt is a text, not {_short(value)}. Token ids are prompt_ids, a conversation is messages.")
    check_prompt(value, raw=settings.get("raw", False))
    return value


def _conversation(value: Any, _: GenerationSettings) -> Prompt:
    return check_messages(value)


def _token_ids(value: Any, _: GenerationSettings) -> Prompt:
    if not isinstance(value, list) or not value or not all(is_whole(token_id) and token_id >= 0 for token_id in value):
        raise UsageError(f"prompt_ids is a list of token ids, such as [5, 6, 7], not {_short(value)}.")
    return value


_READERS: Final[Mapping[str, Callable[[Any, GenerationSettings], Prompt]]] = {
    "prompt": _text,
    "messages": _conversation,
    "prompt_ids": _token_ids,
}


def _checked(name: str, value: Any) -> Any:
    """Return the value of a setting, if it is of the kind that the setting has; numbers are checked apart."""
    if name in ("raw", "ignore_eos") and not isinstance(value, bool):
        raise UsageError(f"{name} is true or false, not {_short(value)}.")
    if name == "system" and value is not None and not isinstance(value, str):
        raise UsageError(f"system is a text, not {_short(value)}.")
    if name != "stop":
        return value
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text and is_encodable(text) for text in texts):
        raise UsageError(f"stop is a text or a list of texts, none of them empty, not {ascii(value)[:80]}.")
    return texts


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
