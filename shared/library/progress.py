"""How a download, or whatever else takes its time, tells how far it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Somebody who watches; `start` and `finish` come in pairs, whatever happens in between."""

    def start(self, what: str, total_bytes: int | None) -> None:
        """Begin on `what`, such as "fetching NAME", which has `total_bytes` bytes (None: nobody knows)."""

    def advance(self, num_bytes: int) -> None:
        """Note `num_bytes` more bytes; a negative number when a file has to start over."""

    def finish(self) -> None:
        """End, complete or not."""


Advance = Callable[[int], None]


@contextmanager
def watched(progress: Progress | None, what: str, total_bytes: int | None) -> Iterator[Advance]:
    """Report work on `total_bytes` bytes to `progress`; yields the function that takes each number of bytes."""
    if progress is None:
        yield lambda _: None
        return
    progress.start(what, total_bytes)
    try:
        yield progress.advance
    finally:
        progress.finish()
