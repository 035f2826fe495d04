"""Checking files before their blocks are wanted: a hash takes longer than the reading, and one thread cannot share it."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from layermesh.shared.errors import LayermeshError
from layermesh.shared.model.blocks import Block
from layermesh.shared.model.recipes import sources_of
from layermesh.worker.files import FileReader

NUM_CHECKERS: Final = 2
BLOCKS_AHEAD: Final = 3  # more would fall out of a small page cache before they are read


class AheadChecker:
    """Has the files checked of what is read soon, in the order in which it is."""

    def __init__(self, files: FileReader) -> None:
        self._files = files
        self._checkers = ThreadPoolExecutor(NUM_CHECKERS, thread_name_prefix="layermesh-checker")
        self._asked: set[Path] = set()
        self._order: Sequence[Block] = ()
        self._position: dict[str, int] = {}
        self._next = 0  # the first block of the order whose files have not been asked for

    def follow(self, blocks: Sequence[Block]) -> None:
        """Expect `blocks`, one after the other, from the first on."""
        self._order, self._next = blocks, 0
        self._position = {block.name: index for index, block in enumerate(blocks)}
        self._expect_until(BLOCKS_AHEAD)

    def reach(self, block: Block) -> None:
        """Note that `block` is about to be read; once all files have been asked for, that costs nothing."""
        if self._next < len(self._order):
            self._expect_until(self._position.get(block.name, -1) + 1 + BLOCKS_AHEAD)

    def expect(self, paths: Iterable[Path]) -> None:
        """Check files, each once; what is wrong with one comes out when it is read."""
        for path in paths:
            if path not in self._asked:
                self._asked.add(path)
                self._checkers.submit(self._check, path)

    def _expect_until(self, end: int) -> None:
        for block in self._order[self._next : end]:
            self.expect(_paths(block))
        self._next = min(max(self._next, end), len(self._order))

    def close(self) -> None:
        """Drop what has not begun, and wait for the rest."""
        self._checkers.shutdown(wait=True, cancel_futures=True)

    def _check(self, path: Path) -> None:
        with suppress(LayermeshError, OSError):
            self._files.check(path)


def _paths(block: Block) -> Iterable[Path]:
    for recipe in block.recipes:
        for source in sources_of(recipe):
            yield source.path
