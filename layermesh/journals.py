"""Where the journals of answers lie that have not come to an end."""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from layermesh.shared.errors import UsageError
from layermesh.shared.library.home import data_home

MOST_JOURNALS: Final = 32  # the oldest go first
_ID: Final = re.compile(r"[0-9a-f]{8}")
_SUFFIX: Final = ".journal"


def journals_folder() -> Path:
    """Return the folder, which need not exist yet."""
    return data_home() / "journals"


@contextmanager
def new_journal() -> Iterator[Path]:
    """Hold the path of a journal that does not exist yet; old ones make room."""
    folder = journals_folder()
    for path in _newest_first(folder)[MOST_JOURNALS - 1 :]:
        with suppress(Timeout), _held(path):
            path.unlink(missing_ok=True)
    with _held(folder / f"{secrets.token_hex(4)}{_SUFFIX}") as path:
        yield path


@contextmanager
def old_journal(answer_id: str | None) -> Iterator[Path]:
    """Hold the journal of the answer by that id, or the newest that nobody holds. Raises UsageError where there is none."""
    folder = journals_folder()
    if answer_id is not None and not _ID.fullmatch(answer_id):
        raise UsageError(f"answers are known by eight letters and digits, such as 1f0a9b3c, not {answer_id[:40]!r}.")
    paths = _newest_first(folder) if answer_id is None else [folder / f"{answer_id}{_SUFFIX}"]
    for path in paths:
        if not path.is_file():
            continue
        try:
            with _held(path):
                yield path
                return
        except Timeout:
            if answer_id is not None:
                raise UsageError(f"answer {answer_id} is being made by another process.") from None
    what = "no answer was interrupted" if answer_id is None else f"no answer {answer_id} was interrupted"
    raise UsageError(f"{what}, or it is too long ago. Ask again.")


@contextmanager
def _held(path: Path) -> Iterator[Path]:
    """Keep other processes from it. Raises Timeout where one holds it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(path.with_suffix(".lock"), mode=0o600)
    with lock.acquire(timeout=0):
        try:
            yield path
        finally:
            if not path.exists():
                path.with_suffix(".lock").unlink(missing_ok=True)


def _newest_first(folder: Path) -> list[Path]:
    found: dict[Path, float] = {}
    for path in folder.glob(f"*{_SUFFIX}") if folder.is_dir() else ():
        with suppress(FileNotFoundError):  # another process has just come to its end
            found[path] = path.stat().st_mtime
    return sorted(found, key=lambda path: found[path], reverse=True)
