import gc
import mmap
import random
import threading
import tracemalloc
import weakref
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from layermesh.shared.checkpoints.safetensors_header import read_header
from layermesh.shared.errors import CheckpointError
from layermesh.shared.model.blocks import Block, BlockTensor
from layermesh.shared.model.recipes import Copy
from layermesh.shared.residency import Residency, plan_residency
from layermesh.worker import buffers
from layermesh.worker.buffers import LoadedTensors
from layermesh.worker.files import FileReader
from layermesh.worker.loading import NUM_READERS, BlockLoader
from layermesh.worker.placement import HostPlacement
from layermesh.worker.streaming import Streamer
from tests.running import num_descriptors, wait_until

NUM_LAYERS = 8
LAYER_BYTES = 64 * 64 * 4


class Counting(FileReader):
    """Remembers what was read, and lets reads wait while it is shut."""

    def __init__(self):
        super().__init__()
        self.offsets: list[int] = []
        self.open = threading.Event()
        self.open.set()

    def read_into(self, path, offset, target):
        self.offsets.append(offset)
        assert self.open.wait(10)
        super().read_into(path, offset, target)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "x.safetensors"
    save_file({f"layer {i}": torch.full((64, 64), float(i)) for i in range(NUM_LAYERS)}, path)
    return path


def blocks_of(path: Path) -> list[Block]:
    return [
        Block(name, layer, (BlockTensor(name, (name,), (64, 64), torch.float32, 0),), (Copy(source, name),))
        for layer, (name, source) in enumerate(sorted(read_header(path).items()))
    ]


class Streaming:
    """A streamer over eight layers, of which `num_resident` stay, and what it reads."""

    def __init__(self, path: Path, num_resident: int, placement=None):
        self.files = Counting()
        self.loader = BlockLoader(self.files)
        self.blocks = blocks_of(path)
        self.layer_at = {block.recipes[0].source.offset: block.layer for block in self.blocks}
        self.plan: Residency = plan_residency(self.blocks, (num_resident + 2) * LAYER_BYTES, 0)
        self.streamer = Streamer(self.plan, self.loader, placement or HostPlacement())

    def sweep(self) -> list[int]:
        """Go through all layers once and return the addresses they had."""
        return [self.visit(block) for block in self.blocks]

    def visit(self, block: Block) -> int:
        with self.streamer.hold(block) as tensors:
            tensor = tensors[block.name]
            assert torch.equal(tensor, torch.full((64, 64), float(block.layer)))
            return tensor.data_ptr()

    @property
    def started(self) -> set[int]:
        return {block.layer for block in self.blocks if block.name in self.streamer._present}

    @property
    def num_free(self) -> int:
        """Slots that no block is in."""
        return self.plan.num_slots - len({present.slot for present in self.streamer._present.values()} - {None})

    def layers_read(self) -> list[int]:
        self.settle()
        return [self.layer_at[offset] for offset in self.files.offsets]

    def settle(self) -> None:
        """Wait for what is being read ahead."""
        for present in self.streamer._present.values():
            if present.loading is not None:
                present.loading.wait()

    def close(self) -> None:
        self.files.open.set()
        self.streamer.close()
        self.loader.close()
        self.files.close()


@pytest.fixture
def streaming(weights):
    running = []

    def start(num_resident: int, placement=None) -> Streaming:
        running.append(Streaming(weights, num_resident, placement))
        return running[-1]

    yield start
    for each in running:
        each.close()


@pytest.mark.parametrize("num_resident", [0, 1, 3, 5])
def test_resident_blocks_are_read_once_and_streamed_ones_once_a_sweep(streaming, num_resident):
    stream = streaming(num_resident)
    assert len(stream.plan.resident) == num_resident
    for _ in range(10):
        stream.sweep()
    counts = [stream.layers_read().count(layer) for layer in range(NUM_LAYERS)]
    resident = {block.layer for block in stream.blocks if block.name in stream.plan.resident}
    ahead = stream.started - resident
    assert counts == [1 if layer in resident else 11 if layer in ahead else 10 for layer in range(NUM_LAYERS)]


def test_what_fits_is_read_once_and_needs_no_slots(streaming):
    stream = streaming(NUM_LAYERS)
    addresses = [stream.sweep() for _ in range(5)]
    assert stream.plan.num_slots == 0
    assert sorted(stream.layers_read()) == list(range(NUM_LAYERS))
    assert all(again == addresses[0] for again in addresses)


@pytest.mark.parametrize("num_resident", [0, 3])
def test_the_next_block_to_stream_is_read_while_one_computes(streaming, num_resident):
    stream = streaming(num_resident)
    stream.sweep()
    streamed = [block.layer for block in stream.plan.streamed]
    for block in stream.blocks:
        with stream.streamer.hold(block):
            following = next(layer for layer in [*streamed, *streamed] if layer > block.layer or block.layer >= streamed[-1])
            assert following in stream.started, f"layer {following} rests while layer {block.layer} computes"


def test_the_next_block_is_asked_for_before_this_one_has_come(streaming):
    stream = streaming(0)
    stream.files.open.clear()
    visiting = threading.Thread(target=stream.visit, args=(stream.blocks[0],))
    visiting.start()
    wait_until(lambda: len(stream.files.offsets) == 2)
    stream.files.open.set()
    visiting.join(10)
    assert sorted(stream.layers_read()[:2]) == [0, 1]


@pytest.mark.parametrize("num_resident", [0, 2])
def test_the_steady_state_uses_the_same_memory_again(streaming, num_resident):
    stream = streaming(num_resident)
    seen = {address for _ in range(3) for address in stream.sweep()}
    assert len(seen) == 2 + num_resident
    assert {address for _ in range(20) for address in stream.sweep()} == seen


