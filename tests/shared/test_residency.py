from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import BudgetError
from layermesh.shared.model.blocks import Block, BlockTensor
from layermesh.shared.model.recipes import Conversion, Copy
from layermesh.shared.residency import HostRoom, plan_residency

COLUMNS = 16
ROW_BYTES = COLUMNS * 4


def block(name: str, layer: int | None, num_rows: int, *, converted: bool = False) -> Block:
    source = StoredTensor(name, "F32", (num_rows, COLUMNS), Path("model.safetensors"), 800, num_rows * ROW_BYTES)
    recipe = Conversion((source,), (name,), lambda given: {name: given[0]}) if converted else Copy(source, name)
    return Block(name, layer, (BlockTensor(name, (name,), source.shape, torch.float32, 0),), (recipe,))


@st.composite
def models(draw: st.DrawFn) -> list[Block]:
    sizes = draw(st.lists(st.integers(1, 300), min_size=1, max_size=12) | st.integers(1, 40).map(lambda num: [100] * num))
    layers = [block(f"layer {i}", i, num_rows) for i, num_rows in enumerate(sizes)]
    head = draw(st.none() | st.integers(1, 3000))
    return layers if head is None else [*layers, block("head", None, head, converted=draw(st.booleans()))]


BUDGETS = st.integers(1, 6000 * ROW_BYTES)
WORKING = st.integers(0, 1000)


def needed(blocks: list[Block], working_bytes: int) -> int:
    with pytest.raises(BudgetError) as refusal:
        plan_residency(blocks, 0, working_bytes)
    return refusal.value.needed_bytes


@given(models(), BUDGETS, WORKING)
def test_a_plan_stays_within_its_budget_or_names_one_that_does(blocks, budget_bytes, working_bytes):
    least = needed(blocks, working_bytes)
    if budget_bytes < least:
        with pytest.raises(BudgetError) as refusal:
            plan_residency(blocks, budget_bytes, working_bytes)
        assert refusal.value.needed_bytes == least
        budget_bytes = least
    plan = plan_residency(blocks, budget_bytes, working_bytes)
    assert plan.total_bytes <= budget_bytes
    assert all(piece.loaded_bytes <= plan.slot_bytes for piece in plan.streamed)


@given(models(), WORKING)
def test_one_byte_less_than_what_is_needed_is_refused(blocks, working_bytes):
    least = needed(blocks, working_bytes)
    plan_residency(blocks, least, working_bytes)
    with pytest.raises(BudgetError) as refusal:
        plan_residency(blocks, least - 1, working_bytes)
    assert refusal.value.needed_bytes == least


@given(models(), BUDGETS, WORKING)
def test_nothing_is_refused_from_the_floor_on(blocks, more_bytes, working_bytes):
    layers = [entry.loaded_bytes for entry in blocks if entry.layer is not None]
    head = [entry for entry in blocks if entry.layer is None]
    if head and isinstance(head[0].recipes[0], Conversion):
        layers += [entry.loaded_bytes for entry in head]
    floor = working_bytes + 2 * max(layers + [64 * ROW_BYTES] * bool(head))
    assert plan_residency(blocks, floor + more_bytes, working_bytes).total_bytes <= floor + more_bytes


@given(models(), BUDGETS, BUDGETS, WORKING)
def test_more_budget_never_keeps_less(blocks, one, other, working_bytes):
    least = needed(blocks, working_bytes)
    smaller, larger = sorted((one, other))
    before = plan_residency(blocks, least + smaller, working_bytes)
    after = plan_residency(blocks, least + larger, working_bytes)
    assert before.resident_bytes <= after.resident_bytes


@given(models(), BUDGETS, WORKING)
def test_a_plan_is_the_same_every_time_and_keeps_the_order(blocks, more_bytes, working_bytes):
    budget_bytes = needed(blocks, working_bytes) + more_bytes
    plan = plan_residency(blocks, budget_bytes, working_bytes)
    assert plan == plan_residency(list(blocks), budget_bytes, working_bytes)
    assert [entry.layer for entry in plan.blocks if entry.layer is not None] == list(
        range(max(e.layer for e in plan.blocks if e.layer is not None) + 1)
    )
    assert {entry.name for entry in plan.streamed} | plan.resident == {entry.name for entry in plan.blocks}
    assert plan.streamed_bytes == sum(e.stored_bytes for e in plan.blocks if e.name not in plan.resident)


