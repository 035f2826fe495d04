from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.model.blocks import PAGE_BYTES, Block, BlockTensor
from layermesh.shared.model.recipes import Copy
from layermesh.worker.extents import Extent, find_extents

PATH = Path("model.safetensors")


@given(st.integers(0, 100_000), st.integers(1, 200_000), st.integers(1, 70_000))
def test_pieces_cover_an_extent_and_meet_at_pages_of_the_file(offset, num_bytes, max_bytes):
    extent = Extent(PATH, offset, 64, num_bytes)
    pieces = list(extent.pieces(max_bytes))
    assert [piece.offset for piece in pieces[1:]] == [piece.offset + piece.num_bytes for piece in pieces[:-1]]
    assert (pieces[0].offset, pieces[-1].offset + pieces[-1].num_bytes) == (offset, offset + num_bytes)
    assert all(piece.place - piece.offset == 64 - offset for piece in pieces)
    assert all(piece.offset % PAGE_BYTES == 0 for piece in pieces[1:])
    assert all(piece.num_bytes <= max(max_bytes, PAGE_BYTES) for piece in pieces)


def block_of(*tensors: tuple[int, int, str]) -> Block:
    """Tensors of 256 bytes, each at an offset in the file and a place in the buffer, stored in an encoding."""
    made = [BlockTensor(str(i), (str(i),), (64,), torch.float32, place) for i, (_, place, _) in enumerate(tensors)]
    sources = [StoredTensor(str(i), encoding, (64,), PATH, offset, 256) for i, (offset, _, encoding) in enumerate(tensors)]
    return Block("x", 0, tuple(made), tuple(Copy(source, source.name) for source in sources))


def test_what_lies_together_is_read_together():
    extents, others = find_extents(block_of((256, 256, "F32"), (0, 0, "F32"), (512, 512, "F32")))
    assert extents == [Extent(PATH, 0, 0, 768)]
    assert others == []


def test_what_lies_apart_in_file_or_buffer_is_read_apart():
    extents, _ = find_extents(block_of((0, 0, "F32"), (256, 512, "F32"), (1000, 768, "F32")))
    assert [(extent.offset, extent.place) for extent in extents] == [(0, 0), (256, 512), (1000, 768)]


def test_what_must_be_decoded_is_left_over():
    extents, others = find_extents(block_of((0, 0, "F32"), (256, 256, "F16")))
    assert len(extents) == 1
    assert [recipe.source.encoding for recipe in others] == ["F16"]
