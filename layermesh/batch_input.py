"""A file of prompts, one JSON line each."""

import json
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

from layermesh.ask import Ask
from layermesh.settings import GenerationSettings
from layermesh.shared.errors import UsageError
from layermesh.text_files import decode_text

STDIN: Final = "-"


def read_asks(path: str, settings: GenerationSettings) -> list[Ask]:
    """Return the lines of the file at `path`, or of standard input for "-"; blank ones are left out.

    `settings` hold where a line says nothing else. Raises UsageError that names the first line that cannot be meant so.
    """
    asks: list[Ask] = []
    seen: dict[str | int, int] = {}
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            ask = Ask.of(len(asks), _parse(line), settings)
            if ask.id is not None and seen.setdefault(ask.id, number) != number:
                raise UsageError(f"the id {ask.id!r} is that of line {seen[ask.id]} too. Give each line its own.")
        except UsageError as error:
            raise UsageError(f"{_name(path)}, line {number}: {error}") from error
        asks.append(ask)
    if not asks:
        raise UsageError(f'{_name(path)} has no prompts. Write one a line, such as {{"prompt": "Why is the sky blue?"}}.')
    return asks


def _read(path: str) -> str:
    try:
        content = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"--input {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    return decode_text(content, _name(path))


def _parse(line: str) -> Any:
    try:
        return json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_refuse_doubles)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON ({error}).") from error


def _refuse_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{ascii(next(name for name in names if names.count(name) > 1))[:60]} stands there twice")
    return made


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number there")


def _name(path: str) -> str:
    return "standard input" if path == STDIN else path
