"""Blocks of different sizes that pass through the same two slots."""

import itertools
import random
from contextlib import closing

import pytest
import torch
from safetensors.torch import save_file

from layermesh.shared.checkpoints.safetensors_header import read_header
from layermesh.shared.model.blocks import Block, BlockTensor
from layermesh.shared.model.recipes import Copy
from layermesh.shared.residency import Residency
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader
from layermesh.worker.placement import HostPlacement
from layermesh.worker.streaming import Streamer
from tests.running import wait_until


@pytest.mark.parametrize("seed", range(8))
def test_small_blocks_that_follow_each_other_share_a_slot(tmp_path, seed):
    chance = random.Random(seed)
    sizes = [chance.choice([64, 640, 2048, 4096]) * 16 for _ in range(12)]  # elements
    save_file({f"{i:02}": torch.full((size,), float(i)) for i, size in enumerate(sizes)}, tmp_path / "x.safetensors")
    blocks = [
        Block(name, layer, (BlockTensor(name, (name,), source.shape, torch.float32, 0),), (Copy(source, name),))
        for layer, (name, source) in enumerate(sorted(read_header(tmp_path / "x.safetensors").items()))
    ]
    slot_bytes = max(block.loaded_bytes for block in blocks)
    with closing(FileReader()) as files, closing(BlockLoader(files)) as loader:
        streamer = Streamer(Residency(tuple(blocks), frozenset(), 2, slot_bytes, 0), loader, HostPlacement())
        most = 0
        for number in range(40):
            block = blocks[number % len(blocks)] if number < 30 else chance.choice(blocks)
            with streamer.hold(block) as tensors:
                present = streamer._present
                lie = sorted((each.slot, each.end - len_of(name, blocks), each.end) for name, each in present.items())
                assert all(a[0] != b[0] or a[2] <= b[1] for a, b in itertools.pairwise(lie)), "two lie in the same place"
                assert all(start >= 0 and end <= slot_bytes for _, start, end in lie)
                assert number >= 30 or blocks[(block.layer + 1) % len(blocks)].name in present, "the next one is not on its way"
                wait_until(lambda: all(each.is_read for each in streamer._present.values()))
                assert torch.equal(tensors[block.name], torch.full((sizes[block.layer],), float(block.layer)))
                most = max(most, len(present))
        streamer.close()
    assert most > 2 or min(sizes[i] + sizes[i - 1] for i in range(len(sizes))) * 4 > slot_bytes


def len_of(name, blocks):
    return next(block.loaded_bytes for block in blocks if block.name == name)
