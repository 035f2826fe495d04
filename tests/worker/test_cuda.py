import gc
import random
import weakref

import pytest
import torch
from safetensors.torch import save_file

from layermesh.shared.residency import Residency
from layermesh.worker import placement
from layermesh.worker.bus import NUM_COPIES, measure_bus
from layermesh.worker.cuda import CardBuffer, DevicePlacement
from layermesh.worker.loading import BlockLoader
from layermesh.worker.streaming import Streamer
from tests.running import wait_until
from tests.worker.fake_card import FakeCard, WatchedPlacement, WatchedReader
from tests.worker.test_streaming import LAYER_BYTES, NUM_LAYERS, blocks_of


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "x.safetensors"
    save_file({f"layer {i}": torch.full((64, 64), float(i)) for i in range(NUM_LAYERS)}, path)
    return path


class OnCard:
    """A streamer over eight layers to a card: some resident there, some on the host, the others on disk."""

    def __init__(self, path, num_resident=0, num_on_host=0, card=None, after=None):
        self.card = card or FakeCard()
        self.files = WatchedReader(self.card)
        self.loader = BlockLoader(self.files)
        self.blocks = blocks_of(path)
        names = [block.name for block in self.blocks]
        resident, on_host = names[:num_resident], names[num_resident : num_resident + num_on_host]
        num_slots = 0 if num_resident == NUM_LAYERS else 2
        self.plan = Residency(
            tuple(self.blocks), frozenset(resident), num_slots, LAYER_BYTES * (num_slots > 0), 0, frozenset(on_host)
        )
        remains = after and after.streamer.hand_over(self.plan)
        self.placement = WatchedPlacement(self.card, self.plan.num_slots, self.plan.slot_bytes)
        self.streamer = Streamer(self.plan, self.loader, self.placement, remains)

    def visit(self, block):
        with self.streamer.hold(block) as tensors:
            assert torch.equal(tensors[block.name], torch.full((64, 64), float(block.layer)))
            self.card.compute(tensors[block.name])

    def sweep(self, times=1):
        for block in self.blocks * times:
            self.visit(block)

    def close(self):
        self.streamer.close()
        self.loader.close()
        self.files.close()


@pytest.fixture
def on_card(weights):
    running = []

    def start(*args, **kwargs):
        running.append(OnCard(weights, *args, **kwargs))
        return running[-1]

    yield start
    for each in running:
        each.close()


