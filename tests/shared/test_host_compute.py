from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermesh.shared.host_compute import SHARING_TOKENS, HostRates, choose_host_computed
from layermesh.shared.residency import HostRoom, Residency, plan_residency
from tests.shared.test_residency import ROW_BYTES, block

NUM_LAYERS = 24
LAYER_BYTES = 100 * ROW_BYTES
BLOCKS = [block(f"layer {i}", i, 100) for i in range(NUM_LAYERS)]
NAMES = [entry.name for entry in BLOCKS]
SLOW = LAYER_BYTES  # a layer a second, which makes crossing cost next to nothing


def residency(num_resident: int = 0, num_on_host: int = NUM_LAYERS) -> Residency:
    on_host = frozenset(NAMES[num_resident : num_resident + num_on_host])
    return Residency(tuple(BLOCKS), frozenset(NAMES[:num_resident]), 2, LAYER_BYTES, 0, on_host, 1)


def choose(plan: Residency, bus: float, host: float | None, num_tokens: int = 1, able=NAMES) -> frozenset[str]:
    return choose_host_computed(plan, able, HostRates(bus * SLOW, host and host * SLOW), num_tokens)


@pytest.mark.parametrize(
    ("bus", "host", "num_tokens", "num_chosen"),
    [
        (1, 1, 1, 12),
        (1, 5, 1, 20),
        (5, 1, 1, 4),
        (1000, 1, 1, 0),
        (1, 1000, 1, 24),
        (1, 1, 4, 12),
        (1, 5, 40, 8),
        (1, 5, 4000, 0),
    ],
)
def test_copying_and_computing_take_equally_long(bus, host, num_tokens, num_chosen):
    assert len(choose(residency(), bus, host, num_tokens)) == num_chosen


def test_they_alternate():
    chosen = sorted(entry.layer for entry in BLOCKS if entry.name in choose(residency(), 1, 1))
    assert max(following - layer for layer, following in pairwise(chosen)) <= 4


def test_only_blocks_that_stay_on_the_host_and_are_able_are_computed_there():
    chosen = choose(residency(4, 10), 1, 1000, able=NAMES[6:])
    assert chosen == frozenset(NAMES[6:14])
    assert choose(residency(), 1, 1000, able=[]) == frozenset()
    assert choose(residency(NUM_LAYERS, 0), 1, 1000) == frozenset()


def test_one_block_is_tried_while_the_rate_is_unknown():
    assert choose(residency(), 1, None) == frozenset(NAMES[:1])
    assert choose(residency(), 1, None, able=NAMES[5:]) == frozenset(NAMES[5:6])
    assert choose(residency(), 1, None, SHARING_TOKENS + 1) == frozenset()


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.integers(1, 600), st.integers(0, 20), st.integers(0, 20))
def test_no_choice_is_slower_than_copying_everything(bus, host, num_tokens, num_resident, num_on_host):
    plan = residency(num_resident, min(num_on_host, NUM_LAYERS - num_resident))
    chosen = choose(plan, bus, host, num_tokens)
    there = len(chosen) * LAYER_BYTES * max(num_tokens / SHARING_TOKENS, 1) / (host * SLOW)
    assert chosen <= plan.on_host
    assert max((plan.bus_bytes - len(chosen) * LAYER_BYTES) / (bus * SLOW), there) <= plan.bus_bytes / (bus * SLOW)


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.integers(1, 600))
def test_more_tokens_are_never_computed_on_more_of_the_host(bus, host, num_tokens):
    assert len(choose(residency(), bus, host, num_tokens + 1)) <= len(choose(residency(), bus, host, num_tokens))


@pytest.mark.parametrize("rates", [(0.0, 1.0), (1.0, 0.0), (-1.0, None)])
def test_rates_are_above_zero(rates):
    with pytest.raises(ValueError, match="above zero"):
        HostRates(*rates)


def test_the_host_keeps_room_for_what_it_computes():
    budget = 4 * LAYER_BYTES
    plan = plan_residency(BLOCKS, budget, 0, host=HostRoom(8 * LAYER_BYTES, working_bytes=3 * LAYER_BYTES))
    assert (len(plan.resident), len(plan.on_host), plan.host_working_bytes) == (2, 3, 3 * LAYER_BYTES)
    assert plan.host_bytes == 8 * LAYER_BYTES
    tight = plan_residency(BLOCKS, budget, 0, host=HostRoom(4 * LAYER_BYTES, working_bytes=3 * LAYER_BYTES))
    assert (len(tight.on_host), tight.host_working_bytes) == (2, 0)
