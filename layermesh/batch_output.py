"""A file that answers are appended to, one JSON line each, and what an earlier run left in it."""

import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from layermesh.ask import Ask
from layermesh.shared.errors import UsageError

_BEGINNING: Final = b'{"id": '  # of every line that is written here


class AnswerFile:
    """Keeps the answers to `asks`, each from the moment it is there, so that nothing that ends this process loses one.

    `finished` are the indices that an earlier run has answered; its errors are forgotten, to be tried again, and so is a line
    that was cut off. The file is as it was until `begin`. Raises UsageError for a file that cannot be written or that has
    anything else in it.
    """

    def __init__(self, path: str, asks: Sequence[Ask]) -> None:
        self._path = Path(path)
        self._digests = [ask.digest for ask in asks]
        self._file = _open(self._path)
        self._is_regular = self._path.is_file()
        self._kept: dict[int, bytes] = {}
        self._models: set[str] = set()
        try:
            self._content = self._read() if self._is_regular else b""
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @property
    def finished(self) -> frozenset[int]:
        """The indices of the prompts that have their answer."""
        return frozenset(self._kept)

    def begin(self, model: str) -> None:
        """Make ready to write answers of `model`. Raises UsageError where those that are there are another one's."""
        for other in self._models - {model}:
            raise UsageError(f"{self._path} has answers of {other}, and this is {model}. Give another --output.")
        kept = b"".join(line + b"\n" for line in self._kept.values())
        if kept != self._content:
            self._replace(kept)

    def append(self, line: dict[str, Any]) -> None:
        """Write a line, which is on the disk when this returns."""
        text = json.dumps(line, ensure_ascii=False) + "\n"
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        while rest:
            rest = rest[self._file.write(rest) :]
        if self._is_regular:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _read(self) -> bytes:
        content = self._path.read_bytes()
        *lines, rest = content.split(b"\n")
        if rest and _parse(rest) is not None:
            lines.append(rest)
        elif rest and not (rest.startswith(_BEGINNING) or _BEGINNING.startswith(rest)):
            raise self._strange(len(lines) + 1)
        for number, line in enumerate(lines, start=1):
            self._note(number, line)
        return content

    def _note(self, number: int, line: bytes) -> None:
        answer = _parse(line)
        if answer is None:
            raise self._strange(number)
        index, digest = answer["index"], answer["request"]
        if not 0 <= index < len(self._digests) or self._digests[index] != digest:
            raise UsageError(
                f"{self._path} has answers to something else: line {number} is not for prompt {index} as it is now, with "
                "these settings. Give another --output, or delete that file to begin again."
            )
        if "error" not in answer:
            self._kept[index] = line
            self._models.add(answer["model"])

    def _strange(self, number: int) -> UsageError:
        return UsageError(f"{self._path} was not written by layermesh: see its line {number}. Give another --output.")

    def _replace(self, content: bytes) -> None:
        """Put `content` in the place of what is there, all at once."""
        target = self._path.resolve()
        spare = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            with spare.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(target, spare)
            spare.replace(target)
        finally:
            spare.unlink(missing_ok=True)
        self._file.close()
        self._file = _open(self._path)


def _open(path: Path) -> BinaryIO:
    try:
        file: BinaryIO = path.open("ab", buffering=0)
    except (OSError, ValueError) as error:
        raise UsageError(f"--output {path} cannot be written: {getattr(error, 'strerror', None) or error}.") from error
    try:
        if path.is_file():
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UsageError(f"another layermesh is writing {path}. Wait for it, or give another --output.") from error
    except OSError:
        pass  # a file system without locks
    return file


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return what a line says, if it is one of those written here."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict):
        return None
    kinds = {"index": int, "request": str, "error" if "error" in answer else "model": str}
    return answer if all(isinstance(answer.get(name), kind) for name, kind in kinds.items()) else None
