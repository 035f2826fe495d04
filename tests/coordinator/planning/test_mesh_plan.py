from dataclasses import replace

import pytest

from layermesh.coordinator.planning.machines import Link, Links, Machine
from layermesh.coordinator.planning.mesh_plan import Part, predict_mesh
from layermesh.shared.errors import BudgetError
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.spans import LayerSpan
from tests.coordinator.planning.meshes import GB, machine, star, uniform

ATTIC, DEN, DESK = machine("attic", 5), machine("den-pc", 5), machine("desk", 1, is_coordinator=True)


def test_stages_and_hops_come_one_after_the_other():
    links = Links({"attic": Link(1e-3, 1e7), "den-pc": Link(3e-3, 1e8)}, {("attic", "den-pc"): Link(2e-3, 1e9)})
    model = uniform(hidden_bytes=10**6)
    parts = [Part(ATTIC, LayerSpan(0, 4)), Part(DEN, LayerSpan(4, 10)), Part(DESK, LayerSpan(10, 10))]
    plan = predict_mesh(model, parts, links)
    assert [stage.seconds for stage in plan.stages] == pytest.approx([1.6 / 20, 2.4 / 20, 0.1 / 20])
    assert plan.network_seconds == pytest.approx((1e-3 + 0.1) + (2e-3 + 1e-3) + (3e-3 + 0.01))
    assert plan.seconds_per_token == pytest.approx(4.1 / 20 + plan.network_seconds)


@pytest.mark.parametrize(
    ("attic", "seconds", "bottleneck"),
    [
        (machine("attic", 2, disk=0.5), 1e-3, "attic's disk"),
        (ATTIC, 1e-3, "attic's computing"),
        (Machine("attic", MachineProfile(2 * GB, 9 * GB, GB, GB, {"int4": 99.0 * GB})), 1e-3, "attic's bus"),
        (ATTIC, 0.1, "the network"),
    ],
    ids=["disk", "computing", "bus", "network"],
)
def test_the_bottleneck_is_named_with_its_machine(attic, seconds, bottleneck):
    parts = [Part(attic, LayerSpan(0, 6)), Part(DEN, LayerSpan(6, 10))]
    assert predict_mesh(uniform(), parts, star(attic, DEN, seconds=seconds)).bottleneck == bottleneck


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [Part(ATTIC, LayerSpan(0, 9))],
        [Part(ATTIC, LayerSpan(0, 4)), Part(DEN, LayerSpan(5, 10))],
        [Part(DESK, LayerSpan(0, 1)), Part(ATTIC, LayerSpan(1, 10))],
    ],
    ids=["nobody", "too few", "a gap", "coordinator first"],
)
def test_parts_that_are_no_mesh_are_refused(parts):
    with pytest.raises(ValueError, match="10 layers"):
        predict_mesh(uniform(), parts, star(ATTIC, DEN))


def test_a_part_that_does_not_fit_says_what_it_needs():
    attic = replace(machine("attic", 0.5))
    with pytest.raises(BudgetError, match=r"layers \[0, 10\) on attic needs at least 900MB"):
        predict_mesh(uniform(), [Part(attic, LayerSpan(0, 10))], star(attic))