@given(st.integers(2, 100), st.data())
def test_layers_that_stay_are_spread_evenly(num_layers, data):
    blocks = [block(f"layer {i}", i, 100) for i in range(num_layers)]
    num_resident = data.draw(st.integers(1, max(num_layers - 3, 1)))
    plan = plan_residency(blocks, (num_resident + 2) * 100 * ROW_BYTES, 0)
    if len(plan.resident) == num_layers:
        return
    assert len(plan.resident) == num_resident
    stays = sorted(entry.layer for entry in blocks if entry.name in plan.resident)
    gaps = [following - layer for layer, following in pairwise([*stays, stays[0] + num_layers])]
    assert max(gaps) <= 4 * num_layers / num_resident + 1


def test_everything_stays_where_it_fits_to_the_byte():
    blocks = [block(f"layer {i}", i, 10) for i in range(4)] + [block("head", None, 500)]
    plan = plan_residency(blocks, 540 * ROW_BYTES + 7, 7)
    assert (plan.streamed, plan.num_slots, plan.total_bytes) == ((), 0, 540 * ROW_BYTES + 7)


def test_the_head_stays_before_the_layers_and_whole():
    blocks = [block(f"layer {i}", i, 100) for i in range(8)] + [block("head", None, 500)]
    plan = plan_residency(blocks, 700 * ROW_BYTES, 0)
    assert plan.resident == {"head"}


def test_a_head_too_large_comes_in_pieces_of_a_slot():
    blocks = [block(f"layer {i}", i, 100) for i in range(8)] + [block("head", None, 500)]
    plan = plan_residency(blocks, 200 * ROW_BYTES, 0)
    assert plan.slot_bytes == 100 * ROW_BYTES
    assert [piece.rows for piece in plan.blocks if piece.layer is None] == [
        (start, min(start + 64, 500)) for start in range(0, 500, 64)
    ]


@given(models(), BUDGETS, BUDGETS, WORKING)
def test_a_plan_with_a_host_beside_the_device_stays_within_both_budgets(blocks, more_bytes, host_bytes, working_bytes):
    budget_bytes = needed(blocks, working_bytes) + more_bytes
    with pytest.raises(BudgetError) as refusal:
        plan_residency(blocks, budget_bytes, working_bytes, host=HostRoom(0))
    least = refusal.value.needed_bytes
    if host_bytes < least:
        with pytest.raises(BudgetError, match="--host-memory"):
            plan_residency(blocks, budget_bytes, working_bytes, host=HostRoom(host_bytes))
        host_bytes = least
    plan = plan_residency(blocks, budget_bytes, working_bytes, host=HostRoom(host_bytes, working_bytes=1000))
    alone = plan_residency(blocks, budget_bytes, working_bytes)
    assert (plan.resident, plan.num_slots, plan.total_bytes) == (alone.resident, alone.num_slots, alone.total_bytes)
    assert plan.host_bytes <= host_bytes
    assert not plan.resident & plan.on_host
    assert plan.bus_bytes == sum(entry.loaded_bytes for entry in plan.blocks if entry.name not in plan.resident)
    assert {entry.name for entry in plan.streamed} == {entry.name for entry in plan.blocks} - plan.resident - plan.on_host


def test_what_stays_on_the_device_passes_through_buffers_on_the_host():
    blocks = [block(f"layer {i}", i, 100) for i in range(4)] + [block("head", None, 500)]
    everything = plan_residency(blocks, 900 * ROW_BYTES, 0, host=HostRoom(1000 * ROW_BYTES))
    with pytest.raises(BudgetError):
        plan_residency(blocks, 900 * ROW_BYTES, 0, host=HostRoom(1000 * ROW_BYTES, reading_bytes=1))
    assert (everything.num_slots, everything.buffer_bytes, everything.host_bytes) == (0, 500 * ROW_BYTES, 1000 * ROW_BYTES)
    some = plan_residency(blocks, 800 * ROW_BYTES, 0, host=HostRoom(700 * ROW_BYTES))
    assert (some.resident, some.buffer_bytes, some.host_bytes) == ({"head", "layer 0"}, 100 * ROW_BYTES, 700 * ROW_BYTES)
