"""The text that a model's chat template makes of a conversation."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from layermesh.coordinator.conversation import (
    NO_OPTIONS,
    ChatOptions,
    Message,
    in_other_form,
    parts_in,
    texts_in,
    with_reasoning,
)
from layermesh.shared.errors import TokenizerError, UsageError

_SANDBOX: Final = Path(__file__).with_name("chat_sandbox.py")
_MAX_TEMPLATE_CHARS: Final = 2**18  # the longest in use are a tenth of it
_MEMORY_BYTES: Final = 2**29
_CPU_SECONDS: Final = 5
_WALL_SECONDS: Final = 60
_KEPT_VARIABLES: Final = ("TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
_RAW_INSTEAD: Final = "Give the prompt without it: --raw."


def render_chat(
    template: str,
    messages: Sequence[Message],
    special_tokens: Mapping[str, Any],
    model: str,
    options: ChatOptions = NO_OPTIONS,
    tell: Callable[[str], None] = lambda _: None,
) -> str:
    """Return the text in which `model` expects the conversation, up to where it is to answer.

    The text is that of transformers' `apply_chat_template`, but for templates that know contents either as texts or as parts
    only: these are given the form that they know, where transformers leaves a text out or shows Python's notation of a list.
    `special_tokens` are the tokenizer's, by name (`bos_token`). The template is untrusted: it is rendered in a sandbox
    that may use 5 s of processor time and 0.5 GB (see `chat_sandbox.py`; macOS does not enforce the memory). `tell` is given
    what was handed to the template and is not read by it.
    Raises UsageError when the template rejects the conversation, TokenizerError when it cannot be rendered.
    """
    if len(template) > _MAX_TEMPLATE_CHARS:
        raise _unusable(model, f"it has {len(template)} characters, which no chat template needs")
    reply = _render_best(model, template, with_reasoning(messages), _variables(special_tokens, options))
    if "refused" in reply:
        said = reply["refused"].rstrip(".! ")
        raise UsageError(f"the chat template of {model} rejects this conversation: {said}. {_RAW_INSTEAD}")
    if "text" not in reply:
        raise _unusable(model, reply["broken"])
    given = {**options.variables, "tools": options.tools, "documents": options.documents}
    ignored = [name for name, value in given.items() if value is not None and name not in reply["reads"]]
    if ignored:
        tell(f"the chat template of {model} does not read {', '.join(ignored)}: what was given there has no effect.")
    text: str = reply["text"]
    return text


def _variables(special_tokens: Mapping[str, Any], options: ChatOptions) -> dict[str, Any]:
    extras = {"tools": options.tools, "documents": options.documents, "add_generation_prompt": True}
    return {**special_tokens, **extras, **options.variables}


def _render_best(model: str, template: str, messages: Sequence[Message], variables: Mapping[str, Any]) -> dict[str, Any]:
    """Render the conversation as it is, and in its other form where the template does not know this one."""
    reply = _ask_sandbox(model, template, {**variables, "messages": messages})
    texts = texts_in(messages)
    if _num_shown(reply, messages, texts) == len(texts):
        return reply
    other = in_other_form(messages)
    if other is None or (not parts_in(messages) and _reads_texts(model, template, messages, variables, reply)):
        return reply
    second = _ask_sandbox(model, template, {**variables, "messages": other})
    return second if _num_shown(second, other, texts) > _num_shown(reply, messages, texts) else reply


def _reads_texts(
    model: str, template: str, messages: Sequence[Message], variables: Mapping[str, Any], reply: Mapping[str, Any]
) -> bool:
    """Return whether what `template` makes of contents that are texts, which it may edit, depends on them at all."""
    if "text" not in reply:
        return "refused" in reply
    others = [{**message, "content": "-"} if isinstance(message.get("content"), str) else message for message in messages]
    return bool(_ask_sandbox(model, template, {**variables, "messages": others}).get("text") != reply["text"])


def _num_shown(reply: Mapping[str, Any], messages: Sequence[Message], texts: Sequence[str]) -> int:
    """Return how many of `texts` a rendering shows; -1 for none at all, or one with a part in Python's notation."""
    text = reply.get("text")
    if text is None or any(str(part) in text for part in parts_in(messages)):
        return -1
    return sum(each in text for each in texts)


def _ask_sandbox(model: str, template: str, variables: Mapping[str, Any]) -> dict[str, Any]:
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
    reply: dict[str, Any] = json.loads(done.stdout)
    return reply


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _unusable(model: str, why: str) -> TokenizerError:
    return TokenizerError(f"the chat template of {model} cannot be used: {why}. {_RAW_INSTEAD}")
