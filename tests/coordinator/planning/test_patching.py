from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermesh.coordinator.planning.patching import patch_mesh
from layermesh.shared.spans import LayerSpan
from tests.coordinator.planning.meshes import machine, star, uniform

DESK = machine("desk", 9, is_coordinator=True)
SPANS = {"attic": LayerSpan(0, 3), "den-pc": LayerSpan(3, 7), "hall": LayerSpan(7, 10), "desk": LayerSpan(10, 10)}
PLACED = list(SPANS.items())


def division(plan):
    return [(stage.machine, stage.span.start, stage.span.end) for stage in plan.stages]


def test_a_lost_span_goes_to_the_fastest_and_the_others_keep_theirs():
    there = [machine("attic", 9), machine("hall", 9, compute=40.0), DESK]
    plan = patch_mesh(uniform(), PLACED, there, star(*there))
    assert division(plan) == [("attic", 0, 3), ("hall", 3, 7), ("hall", 7, 10), ("desk", 10, 10)]


def test_somebody_who_had_nothing_may_take_it():
    there = [machine("attic", 2), machine("hall", 2), machine("porch", 9), DESK]
    assert division(patch_mesh(uniform(), PLACED, there, star(*there)))[1] == ("porch", 3, 7)


def test_the_coordinator_takes_only_what_is_next_to_its_own():
    there = [machine("attic", 1.5), machine("den-pc", 1.9), DESK]
    assert division(patch_mesh(uniform(), PLACED, there, star(*there)))[-1] == ("desk", 7, 10)
    there = [machine("attic", 1.5), machine("hall", 1.5), DESK]
    assert patch_mesh(uniform(), PLACED, there, star(*there)) is None


def test_nobody_reads_from_disk_for_the_sake_of_a_second_span():
    there = [machine("attic", 2.5), machine("hall", 2.5), machine("desk", 0.5, is_coordinator=True)]
    assert patch_mesh(uniform(), PLACED, there, star(*there)) is None


@pytest.mark.parametrize("lost", [(), ("attic", "hall")], ids=["nobody", "two apart"])
def test_nothing_comes_of_what_is_not_one_loss(lost):
    there = [machine(name, 9) for name in ("attic", "den-pc", "hall") if name not in lost]
    assert patch_mesh(uniform(), PLACED, [*there, DESK], star(*there, DESK)) is None


@given(st.data())
def test_everybody_who_is_left_keeps_what_it_has(data):
    lost = data.draw(st.sampled_from(["attic", "den-pc", "hall"]))
    there = [machine(name, data.draw(st.integers(10, 90)) / 10) for name in SPANS if name not in (lost, "desk")]
    there.append(replace(DESK, profile=replace(DESK.profile, device_bytes=data.draw(st.integers(5, 90)) * 10**8)))
    plan = patch_mesh(uniform(), PLACED, there, star(*there))
    if plan is None:
        return
    kept = {(name, span) for name, span in PLACED if name not in (lost, "desk")}
    assert kept <= {(stage.machine, stage.span) for stage in plan.stages}
    assert [stage.span.start for stage in plan.stages][1:] == [stage.span.end for stage in plan.stages][:-1]
    assert plan.stages[-1].has_head
