from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from layermesh.coordinator.planning.division import MARGIN
from layermesh.coordinator.planning.machines import Link, Links, Machine
from layermesh.coordinator.planning.mesh_plan import MeshPlan, Part, predict_mesh
from layermesh.coordinator.planning.model_cost import LayerCost, ModelCost
from layermesh.coordinator.planning.planner import plan_mesh
from layermesh.shared.errors import BudgetError
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.spans import LayerSpan
from tests.coordinator.planning.meshes import GB, MB, least_seconds, machine, meshes, models, star, summary, uniform

ROUNDING = 1e-9


def plan_or_none(model: ModelCost, machines: list[Machine], links: Links) -> MeshPlan | None:
    try:
        return plan_mesh(model, machines, links)
    except BudgetError:
        return None


@settings(deadline=None)
@given(models(8), meshes(4))
def test_a_plan_is_within_the_margin_of_the_best_of_all(model, mesh):
    best = least_seconds(model, *mesh)
    plan = plan_or_none(model, *mesh)
    if plan is None:
        assert np.isinf(best)
    else:
        assert best * (1 - ROUNDING) <= plan.seconds_per_token <= best * (1 + MARGIN + ROUNDING)


@settings(deadline=None)
@given(models(30), meshes(6))
def test_layers_are_covered_in_order_and_memory_is_enough(model, mesh):
    machines, links = mesh
    plan = plan_or_none(model, machines, links)
    assume(plan is not None)
    by_name = {one.name: one for one in machines}
    assert [layer for stage in plan.stages for layer in stage.span] == list(range(len(model.layers)))
    assert [stage.has_head for stage in plan.stages] == [False] * (len(plan.stages) - 1) + [True]
    assert len({stage.machine for stage in plan.stages}) == len(plan.stages)
    for stage in plan.stages:
        assert stage.resident_bytes <= stage.memory_bytes <= by_name[stage.machine].profile.device_bytes
        assert len(stage.span) > 0 or by_name[stage.machine].is_coordinator
    assert not any(by_name[stage.machine].is_coordinator for stage in plan.stages[:-1])


@settings(deadline=None)
@given(models(20), meshes(6), st.randoms(use_true_random=False))
def test_the_order_in_which_machines_are_named_does_not_matter(model, mesh, random):
    machines, links = mesh
    shuffled = random.sample(machines, len(machines))
    assert plan_or_none(model, machines, links) == plan_or_none(model, shuffled, links)


@settings(deadline=None)
@given(models(20), meshes(6), st.data())
def test_one_machine_more_is_never_a_loss(model, mesh, data):
    machines, links = mesh
    left_out = data.draw(st.sampled_from(machines))
    fewer = [one for one in machines if one is not left_out]
    assume(fewer)
    before = plan_or_none(model, fewer, links)
    assume(before is not None)
    after = plan_mesh(model, machines, links)
    assert after.seconds_per_token <= before.seconds_per_token * (1 + MARGIN + ROUNDING)


@settings(deadline=None)
@given(models(20), meshes(6))
def test_no_single_machine_is_faster_than_the_mesh(model, mesh):
    machines, links = mesh
    whole = LayerSpan(0, len(model.layers))
    for one in machines:
        try:
            alone = predict_mesh(model, [Part(one, whole)], links)
        except BudgetError:
            continue
        assert plan_mesh(model, machines, links).seconds_per_token <= alone.seconds_per_token * (1 + ROUNDING)


@settings(deadline=None)
@given(models(20), meshes(6))
def test_a_plan_predicts_what_its_parts_do(model, mesh):
    machines, links = mesh
    plan = plan_or_none(model, machines, links)
    assume(plan is not None)
    by_name = {one.name: one for one in machines}
    assert predict_mesh(model, [Part(by_name[stage.machine], stage.span) for stage in plan.stages], links) == plan


def test_equal_machines_share_equally_in_the_order_of_their_names():
    machines = [machine(name, 3) for name in ("loft", "attic")]
    plan = plan_mesh(uniform(10), machines, star(*machines))
    assert summary(plan) == [("attic", 0, 5), ("loft", 5, 10)]
    assert [stage.streamed_bytes for stage in plan.stages] == [0, 0]


def test_everything_that_must_stream_does_so_from_the_fastest_disk():
    machines = [machine("attic", 1.7, disk=0.2), machine("den-pc", 1.7, disk=3.0)]
    plan = plan_mesh(uniform(20, head_bytes=0), machines, star(*machines))
    assert summary(plan) == [("attic", 0, 4), ("den-pc", 4, 20)]
    assert [stage.streamed_bytes for stage in plan.stages] == [0, 14 * 400 * MB]  # beside two slots, two layers stay


def test_a_machine_that_would_slow_the_others_is_left_out():
    machines = [machine("attic", 5, compute=30), machine("den-pc", 5, compute=30), machine("hall", 5, compute=2)]
    plan = plan_mesh(uniform(20), machines, star(*machines))
    assert summary(plan) == [("attic", 0, 10), ("den-pc", 10, 20)]


def test_a_machine_behind_a_slow_link_is_left_out():
    machines = [machine("attic", 2), machine("den-pc", 2), machine("hall", 2)]
    links = Links({"attic": Link(1e-3, GB), "den-pc": Link(1e-3, GB), "hall": Link(9.0, GB)})
    assert [stage.machine for stage in plan_mesh(uniform(16), machines, links).stages] == ["attic", "den-pc"]


def test_one_machine_that_holds_everything_needs_no_company():
    machines = [machine(name, 5) for name in ("attic", "den-pc", "hall")]
    assert summary(plan_mesh(uniform(10), machines, star(*machines))) == [("attic", 0, 10)]


