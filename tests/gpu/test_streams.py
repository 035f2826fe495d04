import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from layermesh.shared.residency import Residency
from layermesh.worker.bus import measure_bus
from layermesh.worker.card import CudaCard
from layermesh.worker.cuda import DevicePlacement
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader
from layermesh.worker.streaming import Streamer
from tests.gpu.cards import CARD, needs_card
from tests.worker.test_streaming import blocks_of

pytestmark = needs_card

SIDE = 64  # of the tensors that `blocks_of` describes


class TimedCard(CudaCard):
    """Takes the time of each copy."""

    def __init__(self, device):
        super().__init__(device)
        self.times = []

    def copy(self, target, source, stream, *, wait):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record(stream)
        super().copy(target, source, stream, wait=wait)
        ended.record(stream)
        self.times.append((began, ended))


def seconds(times) -> float:
    torch.cuda.synchronize(CARD)
    return sum(began.elapsed_time(ended) for began, ended in times) / 1e3


class Streaming:
    def __init__(self, blocks, on_host, card):
        self.blocks = blocks
        self.files = FileReader()
        self.loader = BlockLoader(self.files)
        size = max(block.loaded_bytes for block in blocks)
        plan = Residency(tuple(blocks), frozenset(), 2, size, 0, frozenset(on_host))
        self.streamer = Streamer(plan, self.loader, DevicePlacement(card, 2, size))

    def close(self):
        self.streamer.close()
        self.loader.close()
        self.files.close()


@pytest.mark.parametrize("late", ["kernels", "copies", "neither"])
@pytest.mark.parametrize("on_host", [0, 4, 8])
def test_blocks_are_right_however_late_kernels_and_copies_are(tmp_path, monkeypatch, on_host, late):
    save_file({f"layer {i}": torch.full((SIDE, SIDE), float(i)) for i in range(8)}, tmp_path / "x.safetensors")
    blocks = blocks_of(tmp_path / "x.safetensors")
    card = CudaCard(CARD)
    if late == "copies":
        copy = card.copy

        def late_copy(target, source, stream, *, wait):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(2_000_000)
            copy(target, source, stream, wait=wait)

        monkeypatch.setattr(card, "copy", late_copy)
    running = Streaming(blocks, [block.name for block in blocks[:on_host]], card)
    seen = []
    for _ in range(5):
        for block in blocks:
            with running.streamer.hold(block) as tensors:
                if late == "kernels":
                    torch.cuda._sleep(2_000_000)
                seen.append((block.layer, tensors[block.name].sum()))
    assert [float(total) for _, total in seen] == [float(layer * SIDE * SIDE) for layer, _ in seen]
    running.close()


def test_copies_and_kernels_overlap(tmp_path):
    big = 2048
    save_file({f"layer {i}": torch.full((big, big), float(i)) for i in range(8)}, tmp_path / "x.safetensors")
    blocks = [large(block, big) for block in blocks_of(tmp_path / "x.safetensors")]
    card = TimedCard(CARD)
    running = Streaming(blocks, [block.name for block in blocks], card)
    matrix = torch.randn(big, big, device=CARD)

    def sweep(products: int):
        kernels = []
        for block in blocks:
            with running.streamer.hold(block) as tensors:
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                began.record()
                for _ in range(products):
                    torch.mm(matrix, tensors[block.name])
                ended.record()
                kernels.append((began, ended))
        return kernels

    sweep(1)
    sweep(1)
    copying = seconds(card.times[-8 * 2 :]) / 8
    one = seconds(sweep(20)) / 160
    products = max(round(copying / one), 1)
    torch.cuda.synchronize(CARD)
    card.times.clear()
    began = time.perf_counter()
    kernels = [pair for _ in range(4) for pair in sweep(products)]
    torch.cuda.synchronize(CARD)
    wall = time.perf_counter() - began
    apart = seconds(card.times) + seconds(kernels)
    print(f"copies {seconds(card.times):.4f} s, kernels {seconds(kernels):.4f} s, together {wall:.4f} s")
    assert apart > 1.3 * wall
    running.close()


def large(block, side):
    return replace(block, tensors=tuple(replace(tensor, shape=(side, side)) for tensor in block.tensors))


def test_the_bus_is_measured():
    rate = measure_bus(CudaCard(CARD))
    assert 5e8 < rate < 5e11
    torch.cuda.synchronize(CARD)
