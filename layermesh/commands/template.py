"""What the command line says about the chat template."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from layermesh.shared.errors import UsageError
from layermesh.text_files import read_template

_TEMPLATE_SUFFIXES: Final = (".jinja", ".jinja2", ".j2", ".txt")
_PYTHON_WORDS: Final = {"True": "true", "False": "false", "None": "null"}


def chosen_template(value: str | None) -> str | None:
    """Return what `--chat-template` names: the name of one of the model's, or the text of the file at a path.

    A value with a slash or the suffix of a template is a path. Raises UsageError.
    """
    if value is None or not ("/" in value or value.endswith(_TEMPLATE_SUFFIXES)):
        return value
    return read_template(Path(value))


def template_variables(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Return the variables of `--template-arg NAME=VALUE`, values being JSON, or else text. Raises UsageError."""
    variables: dict[str, Any] = {}
    for argument in arguments:
        name, sign, text = argument.partition("=")
        if not sign or not name.isidentifier():
            raise UsageError(f"--template-arg takes NAME=VALUE, such as enable_thinking=false, not {argument[:60]!r}.")
        if text in _PYTHON_WORDS:
            raise UsageError(f"--template-arg {name}={text} is Python's word for it. Use JSON's: {name}={_PYTHON_WORDS[text]}.")
        variables[name] = _value(text)
    return variables or None


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
