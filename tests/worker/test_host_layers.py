import gc
from functools import cache

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from layermesh.coordinator.pipeline import Pipeline
from layermesh.shared.errors import ResourceError
from layermesh.shared.footprint import Footprint
from layermesh.shared.frames import LayerOutput, SessionId
from layermesh.shared.model.caches import PreallocatedLayer
from layermesh.shared.residency import LOOK_AHEAD
from layermesh.shared.spans import LayerSpan
from layermesh.worker import stage as stages
from layermesh.worker.host_layers import NUM_TRIALS, HostLayers, move_attributes, moved
from layermesh.worker.stage import Stage
from tests.architectures.runs import answer_greedily, difference
from tests.architectures.tiny import PROMPT
from tests.running import PLENTY, SIZE, open_model, opened
from tests.worker.fake_card import FakeCard, WatchedPlacement, WatchedReader

CPU, META = torch.device("cpu"), torch.device("meta")
LENGTH = 10

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def resident(folder, prompt=tuple(PROMPT)):
    """What a stage answers that has everything in the processor's memory."""
    with opened(folder, budget_bytes=PLENTY) as stage:
        return answer_greedily(Pipeline([stage]), [prompt], LENGTH)[0]


class Carded:
    """A stage whose layers come by way of a card that is only pretended: what it computes, it computes on the processor."""

    def __init__(self, folder, monkeypatch, *, spare_bytes=0, host_bytes=PLENTY, bus_rate=None, card=None, fast=False):
        self.card = card or FakeCard()
        monkeypatch.setattr(stages, "FileReader", lambda: WatchedReader(self.card))
        monkeypatch.setattr(stages, "place_on", lambda _, plan: WatchedPlacement(self.card, plan.num_slots, plan.slot_bytes))
        self.definition, table = open_model(folder, fast_path=fast)
        span = LayerSpan(0, self.definition.num_layers)
        slots = (1 + LOOK_AHEAD) * max(block.loaded_bytes for block in table.layers)
        self.working_bytes = Footprint.of(self.definition, span, table).working_bytes(SIZE)
        budget = self.working_bytes + slots + spare_bytes
        self.stage = Stage(self.definition, table, span, CPU, budget, "--device-memory", host_bytes)
        self.stage.host_layers.bus_rate = bus_rate
        self.budget_bytes = budget - self.working_bytes
        self.stage.reserve(SessionId("first"), SIZE)

    def answers(self, *prompts):
        answers = answer_greedily(Pipeline([self.stage]), prompts, LENGTH)
        for number in range(len(prompts)):
            self.stage.release(SessionId(f"session {number}"))
        return answers


@pytest.fixture
def carded(monkeypatch):
    running = []

    def start(folder, **options):
        running.append(Carded(folder, monkeypatch, **options))
        return running[-1]

    yield start
    for each in running:
        each.stage.close()
        assert each.card.races == []


HOST_BYTES = {"everything on the host": PLENTY, "some on the host": 420_000, "two buffers": 110_000}


@pytest.mark.parametrize("host_bytes", HOST_BYTES.values(), ids=HOST_BYTES)
@pytest.mark.parametrize("spare_bytes", [0, 60_000, PLENTY], ids=["nothing resident", "some resident", "all resident"])
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gemma3_text", "falcon_mamba"])
def test_answers_by_way_of_a_card_are_the_same(tiny, carded, model_type, spare_bytes, host_bytes):
    folder = tiny(model_type)
    expected = resident(folder)
    running = carded(folder, spare_bytes=spare_bytes, host_bytes=max(host_bytes, least_host_bytes(folder)))
    assert difference(running.answers(PROMPT)[0], expected) == ""
    assert running.card.peak_bytes <= running.budget_bytes
    plan = running.stage.residency
    assert running.card.pinned_bytes <= plan.host_bytes - plan.host_working_bytes


def least_host_bytes(folder) -> int:
    _, table = open_model(folder)
    return 3 * max(block.loaded_bytes for block in table.stream)


