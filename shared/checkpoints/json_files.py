"""JSON from files that nobody vouches for."""

import json
from pathlib import Path
from typing import Any

from layermesh.shared.errors import CheckpointError, LayermeshError
from layermesh.shared.file_limit import is_out_of_files, too_many_files

MAX_JSON_BYTES = 100_000_000


def parse_object(path: Path, text: bytes) -> dict[str, Any]:
    """Return the JSON object in `text`, which was read from `path`.

    Raises CheckpointError for anything but one object in UTF-8 without repeated keys.
    """
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} has a header or text that is not valid JSON ({_brief(error)}). It is damaged or not what its name "
            "says: fetch it again."
        ) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} holds JSON that is not an object. Fetch it again.")
    return parsed


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that the file at `path` holds; raises CheckpointError."""
    try:
        num_bytes = path.stat().st_size
        if num_bytes > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} has {num_bytes:,} bytes, too many for its kind. Fetch it again.")
        text = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    return parse_object(path, text)


def unreadable(path: Path, error: OSError) -> LayermeshError:
    """Return the error for a file that the operating system would not let us read."""
    if is_out_of_files(error):
        return too_many_files(path, error)
    return CheckpointError(
        f"cannot read {path}: {error.strerror or error}. Check that the file is there and that you may read it."
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {ascii(twice)[:80]} appears twice")
    return parsed


def _brief(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:160]