def test_fifty_sweeps_leave_no_memory_threads_or_descriptors_behind(streaming):
    stream = streaming(2)
    start_all_readers(stream.loader)
    tracemalloc.start()
    for _ in range(5):
        stream.sweep()
    before = footprint(stream)
    for _ in range(50):
        stream.sweep()
    after = footprint(stream)
    tracemalloc.stop()
    assert after["threads and descriptors"] == before["threads and descriptors"]
    assert after["traced"] - before["traced"] < 10_000
    assert after["resident"] - before["resident"] < 2 << 20


def start_all_readers(loader: BlockLoader) -> None:
    barrier = threading.Barrier(NUM_READERS)
    for waiting in [loader._readers.submit(barrier.wait, 10) for _ in range(NUM_READERS)]:
        waiting.result()


def footprint(stream: Streaming) -> dict[str, object]:
    stream.settle()
    stream.files.offsets.clear()
    gc.collect()
    return {
        "threads and descriptors": (threading.active_count(), num_descriptors()),
        "traced": tracemalloc.get_traced_memory()[0],
        "resident": psutil.Process().memory_info().rss,
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_resident", [0, 2])
def test_blocks_in_an_order_that_nobody_foresaw_are_right(streaming, num_resident, seed):
    stream = streaming(num_resident)
    for block in random.Random(seed).choices(stream.blocks, k=60):
        stream.visit(block)
    assert stream.num_free + len(stream.started) >= 2
    stream.sweep()


def test_a_block_that_comes_twice_in_a_row_is_right(streaming):
    stream = streaming(0)
    for block in stream.blocks:
        stream.visit(block)
        stream.visit(block)


def test_closing_in_the_middle_of_a_load_returns_and_leaves_no_thread(streaming):
    stream = streaming(0)
    stream.sweep()
    stream.settle()
    stream.files.open.clear()
    seen = len(stream.files.offsets)
    visiting = threading.Thread(target=stream.visit, args=(stream.blocks[0],))
    visiting.start()
    visiting.join(10)  # it was read ahead
    wait_until(lambda: len(stream.files.offsets) > seen)
    ending = threading.Thread(target=stream.streamer.close)
    ending.start()
    stream.files.open.set()
    ending.join(10)
    assert not ending.is_alive()
    stream.loader.close()
    assert not any(thread.name.startswith("layermesh-reader") for thread in threading.enumerate())


@pytest.mark.parametrize("num_resident", [0, 5], ids=["streamed", "resident"])
def test_a_block_that_cannot_be_read_is_an_error_and_can_be_tried_again(streaming, tmp_path, weights, num_resident):
    path = tmp_path / "x.safetensors"
    path.write_bytes(weights.read_bytes())
    stream = Streaming(path, num_resident)
    path.rename(tmp_path / "away")
    for _ in range(3):
        with pytest.raises(CheckpointError, match=r"x\.safetensors cannot be read"):
            stream.sweep()
    (tmp_path / "away").rename(path)
    for block in stream.blocks:  # what was read ahead without the file still fails, once
        try:
            stream.visit(block)
        except CheckpointError:
            stream.visit(block)
    stream.sweep()
    assert stream.num_free + len(stream.started) == 2
    stream.close()


def test_an_error_of_the_one_who_holds_a_block_gives_the_slot_back(streaming):
    stream = streaming(0)
    for block in [*stream.blocks, *stream.blocks]:
        with pytest.raises(KeyboardInterrupt), stream.streamer.hold(block):
            raise KeyboardInterrupt
    stream.sweep()


def test_interrupted_waits_give_the_slot_back(streaming, monkeypatch):
    stream = streaming(0)
    wait = type(stream.loader.start(stream.blocks[0], buffers.Buffer(LAYER_BYTES))).wait

    def interrupted(_loading):
        raise KeyboardInterrupt

    monkeypatch.setattr("layermesh.worker.loading.Loading.wait", interrupted)
    for block in stream.blocks:
        with pytest.raises(KeyboardInterrupt):
            stream.visit(block)
    monkeypatch.setattr("layermesh.worker.loading.Loading.wait", wait)
    stream.sweep()


def test_a_closed_streamer_keeps_no_memory(streaming, mapped):
    stream = streaming(3)
    stream.sweep()
    stream.sweep()
    assert sum(memory() is not None for memory in mapped) == 5
    stream.streamer.close()
    wait_until(lambda: all(memory() is None for memory in mapped))  # a reader lets go of its last read a moment later


class Elsewhere(HostPlacement):
    """Copies what it is given, as a GPU would."""

    def keep(self, block, buffer):
        return LoadedTensors({key: tensor.clone() for key, tensor in buffer.tensors(block).items()})

    lend = keep


def test_blocks_that_stay_on_a_device_take_no_host_memory(streaming, mapped):
    stream = streaming(3, Elsewhere())
    for _ in range(3):
        stream.sweep()
    stream.settle()
    wait_until(lambda: sum(memory() is not None for memory in mapped) == stream.plan.num_slots)
    assert sorted(set(stream.layers_read())) == list(range(NUM_LAYERS))


@pytest.fixture
def mapped(monkeypatch) -> list[weakref.ref[mmap.mmap]]:
    """The memory that buffers take during the test."""
    taken = []

    def take(*args, **kwargs):
        memory = mapped(*args, **kwargs)
        taken.append(weakref.ref(memory))
        return memory

    mapped = mmap.mmap
    monkeypatch.setattr(buffers.mmap, "mmap", take)
    return taken
