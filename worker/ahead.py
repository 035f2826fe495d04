"""Checking files before their blocks are wanted: a hash takes longer than the reading, and one thread cannot share it."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from layermesh.shared.errors import LayermeshError
from layermesh.shared.model.blocks import Block
from layermesh.shared.model.recipes import Copy
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

    def follow(self, blocks: Sequence[Block]) -> None:
        """Expect `blocks`, one after the other, from the first on."""
        self._order = blocks
        self._position = {block.name: index for index, block in enumerate(blocks)}
        for block in blocks[:BLOCKS_AHEAD]:
            self.expect(_paths(block))

    def reach(self, block: Block) -> None:
        """Note that `block` is about to be read."""
        position = self._position.get(block.name)
        if position is not None:
            for following in self._order[position + 1 : position + 1 + BLOCKS_AHEAD]:
                self.expect(_paths(following))

    def expect(self, paths: Iterable[Path]) -> None:
        """Check files, each once; what is wrong with one comes out when it is read."""
        for path in paths:
            if path not in self._asked:
                self._asked.add(path)
                self._checkers.submit(self._check, path)

    def close(self) -> None:
        """Drop what has not begun, and wait for the rest."""
        self._checkers.shutdown(wait=True, cancel_futures=True)

    def _check(self, path: Path) -> None:
        with suppress(LayermeshError, OSError):
            self._files.check(path)


def _paths(block: Block) -> Iterable[Path]:
    for recipe in block.recipes:
        for source in (recipe.source,) if isinstance(recipe, Copy) else recipe.sources:
            yield source.path
