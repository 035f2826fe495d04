from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from layermesh.coordinator.planning.machines import Machine
from layermesh.coordinator.planning.model_cost import LayerCost, ModelCost
from layermesh.coordinator.planning.span_sizes import SpanTable
from layermesh.coordinator.planning.stage_cost import StageCosts, stage_costs, stage_floor
from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import BudgetError
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.model.blocks import Block, BlockTensor
from layermesh.shared.model.recipes import Copy
from layermesh.shared.residency import HostRoom, plan_residency
from tests.coordinator.planning.meshes import GB, MB, machine, uniform

ROW_BYTES = 64


def costs_of(one: Machine, model: ModelCost, start: int, end: int, *, has_head: bool = False) -> StageCosts:
    return stage_costs(one, model, SpanTable(model).sizes(np.array(start), np.array(end), has_head=has_head))


def with_card(device: float, host: float) -> Machine:
    """Return a machine with memory in GB, a bus of 10 GB/s and a disk of 1 GB/s; its card goes through 200 GB/s."""
    return Machine("den-pc", MachineProfile(round(device * GB), round(host * GB), 10.0 * GB, GB, {"int4": 200.0 * GB}))


def test_what_fits_is_only_computed_with():
    attic = replace(machine("attic", 5, compute=20), layer_seconds=1e-3, slowdown=2.0)
    costs = costs_of(attic, uniform(), 2, 12 - 2, has_head=True)
    assert (costs.memory_bytes, costs.resident_bytes, costs.streamed_bytes) == (3400 * MB, 3300 * MB, 0)
    assert costs.seconds == pytest.approx(3.3 * 2 / 20 + 8e-3)


def test_what_does_not_fit_streams_through_two_slots_beside_what_stays():
    costs = costs_of(machine("attic", 2, disk=2), uniform(), 0, 10)
    assert (costs.memory_bytes, costs.resident_bytes, costs.streamed_bytes) == (1700 * MB, 800 * MB, 3200 * MB)
    assert costs.seconds == pytest.approx(1.6)


def test_layers_in_pieces_take_small_slots_until_whole_ones_are_a_sixteenth():
    layer = LayerCost(400 * MB, 400 * MB, piece_bytes=100 * MB)
    model = replace(uniform(), layers=(layer,) * 100)
    small, large = (costs_of(machine("attic", memory), model, 0, 100) for memory in (2, 13))
    assert (small.memory_bytes - small.resident_bytes, large.memory_bytes - large.resident_bytes) == (300 * MB, 900 * MB)
    assert small.streamed_bytes == 100 * 400 * MB - 1700 * MB


def test_stored_bytes_are_read_and_loaded_ones_computed_with():
    model = replace(uniform(), layers=(LayerCost(400 * MB, 100 * MB),) * 10)
    costs = costs_of(machine("attic", 2.1), model, 0, 10)
    assert (costs.resident_bytes, costs.streamed_bytes) == (1200 * MB, 700 * MB)
    assert costs.compute_seconds == pytest.approx(4 / 20)


def test_working_memory_of_layers_and_head_is_set_aside():
    model = replace(uniform(), layers=(LayerCost(400 * MB, 400 * MB, 50 * MB),) * 4, head=LayerCost(MB, MB, 9 * MB))
    assert costs_of(machine("attic", 5), model, 0, 4).memory_bytes == 1900 * MB
    assert costs_of(machine("attic", 5), model, 0, 4, has_head=True).memory_bytes == 1910 * MB


def test_a_head_stays_before_layers_do():
    costs = costs_of(machine("attic", 1.2), uniform(), 0, 10, has_head=True)
    assert (costs.resident_bytes, costs.streamed_bytes) == (100 * MB, 4000 * MB)


@pytest.mark.parametrize(("memory", "fits"), [(0.199, False), (0.2, True)])
def test_a_head_alone_fits_as_a_whole_or_not_at_all(memory, fits):
    assert costs_of(machine("desk", memory), uniform(), 10, 10, has_head=True).fits == fits


def test_a_card_keeps_what_fits_the_host_the_next_and_the_disk_the_rest():
    costs = costs_of(with_card(2, 2), uniform(), 0, 10)
    assert (costs.resident_bytes, costs.streamed_bytes) == (800 * MB, 4000 * MB - 800 * MB - 1200 * MB)
    assert (costs.disk_seconds, costs.bus_seconds, costs.compute_seconds) == pytest.approx((2.0, 0.32, 0.02))


