"""The byte ranges of files that become a block as they are."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from layermesh.shared.model.blocks import PAGE_BYTES, Block, BlockTensor
from layermesh.shared.model.recipes import Copy, Recipe


@dataclass(frozen=True, slots=True)
class Extent:
    """`num_bytes` at `offset` in the file `path` that go to `place` in the block's buffer, unchanged."""

    path: Path
    offset: int
    place: int
    num_bytes: int

    def continues(self, other: "Extent") -> bool:
        """Whether this begins where `other` ends, in the file and in the buffer."""
        return (self.path, self.offset, self.place) == (
            other.path,
            other.offset + other.num_bytes,
            other.place + other.num_bytes,
        )

    def pieces(self, max_bytes: int) -> Iterator["Extent"]:
        """Cut it at whole pages of the file into pieces of at most `max_bytes`."""
        step = max(max_bytes // PAGE_BYTES, 1) * PAGE_BYTES
        end = self.offset + self.num_bytes
        cuts = [self.offset, *range((self.offset // step + 1) * step, end, step), end]
        for start, stop in itertools.pairwise(cuts):
            yield replace(self, offset=start, place=self.place + start - self.offset, num_bytes=stop - start)


def find_extents(block: Block) -> tuple[list[Extent], list[Recipe]]:
    """Return the ranges to read for `block`, as long as they get, and the recipes that take more than reading."""
    tensors = {tensor.key: tensor for tensor in block.tensors}
    extents, others = [], []
    for recipe in block.recipes:
        if _is_plain(recipe, tensors):
            assert isinstance(recipe, Copy)
            extents.append(_extent(recipe, tensors[recipe.target]))
        else:
            others.append(recipe)
    return _join([extent for extent in extents if extent.num_bytes]), others


def _is_plain(recipe: Recipe, tensors: dict[str, BlockTensor]) -> bool:
    return isinstance(recipe, Copy) and recipe.rows is None and recipe.source.dtype == tensors[recipe.target].dtype


def _extent(copy: Copy, tensor: BlockTensor) -> Extent:
    place = tensor.offset + copy.start * tensor.dtype.itemsize
    return Extent(copy.source.path, copy.source.offset, place, copy.source.num_bytes)


def _join(extents: Sequence[Extent]) -> list[Extent]:
    joined: list[Extent] = []
    for extent in sorted(extents, key=lambda extent: (str(extent.path), extent.offset)):
        if joined and extent.continues(joined[-1]):
            joined[-1] = replace(joined[-1], num_bytes=joined[-1].num_bytes + extent.num_bytes)
        else:
            joined.append(extent)
    return joined
