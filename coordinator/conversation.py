"""Conversations, checked, and what a chat template is given beside them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from layermesh.shared.errors import UsageError

Message = Mapping[str, Any]  # {"role": ..., "content": ...} and what else programs write into one

_TEXTS: Final = ("name", "tool_call_id", "tool_name", "reasoning_content", "reasoning", "thinking", "tool_plan", "refusal")
_KEYS: Final = ("role", "content", *_TEXTS, "tool_calls", "tool_responses", "tool_results", "function_call", "documents")
_INSTEAD_OF_CONTENT: Final = ("tool_calls", "function_call", "tool_responses", "tool_results", "reasoning_content")
_REASONING: Final = ("reasoning_content", "thinking", "reasoning")  # one thing by three names, the first the usual one
_PART_TYPES: Final = ("text", "thinking", "document")
_SENSES: Final = ("image", "audio", "video", "file")
# What transformers' apply_chat_template takes by these names is no variable of a template, or has a setting of its own here.
_RESERVED: Final = frozenset((
    "messages", "conversation", "tools", "documents", "chat_template", "continue_final_message", "tokenize", "padding",
    "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
    "sanitize_control_tokens",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a chat template is rendered with beside the conversation.

    `template` is the name of one of the model's templates, or the text of one. `variables` are stronger than what a template is
    given anyway. Raises UsageError for values that are no JSON.
    """

    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.template is not None and not (isinstance(self.template, str) and self.template):
            raise UsageError(f"chat_template is the name of a template or its text, not {short(self.template)}.")
        if not isinstance(self.variables, Mapping) or not all(isinstance(name, str) for name in self.variables):
            example = '{"enable_thinking": false}'
            raise UsageError(f"chat_template_kwargs is an object such as {example}, not {short(self.variables)}.")
        if reserved := sorted(_RESERVED & self.variables.keys()):
            raise UsageError(
                f"chat_template_kwargs cannot set {', '.join(reserved)}: that is no variable of a template. Remove it."
            )
        for name in ("tools", "documents"):
            _check_objects(name, getattr(self, name))
        _check_json("chat_template_kwargs", self.variables)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "ChatOptions":
        """Return the options among the settings of an answer."""
        return cls(
            settings.get("chat_template"),
            settings.get("chat_template_kwargs") or {},
            settings.get("tools"),
            settings.get("documents"),
        )

    @property
    def given(self) -> list[str]:
        """The names of what was given."""
        return [
            name
            for name, value in (
                ("chat_template", self.template),
                ("chat_template_kwargs", self.variables or None),
                ("tools", self.tools),
                ("documents", self.documents),
            )
            if value is not None
        ]


def check_messages(messages: object) -> list[dict[str, Any]]:
    """Return a conversation, if it is one, without what is null: a list of messages with a role and a content.

    The content is a text or a list of parts (`{"type": "text", "text": ...}`). Raises UsageError that names the first message
    that is none, and the first thing in one that no text model can be shown.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise UsageError(f'a conversation is a list of at least one {{"role": ..., "content": ...}}, not {short(messages)}')
    return [_check_message(index, message) for index, message in enumerate(messages)]


def _check_message(index: int, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UsageError(f'message {index} must be {{"role": ..., "content": ...}}, not {short(message)}')
    stated = {key: value for key, value in message.items() if value is not None}  # as transformers reads them
    if unknown := [key for key, value in stated.items() if key not in _KEYS and value not in ([], {}, "")]:
        raise UsageError(f"message {index} has {', '.join(map(short, unknown))}; a message has {', '.join(_KEYS)}.")
    stated = {key: value for key, value in stated.items() if key in _KEYS}
    if not isinstance(stated.get("role"), str):
        raise UsageError(
            f'message {index} must be {{"role": ..., "content": ...}} with a role that is text, not {short(message)}'
        )
    if "content" not in stated and not any(key in stated for key in _INSTEAD_OF_CONTENT):
        raise UsageError(f'message {index} must be {{"role": ..., "content": ...}} and has no content: {short(message)}')
    for key in (*_TEXTS, "content"):
        if isinstance(stated.get(key), list) and key == "content":
            for part in stated["content"]:
                _check_part(index, part)
        elif key in stated and not isinstance(stated[key], str):
            raise UsageError(f"the {key} of message {index} must be text, not {short(stated[key])}")
    _check_json(f"message {index}", stated)
    return stated


def _check_part(index: int, part: object) -> None:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(kind, str) and any(sense in kind for sense in _SENSES):
        raise UsageError(
            f"message {index} has a part of type {kind[:40]!r}, and layermesh gives models text only. Remove that part."
        )
    if not isinstance(part, Mapping) or kind not in _PART_TYPES or (kind == "text" and not isinstance(part.get("text"), str)):
        raise UsageError(f'a part of message {index} must be {{"type": "text", "text": ...}}, not {short(part)}')


def _check_objects(name: str, objects: object) -> None:
    if objects is None:
        return
    if not isinstance(objects, list | tuple) or not all(isinstance(one, Mapping) for one in objects):
        raise UsageError(f"{name} is a list of JSON objects, not {short(objects)}.")
    _check_json(name, objects)


def _check_json(name: str, value: object) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{name} holds what JSON cannot ({str(error)[:80]}): {short(value)}") from error


def short(value: object) -> str:
    """Return `value` as it is shown in an error: in one line of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_conversation(prompt: str, system: str | None = None) -> list[dict[str, Any]]:
    """Return `prompt` as what a user says, after what `system` tells the model to be."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": prompt}]


def with_reasoning(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with reasoning under each of the names that templates read, as transformers does."""
    filled: list[Message] = []
    for message in messages:
        reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
        more = {} if reasoning is None else {"reasoning_content": reasoning}
        filled.append({"thinking": reasoning, **message, **more} if more else message)
    return filled


def texts_in(messages: Sequence[Message]) -> list[str]:
    """Return the texts that a template should show, without space around them and without empty ones.

    Not those of the assistant: templates leave earlier reasoning out of them.
    """
    texts = []
    for message in messages:
        if message["role"] == "assistant":
            continue
        content = message.get("content", "")
        texts += [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    return [text.strip() for text in texts if text.strip()]


def parts_in(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    """Return the parts of contents that are lists."""
    return [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]


def in_other_form(messages: Sequence[Message]) -> list[Message] | None:
    """Return the conversation with texts where it has parts, one a line, or else with parts where it has texts.

    None where it has parts that are no text.
    """
    parts = parts_in(messages)
    if not parts:
        return [
            {**message, "content": [{"type": "text", "text": message["content"]}]} if "content" in message else message
            for message in messages
        ]
    if any(part["type"] != "text" for part in parts):
        return None
    return [
        {**message, "content": "\n".join(part["text"] for part in content)}
        if isinstance(content := message.get("content"), list)
        else message
        for message in messages
    ]


NO_OPTIONS: Final = ChatOptions()
