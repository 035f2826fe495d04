"""The weight stream: which parameters make up each block, and where they lie in its buffer."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from layermesh.shared.checkpoints.tensors import StoredTensor, stored_rows
from layermesh.shared.model.recipes import Conversion, Copy, Recipe, TransposedCopy, sources_of
from layermesh.shared.spans import LayerSpan

NUM_READERS = 8  # that load a block
READ_BYTES = 4 << 20  # one read; several in flight keep a solid-state disk busy
LEAST_READ_BYTES = 1 << 18  # what a small block's reads may shrink to, so that every reader has one
TRANSPOSED_BYTES = 1 << 20  # of decoded rows that become columns at a time
TRANSPOSING_BYTES = 4 * TRANSPOSED_BYTES  # what a reader needs for that: stored bytes, their values, and those cast
ALIGNMENT = 64  # bytes; what torch's own allocations keep to, and kernels may round differently off it
PAGE_BYTES = 4096  # what reads past the page cache keep to, in the file and in memory
LARGE_BYTES = 1 << 20  # blocks from this size on are laid out to be read in place, for which some room goes unused


@dataclass(frozen=True, slots=True)
class BlockTensor:
    """One tensor of a block: `offset` bytes into its buffer, bound to each of the model's `names` for it.

    `key` is the parameter that recipes call it by; where a head shares the embedding's table, that is the embedding's name.
    """

    key: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def module(self) -> str | None:
        """The dotted name of the module whose own it is; None where several share it."""
        return self.names[0].rpartition(".")[0] if len(self.names) == 1 else None

    @property
    def num_bytes(self) -> int:
        """Size in the buffer, without padding."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Block:
    """One entry of the weight stream: the parameters that come and go together.

    `layer` is the number of the decoder layer, None for anything else. `rows` is the part of the output projection that a
    piece of the head computes; one that `shares_place` hangs where the others do. `module` is the dotted name of the linear
    layer that a piece of a layer is. `modules` are those that could be pieces, in order; `is_core` tells what is left of a
    layer without them, which is small and always stays.
    """

    name: str
    layer: int | None
    tensors: tuple[BlockTensor, ...]
    recipes: tuple[Recipe, ...] = field(repr=False)
    rows: tuple[int, int] | None = None
    shares_place: bool = False
    module: str | None = None
    modules: tuple[str, ...] = ()
    is_core: bool = False

    @property
    def loaded_bytes(self) -> int:
        """Size of the buffer that holds the block ready to compute with."""
        return max((aligned(tensor.offset + tensor.num_bytes) for tensor in self.tensors), default=0)

    @property
    def stored_bytes(self) -> int:
        """Bytes to read from disk for it."""
        return sum(source.num_bytes for source in self._sources())

    @property
    def scratch_bytes(self) -> int:
        """Memory that conversions take beside the buffer while the block is loaded."""
        largest = sorted((self._conversion_bytes(recipe) for recipe in self.recipes), reverse=True)
        is_transposed = any(isinstance(recipe, TransposedCopy) for recipe in self.recipes)
        return sum(largest[:NUM_READERS]) + NUM_READERS * TRANSPOSING_BYTES * is_transposed

    @property
    def read_bytes(self) -> int:
        """Most bytes of it that are read at a time."""
        return min(max(self.stored_bytes // (2 * NUM_READERS), LEAST_READ_BYTES), READ_BYTES)

    @property
    def is_misplaced(self) -> bool:
        """Whether some of it lies in its file where it cannot be read in place from."""
        return any(source.offset % ALIGNMENT for source in self._sources())

    @property
    def needs_decoding(self) -> bool:
        """Whether some of its tensors are not stored the way they are computed with."""
        dtypes = {tensor.dtype for tensor in self.tensors}
        return any(source.dtype not in dtypes for source in self._sources())

    def _sources(self) -> Iterable[StoredTensor]:
        for recipe in self.recipes:
            yield from sources_of(recipe)

    @staticmethod
    def _conversion_bytes(recipe: Recipe) -> int:
        if not isinstance(recipe, Conversion):
            return 0
        return 3 * 4 * max(sum(source.num_elements for source in recipe.sources), recipe.num_made)


@dataclass(frozen=True, slots=True)
class BlockTable:
    """All blocks of a model in the order a sweep needs them, and the tables that are read row by row.

    `rest` is what stays: norms, position tables, parameters that several layers share. `lookups` maps an embedding's dotted
    name to the stored table whose rows it returns. A packed head is stored in `pieces`, and `head` is empty then. `unused` are
    stored tensors that the layers have no place for.
    """

    rest: Block
    layers: tuple[Block, ...]
    head: Block
    lookups: dict[str, StoredTensor]
    pieces: tuple[Block, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def heads(self) -> tuple[Block, ...]:
        """The blocks behind the layers: the head, its pieces, or nothing where it is part of `rest`."""
        return (*((self.head,) if self.head.tensors else ()), *self.pieces)

    def blocks_of(self, span: LayerSpan, *, has_head: bool) -> tuple[Block, ...]:
        """Return the blocks that a stage of `span` streams: its layers, and the head if it has that."""
        layers = self.layers[span.start : span.end]
        return (*layers, *self.heads) if has_head else layers

    @property
    def stream(self) -> tuple[Block, ...]:
        """The blocks of one sweep in order: the layers, then the head."""
        return (*self.layers, *self.heads)


def split_head(head: Block, max_bytes: int) -> tuple[Block, ...]:
    """Return `head` in pieces of at most `max_bytes`, each some rows of the projection; itself if it is small enough.

    A head that is converted while loading, or of which one row is larger than that, is not divided.
    """
    if head.loaded_bytes <= max_bytes or len(head.tensors) != 1 or len(head.recipes) != 1:
        return (head,)
    (tensor,), (recipe,) = head.tensors, head.recipes
    num_rows = tensor.shape[0]
    rows_each = max_bytes // (tensor.num_bytes // num_rows) // ALIGNMENT * ALIGNMENT
    if not isinstance(recipe, Copy) or recipe.rows is not None or rows_each == 0:
        return (head,)
    bounds = [*range(0, num_rows, rows_each), num_rows]
    return tuple(_head_piece(head, tensor, recipe, start, end) for start, end in itertools.pairwise(bounds))


def _head_piece(head: Block, tensor: BlockTensor, recipe: Copy, start: int, end: int) -> Block:
    return replace(
        head,
        name=f"{head.name} [{start}, {end})",
        tensors=(replace(tensor, shape=(end - start, *tensor.shape[1:])),),
        recipes=(replace(recipe, source=stored_rows(recipe.source, start, end)),),
        rows=(start, end),
        shares_place=True,
    )


def aligned(offset: int) -> int:
    """Return the first place from `offset` on where a tensor may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT
