"""Bringing a block from its files into a buffer."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from layermesh.shared.checkpoints.decoding import decode
from layermesh.shared.checkpoints.tensors import StoredTensor, as_matrix, stored_rows
from layermesh.shared.model.blocks import NUM_READERS, READ_BYTES, TRANSPOSED_BYTES, Block
from layermesh.shared.model.recipes import Conversion, Copy, Recipe, TransposedCopy
from layermesh.worker.ahead import AheadChecker
from layermesh.worker.buffers import BlockMemory, block_tensors
from layermesh.worker.extents import Extent, find_extents
from layermesh.worker.files import FileReader

STAGING_BYTES = 1 << 20  # what a reader decodes at a time
SCATTERED_BYTES = 1 << 18  # the same for rows that are put in place one by one, by way of a decoded copy


class BlockLoader:
    """Loads blocks with several readers at once; one block's parts are spread over them."""

    def __init__(self, files: FileReader) -> None:
        self._files = files
        self.ahead = AheadChecker(files)
        self._readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="layermesh-reader")
        self._staging = threading.local()
        self._routes: dict[str, _Route] = {}

    def start(self, block: Block, buffer: BlockMemory) -> "Loading":
        """Begin to load `block` into `buffer` and return at once."""
        self.ahead.reach(block)
        route = self._route(block)
        parts = [self._readers.submit(self._fill, piece, buffer) for piece in route.pieces]
        parts += [self._readers.submit(self._make, job, buffer) for job in self._jobs(block, route.others, buffer)]
        return Loading(parts)

    def close(self) -> None:
        """Drop what has not begun and wait for the reads under way."""
        self.ahead.close()
        self._readers.shutdown(wait=True, cancel_futures=True)

    @property
    def passes_page_cache(self) -> bool:
        """Whether what was read of all files so far came past the page cache, but for small pieces and what lay there."""
        return self._files.passes_page_cache

    def read(self, source: StoredTensor, out: torch.Tensor) -> None:
        """Decode a stored tensor into `out`, contiguous and of its shape, on the calling thread.

        Raises CheckpointError where the file cannot be read.
        """
        if source.num_elements == 0:
            return
        if source.dtype == out.dtype:
            self._files.read_into(source.path, source.offset, _memory(out))
            return
        matrix = as_matrix(source)
        for start, end in _row_ranges(matrix, STAGING_BYTES):
            part = stored_rows(matrix, start, end)
            raw = self._stage(part.num_bytes)
            self._files.read_into(part.path, part.offset, _memory(raw))
            decode(raw, part.encoding, out.view(matrix.shape)[start:end])

    def _route(self, block: Block) -> "_Route":
        """How the block comes, found out once: it will come again in every sweep."""
        route = self._routes.get(block.name)
        if route is None or route.block is not block:
            extents, others = find_extents(block)
            route = _Route(block, [piece for extent in extents for piece in extent.pieces(block.read_bytes)], others)
            self._routes[block.name] = route
        return route

    def _fill(self, piece: Extent, buffer: BlockMemory) -> None:
        buffer.wait_until_free()
        self._files.read_into(piece.path, piece.offset, _memory(buffer.bytes[piece.place : piece.place + piece.num_bytes]))

    @torch.inference_mode()
    def _make(self, job: Callable[[], None], buffer: BlockMemory) -> None:
        buffer.wait_until_free()
        job()

    def _jobs(self, block: Block, recipes: Sequence[Recipe], buffer: BlockMemory) -> Iterator[Callable[[], None]]:
        tensors = block_tensors(block, buffer.bytes) if recipes else {}
        for recipe in recipes:
            if isinstance(recipe, Conversion):
                yield partial(self._convert, recipe, tensors)
            elif isinstance(recipe, TransposedCopy):
                yield from self._transposals(recipe, tensors[recipe.target])
            else:
                yield from self._copies(recipe, tensors[recipe.target])

    def _copies(self, copy: Copy, tensor: torch.Tensor) -> Iterator[Callable[[], None]]:
        source = as_matrix(copy.source)
        if copy.rows is not None:
            for start, end in _row_ranges(source, SCATTERED_BYTES):
                part = stored_rows(source, start, end)
                yield partial(self._scatter, part, tensor.view(-1, source.shape[1]), copy.rows[start:end])
            return
        target = tensor.view(-1)[copy.start : copy.start + source.num_elements].view(source.shape)
        for start, end in _row_ranges(source, READ_BYTES):
            yield partial(self.read, stored_rows(source, start, end), target[start:end])

    def _transposals(self, copy: TransposedCopy, tensor: torch.Tensor) -> Iterator[Callable[[], None]]:
        for part in copy.parts(TRANSPOSED_BYTES):
            yield partial(self._transpose, copy, part, tensor)

    def _transpose(self, copy: TransposedCopy, part: tuple[int, int, int], tensor: torch.Tensor) -> None:
        stored = copy.stored(*part)
        sizes = [source.num_bytes for source in stored]
        raw = torch.split_with_sizes(self._stage(sum(sizes)), sizes)
        for source, memory in zip(stored, raw, strict=True):
            self._files.read_into(source.path, source.offset, _memory(memory))
        copy.place(raw, part, tensor)

    def _scatter(self, source: StoredTensor, matrix: torch.Tensor, rows: torch.Tensor) -> None:
        decoded = torch.empty(source.shape, dtype=matrix.dtype)
        self.read(source, decoded)
        matrix[rows] = decoded

    def _convert(self, conversion: Conversion, tensors: Mapping[str, torch.Tensor]) -> None:
        wanted = [name for name in conversion.targets if name in tensors]
        dtype = conversion.dtype or tensors[wanted[0]].dtype
        decoded = [torch.empty(source.shape, dtype=dtype) for source in conversion.sources]
        for source, out in zip(conversion.sources, decoded, strict=True):
            self.read(source, out)
        converted = conversion.combine(decoded)
        for name in wanted:
            tensors[name].copy_(converted[name])

    def _stage(self, num_bytes: int) -> torch.Tensor:
        staging = getattr(self._staging, "memory", None)
        if staging is None or len(staging) < num_bytes:
            staging = self._staging.memory = torch.empty(max(num_bytes, STAGING_BYTES), dtype=torch.uint8)
        return staging[:num_bytes]


@dataclass(frozen=True, slots=True)
class _Route:
    """What is read straight into place for `block`, piece by piece, and the recipes that take more than that."""

    block: Block
    pieces: list[Extent]
    others: list[Recipe]


class Loading:
    """A block on its way into a buffer."""

    def __init__(self, parts: list[Future[None]]) -> None:
        self._parts = parts

    def wait(self) -> None:
        """Return when the block is there; raises what its reading raised."""
        for part in self._parts:
            part.result()

    @property
    def is_done(self) -> bool:
        """Whether the block is there."""
        return all(part.done() and part.exception() is None for part in self._parts)

    def abandon(self) -> None:
        """Cancel what has not begun and wait for the rest, so that the buffer is free for another block."""
        for part in self._parts:
            part.cancel()
        for part in self._parts:
            if not part.cancelled():
                part.exception()


def _row_ranges(matrix: StoredTensor, max_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut a stored matrix into ranges of whole rows, each of at most `max_bytes` or one row."""
    num_rows = matrix.shape[0]
    rows_each = max(max_bytes * num_rows // max(matrix.num_bytes, 1), 1)
    for start in range(0, num_rows, rows_each):
        yield start, min(start + rows_each, num_rows)


def _memory(tensor: torch.Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
