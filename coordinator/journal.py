"""What an answer is written down as while it is made, so that it can go on after this process has ended."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import msgpack

from layermesh.coordinator.generation import Limits
from layermesh.coordinator.sampling import SamplingParams
from layermesh.shared.errors import ResourceError, UsageError
from layermesh.shared.library.disk import storing

MAX_BYTES: Final = 16 << 20  # of a file: more than any context has tokens
_VERSION: Final = 1
Lost = Callable[[Exception], None]  # told why an answer cannot be resumed


@dataclass(frozen=True, slots=True)
class Beginning:
    """Everything that decides which tokens follow: the same beginning, the same answer.

    `options` are those the model was opened with that change what it computes, and `chunk_tokens` is how much of the prompt
    went through the layers in one call.
    """

    model: str
    options: Mapping[str, Any]
    prompt_ids: tuple[int, ...]
    limits: Limits
    params: SamplingParams
    stop: tuple[str, ...]
    chunk_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return it in plain types."""
        params = {field.name: getattr(self.params, field.name) for field in fields(SamplingParams)}
        limits = {"max_new_tokens": self.limits.max_new_tokens, "stop_ids": sorted(self.limits.stop_ids)}
        return {
            "version": _VERSION,
            "model": self.model,
            "options": dict(self.options),
            "prompt_ids": list(self.prompt_ids),
            "limits": limits,
            "params": {name: value for name, value in params.items() if value != {}},  # most models have no settings of scores
            "stop": list(self.stop),
            "chunk_tokens": self.chunk_tokens,
        }

    @classmethod
    def from_dict(cls, written: Any) -> Self:
        """Read what `to_dict` wrote; raises ValueError, TypeError or KeyError for anything else."""
        if not isinstance(written, dict) or written["version"] != _VERSION:
            raise ValueError("it was not written by this version of layermesh")
        limits = written["limits"]
        return cls(
            model=str(written["model"]),
            options={str(name): value for name, value in dict(written["options"]).items()},
            prompt_ids=_whole(written["prompt_ids"]),
            limits=Limits(_whole([limits["max_new_tokens"]])[0], frozenset(_whole(limits["stop_ids"]))),
            params=SamplingParams(**written["params"]),
            stop=tuple(map(str, written["stop"])),
            chunk_tokens=_whole([written["chunk_tokens"]])[0],
        )


class Journal:
    """The file of one answer: its beginning, then its tokens, each on the disk before anybody sees it.

    Nobody else can read it. It is removed once the answer is whole. Raises DiskFullError and ResourceError where it cannot be
    written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storing(path.parent, MAX_BYTES):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def begin(self, beginning: Beginning) -> None:
        """Write down what was asked."""
        self._write(beginning.to_dict())

    def add(self, token_id: int) -> None:
        """Write down one more token."""
        self._write(token_id)

    def finish(self) -> None:
        """Remove it: there is nothing to go on with."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave it as it is."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, value: Any) -> None:
        with storing(self.path.parent, MAX_BYTES):
            data = memoryview(cast("bytes", msgpack.packb(value)))
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)


class OptionalJournal:
    """A journal that an answer can do without: once it cannot be written, `lost` is told why, and nothing more is written.

    What was written before stays until the answer is whole. Without a path there is no journal. Without `lost` the journal is
    not optional: what `Journal` raises is raised.
    """

    def __init__(self, path: Path | None, lost: Lost | None = None) -> None:
        self._lost = lost
        self._journal: Journal | None = None
        self._is_lost = path is None
        if path is not None:
            with self._trying():
                self._journal = Journal(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._journal is not None:
            self._journal.close()

    def begin(self, beginning: Beginning) -> None:
        """Write down what was asked."""
        if self._journal is not None and not self._is_lost:
            with self._trying():
                self._journal.begin(beginning)
        if self._is_lost:
            self.finish()  # half a beginning is nothing to go on from

    def add(self, token_id: int) -> None:
        """Write down one more token."""
        if self._journal is not None and not self._is_lost:
            with self._trying():
                self._journal.add(token_id)

    def finish(self) -> None:
        """Remove it, also where not all of the answer could be written: there is nothing to go on with."""
        if self._journal is not None:
            with self._trying():
                self._journal.finish()

    @contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except (ResourceError, OSError) as error:
            if self._lost is None:
                raise
            if not self._is_lost:
                self._is_lost = True
                self._lost(error)


def read_journal(path: Path) -> tuple[Beginning, list[int]]:
    """Return what was asked and the tokens there are so far; half a token at the end counts as none.

    What is not whole is cut off, so that more can be appended. Raises UsageError for a file that is no journal.
    """
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has {len(data)} bytes")
        values = _unpacked(data)
        first, end = next(values)
        beginning, tokens = Beginning.from_dict(first), list[int]()
        for value, end in values:  # noqa: B007 - the end of the last one is used below
            tokens += _whole([value])
    except (OSError, ValueError, TypeError, KeyError, StopIteration) as error:
        raise UsageError(f"{path} is not what an answer can go on from: {error or 'it is empty'}. Ask again.") from error
    if end < len(data):
        os.truncate(path, end)
    return beginning, tokens


def _unpacked(data: bytes) -> Iterator[tuple[Any, int]]:
    """Yield the values in `data`, and where each ends."""
    unpacker = msgpack.Unpacker(max_buffer_size=MAX_BYTES, max_str_len=1 << 20, strict_map_key=True)
    unpacker.feed(data)
    while True:
        try:
            value = unpacker.unpack()
        except msgpack.OutOfData:
            return
        yield value, unpacker.tell()


def _whole(values: Sequence[Any]) -> tuple[int, ...]:
    """Return whole numbers, none of them negative; raises ValueError for anything else."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{value!r} is not a whole number")
    return tuple(values)