def test_a_gain_below_the_margin_is_worth_no_hop():
    machines = [machine("attic", 5, compute=20.0), machine("den-pc", 2.5, compute=20.3)]
    links = star(*machines, seconds=0.0, rate=1e9)
    assert summary(plan_mesh(uniform(10), machines, links)) == [("attic", 0, 10)]


@pytest.mark.parametrize("jitter", [-2e-5, 0.0, 2e-5])
def test_small_changes_of_a_link_do_not_move_layers(jitter):
    machines = [machine(name, 2.1) for name in ("attic", "den-pc", "hall")]
    near = {"attic": Link(1e-3 + jitter, 1e8), "den-pc": Link(1e-3, 1e8), "hall": Link(1e-3 - jitter, 1e8)}
    plan = plan_mesh(uniform(12), machines, Links(near))
    assert summary(plan) == [("attic", 0, 4), ("den-pc", 4, 8), ("hall", 8, 12)]


def test_a_large_vocabulary_behind_a_slow_link_keeps_the_head_at_home():
    attic, desk = machine("attic", 5), machine("desk", 0.5, compute=10, is_coordinator=True)
    model = uniform(10, hidden_bytes=16384, logits_bytes=1_000_000)
    plan = plan_mesh(model, [attic, desk], star(attic, rate=3.0))
    assert summary(plan) == [("attic", 0, 10), ("desk", 10, 10)]
    assert plan.network_seconds == pytest.approx(2 * (1e-3 + 16384 / 3e6))


def test_a_coordinator_without_memory_leaves_the_head_to_a_worker():
    attic, desk = machine("attic", 5), machine("desk", 0.15, disk=0.1, is_coordinator=True)
    model = uniform(10, hidden_bytes=16384, logits_bytes=1_000_000)
    plan = plan_mesh(model, [attic, desk], star(attic, rate=3.0))
    assert summary(plan) == [("attic", 0, 10)]
    assert plan.network_seconds == pytest.approx(2e-3 + 16384 / 3e6 + 1e6 / 3e6)


def test_a_coordinator_alone_has_no_hops():
    desk = machine("desk", 2, is_coordinator=True)
    plan = plan_mesh(uniform(10), [desk], Links({}))
    assert (summary(plan), plan.network_seconds) == ([("desk", 0, 10)], 0.0)


def test_whatever_its_size_a_model_runs_where_two_layers_fit():
    attic = machine("attic", 1.0, disk=1.0)
    plan = plan_mesh(uniform(1000), [attic], star(attic))
    assert plan.stages[0].streamed_bytes == 1000 * 400 * MB
    assert plan.seconds_per_token == pytest.approx(400, rel=0.01)


def test_where_nothing_fits_the_machine_that_lacks_least_is_named_with_what_it_needs():
    machines = [machine("attic", 0.7), machine("den-pc", 0.8), machine("hall", 0.6)]
    with pytest.raises(BudgetError, match=r"the whole model on den-pc needs at least 900MB .* --host-memory 900MB") as refusal:
        plan_mesh(uniform(10), machines, star(*machines))
    assert (refusal.value.budget_bytes, refusal.value.needed_bytes) == (800 * MB, 900 * MB)


@pytest.mark.parametrize(
    ("device_mb", "host_mb", "flag", "needed"),
    [(500, 8000, "--device-memory", 900 * MB), (1000, 500, "--host-memory", 800 * MB)],
    ids=["card", "host beside it"],
)
def test_a_card_lacks_memory_of_its_own_or_of_its_host(device_mb, host_mb, flag, needed):
    attic = Machine("attic", MachineProfile(device_mb * MB, host_mb * MB, 12.0 * GB, GB, {"int4": 200.0 * GB}))
    with pytest.raises(BudgetError, match=flag) as refusal:
        plan_mesh(uniform(10), [attic], star(attic))
    assert refusal.value.needed_bytes == needed


def test_many_workers_share_a_large_model_without_streaming():
    machines = [machine(f"pc-{number:02}", 1.4 + number % 5) for number in range(40)]
    model = uniform(80)
    plan = plan_mesh(model, machines, star(*machines))
    assert [layer for stage in plan.stages for layer in stage.span] == list(range(80))
    assert sum(stage.streamed_bytes for stage in plan.stages) == 0
    assert len(plan.stages) <= 9  # the largest hold twelve or thirteen layers each, those next to them ten


@pytest.mark.parametrize("num_workers", [1, 12], ids=["few", "many"])
def test_a_plan_for_nothing_much_is_still_one(num_workers):
    machines = [machine(f"pc-{number:02}", 1) for number in range(num_workers)]
    model = ModelCost((LayerCost(0, 0),), LayerCost(0, 0), "int4", 0, 0, 0)
    plan = plan_mesh(model, machines, star(*machines, seconds=0.0))
    assert (summary(plan), plan.seconds_per_token) == ([("pc-00", 0, 1)], 0.0)


def test_machines_that_cannot_be_told_apart_are_refused():
    attic = machine("attic", 5)
    with pytest.raises(ValueError, match=r"different names.*attic.*attic"):
        plan_mesh(uniform(), [attic, replace(attic, slowdown=2.0)], star(attic))
    with pytest.raises(ValueError, match="one of them"):
        plan_mesh(uniform(), [machine(name, 5, is_coordinator=True) for name in ("attic", "hall")], star(attic))
    with pytest.raises(ValueError, match=r"\[\]"):
        plan_mesh(uniform(), [], star(attic))
    with pytest.raises(ValueError, match="'attic'"):
        plan_mesh(uniform(), [attic], Links({}))