@pytest.mark.parametrize("host_rate", [None, 1e3, 1e6, 1e15], ids=["unknown", "slow", "as fast", "fast"])
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gemma3_text", "falcon_mamba", "gpt_neo"])
def test_layers_computed_on_the_host_give_the_same(tiny, carded, model_type, host_rate):
    folder = tiny(model_type)
    running = carded(folder, bus_rate=1e6)
    layers = running.stage.host_layers
    if host_rate is not None:
        layers._rates = [host_rate] * NUM_TRIALS
    chosen = []
    choose = layers.choose
    layers.choose = lambda *args: chosen.append(choose(*args)) or chosen[-1]
    assert difference(running.answers(PROMPT)[0], resident(folder)) == ""
    num_layers = running.definition.num_layers
    if model_type in ("falcon_mamba", "gpt_neo"):  # a state, and a mask that lies on the device
        assert set(chosen) == {frozenset()}
    elif host_rate is None:
        assert chosen[0] == frozenset()  # a prompt
        assert [len(names) for names in chosen[1 : 1 + NUM_TRIALS]] == [1] * NUM_TRIALS
        assert layers.rate is not None
    else:
        assert {1e3: 0, 1e6: num_layers // 2, 1e15: num_layers}[host_rate] == len(chosen[-1])


@pytest.mark.parametrize("host_rate", [1e3, 1e15], ids=["slow", "fast"])
def test_lean_layers_are_computed_on_the_host_too(tiny, carded, host_rate):
    running = carded(tiny("llama"), bus_rate=1e6, fast=True)
    running.stage.host_layers._rates = [host_rate] * NUM_TRIALS
    (answer,) = running.answers(PROMPT)
    assert answer.token_ids == resident(tiny("llama")).token_ids
    chosen = running.stage.host_layers.choose(running.stage.residency, 1)
    assert len(chosen) == (running.definition.num_layers if host_rate > 1e6 else 0)


def test_sessions_that_share_a_sweep_share_the_choice(tiny, carded):
    prompts = [PROMPT, PROMPT[:3], [99]]
    running = carded(tiny("llama"), bus_rate=1e6)
    running.stage.host_layers._rates = [1e15] * NUM_TRIALS
    for prompt, ours in zip(prompts, running.answers(*prompts), strict=True):
        assert difference(ours, resident(tiny("llama"), tuple(prompt))) == ""


def test_without_room_for_its_caches_nothing_is_computed_on_the_host(tiny, carded):
    running = carded(tiny("llama"), bus_rate=1e6, host_bytes=HOST_BYTES["some on the host"])
    assert running.stage.residency.on_host
    assert running.stage.host_layers.choose(running.stage.residency, 1) == frozenset()


def test_a_closed_stage_leaves_nothing_on_the_card(tiny, carded):
    running = carded(tiny("llama"), spare_bytes=60_000)
    running.answers(PROMPT)
    running.stage.close()
    gc.collect()
    assert (running.card.allocated_bytes, running.card.pinned_bytes) == (0, 0)


def test_an_interrupted_sweep_leaves_a_stage_that_goes_on(tiny, carded):
    running = carded(tiny("llama"), card=FakeCard(fails_after=3))
    with pytest.raises(KeyboardInterrupt):
        running.answers(PROMPT)
    assert difference(running.answers(PROMPT)[0], resident(tiny("llama"))) == ""


def test_another_layout_is_made_when_the_one_before_is_gone(tiny, carded):
    running = carded(tiny("llama"), spare_bytes=150_000)
    running.answers(PROMPT)
    peak = running.card.peak_bytes
    before = running.stage.residency
    running.stage.reserve(SessionId("second"), SIZE)
    assert len(running.stage.residency.resident) < len(before.resident)
    assert difference(running.answers(PROMPT)[0], resident(tiny("llama"))) == ""
    assert running.card.peak_bytes == peak


def test_a_layout_that_finds_no_memory_is_a_matter_of_resources_and_can_be_tried_again(tiny, carded, monkeypatch):
    running = carded(tiny("llama"), spare_bytes=150_000)
    running.answers(PROMPT)
    allocate = running.card.allocate

    def refuse(_num_bytes):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(running.card, "allocate", refuse)
    with pytest.raises(ResourceError, match="ran out of memory"):
        running.stage.reserve(SessionId("second"), SIZE)
    monkeypatch.setattr(running.card, "allocate", allocate)
    running.stage.reserve(SessionId("first"), SIZE)
    assert difference(running.answers(PROMPT)[0], resident(tiny("llama"))) == ""


def test_the_user_is_told_of_memory_that_cannot_be_pinned(tiny, carded):
    running = carded(tiny("llama"), card=FakeCard(pins=0))
    running.answers(PROMPT)
    (notice,) = running.stage.notices
    assert "no more memory be pinned" in notice
    assert carded(tiny("llama")).stage.notices == ()


def test_tensors_are_moved_wherever_they_are():
    tensor, cache = torch.ones(2), DynamicCache()
    value = {"mask": None, "position_embeddings": (tensor, tensor), "list": [tensor, 3], "cache": cache, "flag": True}
    there = moved(value, META)
    assert there["position_embeddings"][0].device == there["list"][0].device == META
    assert isinstance(there["position_embeddings"], tuple)
    assert (there["cache"], there["flag"], there["mask"], there["list"][1]) == (cache, True, None, 3)
    assert moved(value, CPU)["list"][0] is tensor


def test_a_layer_of_a_cache_moves_whole():
    layer = DynamicSlidingWindowLayer(4)
    for _ in range(6):
        layer.update(torch.ones(1, 2, 1, 8), torch.ones(1, 2, 1, 8))
    move_attributes(layer, META)
    assert {layer.keys.device, layer.values.device, layer.device, layer._sliding_window_tensor.device} == {META}
    assert layer.get_seq_length() == 6
    keys = layer.keys
    move_attributes(layer, META)
    assert layer.keys is keys


def test_room_for_keys_and_values_moves_with_them():
    layer = PreallocatedLayer(8)
    for _ in range(3):
        layer.update(torch.ones(1, 2, 1, 8), torch.ones(1, 2, 1, 8))
    move_attributes(layer, META)
    keys, _ = layer.update(torch.ones(1, 2, 1, 8, device=META), torch.ones(1, 2, 1, 8, device=META))
    assert (keys.device, keys.shape[-2], layer._key_room.shape[-2]) == (META, 4, 8)


def test_caches_of_layers_that_run_elsewhere_come_back(tiny):
    definition, table = open_model(tiny("llama"))
    layers = HostLayers(definition, table.layers, META, 1.0)
    cache = DynamicCache()
    for index in range(2):
        cache.update(torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 8), index)
    layers.bring_cache(cache, table.layers[1])
    assert [layer.keys.device for layer in cache.layers] == [CPU, META]
    layers.bring_cache(None, table.layers[0])
    layers.bring_cache(cache, table.layers[3])  # which has not run yet


def test_hidden_states_come_to_the_device():
    output = LayerOutput((torch.ones(1, 2, 4), None), bare=False)
    there = output.to(META)
    assert there.tensors[0].device == META
    assert (there.tensors[1], there.bare) == (None, False)
