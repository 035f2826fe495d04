"""Conversations, and the text that a model's chat template makes of them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from layermesh.shared.errors import TokenizerError, UsageError

Message = Mapping[str, str]  # {"role": ..., "content": ...}

_SANDBOX: Final = Path(__file__).with_name("chat_sandbox.py")
_MAX_TEMPLATE_CHARS: Final = 2**18  # the longest in use are a tenth of it
_MEMORY_BYTES: Final = 2**29
_CPU_SECONDS: Final = 5
_WALL_SECONDS: Final = 60
_KEPT_VARIABLES: Final = ("TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
_RAW_INSTEAD: Final = "Give the prompt without it: --raw."


def check_messages(messages: object) -> list[dict[str, str]]:
    """Return a conversation as it came, if it is one: a list of {"role": ..., "content": ...}, both text.

    Raises UsageError that names the first message that is none.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise UsageError(f'a conversation is a list of at least one {{"role": ..., "content": ...}}, not {_short(messages)}')
    return [_check_message(index, message) for index, message in enumerate(messages)]


def _check_message(index: int, message: object) -> dict[str, str]:
    if not isinstance(message, Mapping) or message.keys() != {"role", "content"}:
        raise UsageError(f'message {index} must be {{"role": ..., "content": ...}}, not {_short(message)}')
    for key in ("role", "content"):
        if not isinstance(message[key], str):
            raise UsageError(f"the {key} of message {index} must be text, not {_short(message[key])}")
    return {"role": message["role"], "content": message["content"]}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def as_conversation(prompt: str, system: str | None = None) -> list[dict[str, str]]:
    """Return `prompt` as what a user says, after what `system` tells the model to be."""
    told = [] if system is None else [{"role": "system", "content": system}]
    return [*told, {"role": "user", "content": prompt}]


def render_chat(template: str, messages: Sequence[Message], special_tokens: Mapping[str, Any], model: str) -> str:
    """Return the text in which `model` expects the conversation, up to where it is to answer.

    `special_tokens` are the tokenizer's, by name (`bos_token`). The template is untrusted: it is rendered in a sandbox
    that may use 5 s of processor time and 0.5 GB (see `chat_sandbox.py`; macOS does not enforce the memory).
    Raises UsageError when the template rejects the conversation, TokenizerError when it cannot be rendered.
    """
    if len(template) > _MAX_TEMPLATE_CHARS:
        raise _unusable(model, f"it has {len(template)} characters, which no chat template needs")
    extras = {"tools": None, "documents": None, "add_generation_prompt": True}
    variables = {**special_tokens, **extras, "messages": messages}
    reply = _ask_sandbox(model, template, variables)
    if "refused" in reply:
        said = reply["refused"].rstrip(".! ")
        raise UsageError(f"the chat template of {model} rejects this conversation: {said}. {_RAW_INSTEAD}")
    if "text" not in reply:
        raise _unusable(model, reply["broken"])
    return reply["text"]


def _ask_sandbox(model: str, template: str, variables: Mapping[str, Any]) -> dict[str, str]:
    content = json.dumps(variables)
    request = {
        "template": template,
        "variables": variables,
        "memory_bytes": _MEMORY_BYTES + 64 * len(content),
        "cpu_seconds": _CPU_SECONDS,
        "max_chars": 2**20 + 8 * len(content),
    }
    try:
        done = subprocess.run(
            # No site, user site or script folder: jinja2 comes from where this process would find it.
            [sys.executable, "-S", "-s", "-P", str(_SANDBOX)],
            env=_environment(),
            input=json.dumps(request),
            encoding="ascii",
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _unusable(model, f"it did not end within {_WALL_SECONDS} s") from error
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise _unusable(model, f"it takes more than {_CPU_SECONDS} s")
    if done.returncode != 0:
        raise _unusable(model, f"it brought its sandbox down (status {done.returncode})")
    reply: dict[str, str] = json.loads(done.stdout)
    return reply


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _unusable(model: str, why: str) -> TokenizerError:
    return TokenizerError(f"the chat template of {model} cannot be used: {why}. {_RAW_INSTEAD}")
