"""The parts in which a model travels: what they are called, and how tensors lie in them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from layermesh.shared.model.blocks import ALIGNMENT, LARGE_BYTES, PAGE_BYTES

CHUNK_BYTES: Final = 1 << 20  # what a part is read, sent and resumed by; half as much is a tenth slower
REST: Final = "rest"
EMBED: Final = "embed"
HEAD: Final = "head"
PART_NAME: Final = re.compile(rf"{REST}|{EMBED}|{HEAD}|layer (0|[1-9][0-9]{{0,5}})")


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor `num_bytes` long that lies `offset` bytes into its part."""

    name: str
    offset: int
    num_bytes: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.num_bytes


@dataclass(frozen=True, slots=True)
class Stretch:
    """`num_bytes` of a part: of a tensor, from `start` in it on, or of the zeros between two, where `name` is None."""

    name: str | None
    start: int
    num_bytes: int


def lay_out(tensors: Iterable[tuple[str, int]]) -> tuple[Placed, ...]:
    """Return where tensors, given with their bytes, lie in a part: in this order, large ones at whole pages of the file.

    So they can be read straight into place, past the page cache.
    """
    placed: list[Placed] = []
    end = 0
    for name, num_bytes in tensors:
        alignment = PAGE_BYTES if num_bytes >= LARGE_BYTES else ALIGNMENT
        placed.append(Placed(name, -(-end // alignment) * alignment, num_bytes))
        end = placed[-1].end
    return tuple(placed)


def chunks(layout: Sequence[Placed]) -> Iterator[list[Stretch]]:
    """Give what each chunk of a part consists of, in order; all but the last are whole."""
    chunk: list[Stretch] = []
    room = CHUNK_BYTES
    for whole in _stretches(layout):
        left = whole
        while left.num_bytes:
            taken = min(left.num_bytes, room)
            chunk.append(replace(left, num_bytes=taken))
            left = replace(left, start=left.start + taken, num_bytes=left.num_bytes - taken)
            room -= taken
            if room == 0:
                yield chunk
                chunk, room = [], CHUNK_BYTES
    if chunk:
        yield chunk


def _stretches(layout: Sequence[Placed]) -> Iterator[Stretch]:
    end = 0
    for placed in layout:
        yield Stretch(None, 0, placed.offset - end)
        yield Stretch(placed.name, 0, placed.num_bytes)
        end = placed.end
