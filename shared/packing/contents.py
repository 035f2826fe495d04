"""What goes into each file of a pack."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

import torch

from layermesh.shared.checkpoints.packing import PackedTable
from layermesh.shared.checkpoints.tensors import StoredTensor, as_matrix, stored_rows
from layermesh.shared.errors import CheckpointError
from layermesh.shared.model.blocks import Block, BlockTable, BlockTensor
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.packing.block_file import PackedTensor, file_bytes
from layermesh.shared.packing.parameters import ParameterReader, raw_chunks, read_whole
from layermesh.shared.packing.selection import Selection
from layermesh.shared.quant.forms import ROW_MULTIPLE, QuantForm
from layermesh.shared.quant.quants import Quants
from layermesh.shared.quant.rounding import round_weights
from layermesh.shared.quant.tiles import packing_tile

TABLE_ENCODING: Final = "Q8_0"
_TABLE_GROUP: Final = 32
_ROUNDED_ELEMENTS: Final = 2 << 20  # weights that are rounded at a time; that takes about 40 bytes for each
_COPIED_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class PackedFile:
    """One file of a pack and the tensors in it; `embeddings` are the tables among them that are stored encoded."""

    name: str
    tensors: tuple[PackedTensor, ...]
    embeddings: dict[str, PackedTable]

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return file_bytes(self.tensors)


def pack_contents(definition: ModelDefinition, table: BlockTable, selection: Selection) -> list[PackedFile]:
    """Return the files of the pack of `table`: embeddings, what stays, the layers in order, the pieces of the head."""
    tables = list(_tables(table))
    looked_up = {tensor.name for file in tables for tensor in file.tensors}
    files = [*tables, _block_file("rest", table.rest, selection)]
    files += [_block_file(f"layer-{block.layer:05d}", block, selection) for block in table.layers]
    if selection.head is not None and selection.head_form is not None:
        files += _head_files(str(definition.head), table.head, selection.head, selection.head_form, selection.head_bounds)
    elif any(tensor.key not in looked_up for tensor in table.head.tensors):
        files.append(_block_file("head", table.head, selection))
    return [file for file in files if file.tensors]


def _block_file(name: str, block: Block, selection: Selection) -> PackedFile:
    reader = ParameterReader(block.recipes)
    tensors: list[PackedTensor] = []
    for tensor in block.tensors:
        form = selection.forms.get(tensor.key)
        if form is None:
            tensors.append(PackedTensor(tensor.key, tensor.dtype, tensor.shape, partial(_whole, reader, tensor)))
        else:
            rows = (0, tensor.shape[0])
            tensors += _packed(tensor.key.removesuffix(".weight"), tensor, form, rows, reader)
    return PackedFile(f"{name}.safetensors", tuple(tensors), {})


def _head_files(path: str, block: Block, tensor: BlockTensor, form: QuantForm, bounds: tuple[int, ...]) -> Iterator[PackedFile]:
    reader = ParameterReader(block.recipes)
    for number, rows in enumerate(pairwise(bounds)):
        tensors = _packed(f"{path}.pieces.{number}", tensor, form, rows, reader)
        yield PackedFile(f"head-{number:05d}.safetensors", tuple(tensors), {})


def _packed(
    path: str, tensor: BlockTensor, form: QuantForm, rows: tuple[int, int], reader: ParameterReader
) -> list[PackedTensor]:
    matrix = _PackedMatrix(tensor.key, form, rows, tensor.shape[1], reader)
    shape = rows[1] - rows[0], tensor.shape[1]
    return [
        PackedTensor(f"{path}.packed", torch.uint8, form.packed_shape(*shape), matrix.packed),
        PackedTensor(f"{path}.scales", form.scales_dtype, form.scales_shape(*shape), matrix.scales),
    ]


class _PackedMatrix:
    """Rows of one matrix, packed when the first of its tensors is asked for; the scales follow."""

    def __init__(self, key: str, form: QuantForm, rows: tuple[int, int], columns: int, reader: ParameterReader) -> None:
        self._key = key
        self._form = form
        self._rows = rows
        self._step = max(_ROUNDED_ELEMENTS // columns // ROW_MULTIPLE, 1) * ROW_MULTIPLE
        self._reader = reader
        self._scales: list[torch.Tensor] = []

    def packed(self) -> Iterator[torch.Tensor]:
        kept = self._reader.kept_form(self._key) == self._form
        self._scales = []
        for start in range(*self._rows, self._step):
            end = min(start + self._step, self._rows[1])
            quants = self._reader.quants(self._key, start, end) if kept else self._rounded(start, end)
            digits, scales = quants.pack(packing_tile())
            self._scales.append(scales)
            yield digits

    def scales(self) -> Iterator[torch.Tensor]:
        yield torch.cat(self._scales, dim=self._form.rows_of_scales)  # form.scales_shape
        self._scales = []

    def _rounded(self, start: int, end: int) -> Quants:
        try:
            return round_weights(self._reader.weights(self._key, start, end), self._form)
        except ValueError as error:
            raise CheckpointError(f"{self._key} has {error}. The checkpoint is damaged: fetch it again.") from error


def _whole(reader: ParameterReader, tensor: BlockTensor) -> Iterable[torch.Tensor]:
    return [reader.whole(tensor.key, tensor.shape, tensor.dtype)]


def _tables(table: BlockTable) -> Iterator[PackedFile]:
    done: set[StoredTensor] = set()
    for path, stored in table.lookups.items():
        if stored in done:
            continue
        name = f"embed-{len(done):05d}.safetensors"
        done.add(stored)
        yield _table_file(name, f"{path}.weight", as_matrix(stored))


def _table_file(name: str, parameter: str, stored: StoredTensor) -> PackedFile:
    """Rows as they are where they are encoded or of an odd width, else in 8 bits a value."""
    rows, columns = stored.shape
    chunks: Callable[[], Iterable[torch.Tensor]] = partial(raw_chunks, stored, _COPIED_BYTES)
    encoding = stored.encoding
    if stored.dtype is not None:
        if columns % _TABLE_GROUP:
            return PackedFile(name, (PackedTensor(parameter, stored.dtype, stored.shape, chunks),), {})
        encoding, chunks = TABLE_ENCODING, partial(_encoded_rows, stored)
    num_bytes = stored.num_bytes if stored.dtype is None else rows * (columns // _TABLE_GROUP) * (_TABLE_GROUP + 2)
    tensor = PackedTensor(parameter, torch.uint8, (rows, num_bytes // max(rows, 1)), chunks)
    return PackedFile(name, (tensor,), {parameter: PackedTable(encoding, (rows, columns))})


def _encoded_rows(stored: StoredTensor) -> Iterator[torch.Tensor]:
    """Encode a table as Q8_0, some rows at a time."""
    rows, columns = stored.shape
    step = max(_ROUNDED_ELEMENTS // columns, 1)
    for start in range(0, rows, step):
        weights = read_whole(stored_rows(stored, start, min(start + step, rows)), torch.float32)
        groups = weights.view(-1, _TABLE_GROUP)
        scale = groups.abs().amax(dim=1, keepdim=True) / 127
        inverse = torch.where(scale == 0, 0, 1 / scale)
        quants = (groups * inverse).round_().to(torch.int8)
        yield torch.cat([scale.half().view(torch.uint8), quants.view(torch.uint8)], dim=1)