def test_a_host_that_keeps_everything_leaves_only_the_bus():
    costs = costs_of(with_card(2, 8), uniform(), 0, 10)
    assert (costs.streamed_bytes, costs.seconds) == (0, pytest.approx(0.32))


@pytest.mark.parametrize(
    ("rates", "seconds"),
    [({"int4": 20e9, "float32": 5e9}, 0.2), ({"float32": 5e9, "bfloat16": 8e9}, 0.8), ({}, 4.0), ({"int4": 0.0}, 4.0)],
    ids=["measured", "the slowest other", "its disk", "none that counts"],
)
def test_a_rate_that_was_not_measured_has_a_stand_in(rates, seconds):
    attic = Machine("attic", MachineProfile(5 * GB, 0, 0.0, 1.0 * GB, rates))
    assert costs_of(attic, uniform(), 0, 10).seconds == pytest.approx(seconds)


def test_many_spans_at_once_cost_what_each_does():
    sizes = [300 * MB, 100 * MB, 700 * MB, 200 * MB, 200 * MB]
    layers = tuple(LayerCost(size, size, size // 10) for size in sizes)
    model, attic = ModelCost(layers, LayerCost(MB, MB), "int4", MB, 0, 0), machine("attic", 1.2)
    starts, ends = np.triu_indices(6, k=1)
    together = stage_costs(attic, model, SpanTable(model).sizes(starts, ends, has_head=False)).seconds
    alone = [costs_of(attic, model, int(start), int(end)).seconds for start, end in zip(starts, ends, strict=True)]
    assert together.tolist() == alone
    assert np.isinf(alone).any()


def block(number: int, num_rows: int) -> Block:
    source = StoredTensor("weight", "F32", (num_rows, 16), Path("model.safetensors"), 800, num_rows * ROW_BYTES)
    tensor = BlockTensor("weight", ("weight",), source.shape, torch.float32, 0)
    return Block(f"layer {number}", number, (tensor,), (Copy(source, "weight"),))


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=12) | st.integers(1, 40).map(lambda number: [100] * number),
    st.integers(1, 6000 * ROW_BYTES),
    st.none() | st.integers(1, 6000 * ROW_BYTES),
)
def test_stages_fit_where_they_are_laid_out_and_stages_of_equal_layers_cost_what_they_then_take(rows, budget_bytes, host_bytes):
    blocks = [block(number, num_rows) for number, num_rows in enumerate(rows)]
    model = ModelCost(tuple(LayerCost(b.loaded_bytes, b.stored_bytes) for b in blocks), LayerCost(0, 0), "int4", 10, 0, 0)
    profile = MachineProfile(budget_bytes, host_bytes or 0, 0.0 if host_bytes is None else 1e6, 1e6, {"int4": 1e6})
    costs = costs_of(Machine("attic", profile), model, 0, len(rows))
    try:
        plan = plan_residency(blocks, budget_bytes, 10, host=None if host_bytes is None else HostRoom(host_bytes))
    except BudgetError:
        assert not costs.fits
        return
    assert costs.fits
    assert costs.resident_bytes <= costs.memory_bytes <= budget_bytes
    if len(set(rows)) == 1:
        assert (costs.memory_bytes, costs.resident_bytes) == (plan.total_bytes, plan.resident_bytes)
        assert costs.streamed_bytes == plan.streamed_bytes


@given(st.lists(st.integers(1, 300), min_size=1, max_size=9), st.booleans(), st.integers(0, 5000))
def test_a_floor_is_the_least_that_does(sizes, has_card, budget_bytes):
    model = ModelCost(tuple(LayerCost(size, size, 3) for size in sizes), LayerCost(50, 50), "int4", 10, 0, 0)
    attic = Machine("attic", MachineProfile(budget_bytes, 10**6, float(has_card), 1.0, {"int4": 1.0}))
    of_all = SpanTable(model).sizes(np.array(0), np.array(len(sizes)), has_head=True)
    assume(not stage_costs(attic, model, of_all).fits)
    floor = stage_floor(attic, model, of_all)
    assert floor.budget_bytes == budget_bytes
    for num_bytes, fits in ((floor.needed_bytes, True), (floor.needed_bytes - 1, False)):
        given_more = replace(attic, profile=replace(attic.profile, device_bytes=num_bytes))
        assert stage_costs(given_more, model, of_all).fits == fits