LAYOUTS = [(0, 0), (3, 0), (0, 3), (2, 3), (0, NUM_LAYERS), (NUM_LAYERS - 1, 1), (NUM_LAYERS, 0)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nothing_is_overwritten_that_may_still_be_in_use(on_card, layout):
    running = on_card(*layout)
    running.sweep(6)
    assert running.card.races == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layout", LAYOUTS[:4], ids=str)
def test_blocks_in_an_order_that_nobody_foresaw_are_right(on_card, layout, seed):
    running = on_card(*layout)
    for block in random.Random(seed).choices(running.blocks, k=60):
        running.visit(block)
    running.sweep()
    assert running.card.races == []


@pytest.mark.parametrize("left_out", ["disk", "copy", "kernel"])
def test_the_fake_notices_when_somebody_does_not_wait(on_card, monkeypatch, left_out):
    running = on_card(2, 3)
    if left_out == "disk":
        monkeypatch.setattr(CardBuffer, "wait_until_free", lambda _buffer: None)
    elif left_out == "copy":
        monkeypatch.setattr(type(running.placement._copies), "wait_event", lambda *_: None)
    else:
        current = running.card.current_stream()
        monkeypatch.setattr(current, "wait_event", lambda _event: None)
    running.sweep(4)
    assert running.card.races


@pytest.mark.parametrize("fails_after", range(1, 16))
def test_an_interrupted_copy_loses_no_slot_and_spoils_nothing(on_card, fails_after):
    running = on_card(2, 3, card=FakeCard(fails_after=fails_after))
    with pytest.raises(KeyboardInterrupt):
        running.sweep(3)
    running.sweep(3)
    assert running.card.races == []
    assert len(running.placement._free) + len(running.placement._lent) == 2


def test_the_next_block_travels_while_one_computes(on_card):
    running = on_card(0, NUM_LAYERS)
    running.sweep()
    for block in running.blocks:
        with running.streamer.hold(block):
            following = running.blocks[(block.layer + 1) % NUM_LAYERS]
            assert list(running.placement._lent) == [block.name, following.name]


def test_blocks_computed_on_the_host_are_not_copied(on_card):
    running = on_card(0, NUM_LAYERS)
    running.sweep()
    chosen = frozenset(block.name for block in running.blocks[::2])
    running.streamer.host_computed = chosen
    running.sweep()
    before = len(running.card.copies)
    running.sweep()
    assert len(running.card.copies) - before == NUM_LAYERS // 2
    for block in running.blocks:
        with running.streamer.hold(block) as tensors:
            lies_on_host = tensors[block.name].data_ptr() == running.streamer._present[block.name].memory.bytes.data_ptr()
            assert lies_on_host == (block.name in chosen)
    assert running.card.races == []


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_stays_on_the_card_passes_through_two_buffers(on_card, layout):
    running = on_card(*layout)
    running.sweep(2)
    assert running.card.num_pins == 2 + layout[1]
    num_kept = 0 if layout[0] == NUM_LAYERS else 2 + layout[1]
    wait_until(lambda: running.card.pinned_bytes == num_kept * LAYER_BYTES)


def test_a_block_larger_than_the_buffers_has_one_of_its_own_while_it_is_read(weights):
    running = OnCard(weights, 1)
    running.streamer._slot_bytes = LAYER_BYTES - 1
    running.visit(running.blocks[0])
    wait_until(lambda: running.card.pinned_bytes == 2 * LAYER_BYTES)
    assert running.card.num_pins == 3
    running.close()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_closing_gives_all_memory_back(weights, layout):
    running = OnCard(weights, *layout)
    running.sweep()
    running.sweep()
    card = running.card
    assert card.allocated_bytes > 0
    running.close()
    del running
    gc.collect()
    assert (card.allocated_bytes, card.pinned_bytes) == (0, 0)


def test_memory_that_cannot_be_pinned_is_used_as_it_is(on_card):
    running = on_card(1, 4, card=FakeCard(pins=3 * LAYER_BYTES))
    running.sweep(4)
    assert running.card.races == []
    assert running.card.num_pins == 3
    assert running.streamer.num_unpinned_bytes == 3 * LAYER_BYTES
    assert running.card.num_waits > 0


def test_a_streamer_that_follows_takes_what_stays_and_never_has_the_slots_of_both(weights):
    first = OnCard(weights, 4, 2)
    first.sweep()
    dropped = weakref.ref(first.streamer._placed["layer 3"])
    pinned = first.streamer._present["layer 5"].memory.bytes.data_ptr()
    del first.card.copies[:]
    second = OnCard(weights, 3, 3, card=first.card, after=first)
    assert dropped() is None
    assert list(second.streamer._present) == ["layer 4", "layer 5"]
    assert second.streamer._present["layer 5"].memory.bytes.data_ptr() == pinned
    second.sweep()
    assert {block.layer for block in second.blocks if second.files.has_read(block)} == {3, 6, 7}
    assert second.card.races == []
    assert second.card.peak_bytes == 6 * LAYER_BYTES
    second.close()
    first.close()


def test_a_card_that_has_failed_can_be_closed(weights, monkeypatch):
    running = OnCard(weights, 3, 2)
    running.sweep()

    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for name in ("wait_for", "unpin"):
        monkeypatch.setattr(running.card, name, fail)
    running.loader.close()
    running.streamer.close()
    gc.collect()
    assert running.card.allocated_bytes == 0


def test_a_bus_is_measured_with_memory_that_goes_back():
    card = FakeCard()
    assert measure_bus(card, 1 << 20) > 0
    gc.collect()
    assert len(card.copies) == 1 + NUM_COPIES
    assert (card.allocated_bytes, card.pinned_bytes, card.races) == (0, 0, [])


def test_a_processor_needs_no_bus_and_no_card():
    plan = Residency((), frozenset(), 0, 0, 0)
    assert placement.bus_rate(torch.device("cpu"), 1 << 30) is None
    assert not placement.place_on(torch.device("cpu"), plan).keeps_apart
    assert DevicePlacement.keeps_apart
