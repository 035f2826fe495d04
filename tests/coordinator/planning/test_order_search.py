import statistics

import numpy as np
import pytest
from hypothesis import assume, given, settings

from layermesh.coordinator.planning.division import divide
from layermesh.coordinator.planning.exact_search import ExactSearch
from layermesh.coordinator.planning.hops import nearest_first, nearest_next, shorten
from layermesh.coordinator.planning.machines import Link, Links, Machine
from layermesh.coordinator.planning.order_search import search_orders
from layermesh.coordinator.planning.route_costs import RouteCosts, route_costs
from layermesh.shared.machine_profile import MachineProfile
from tests.coordinator.planning.meshes import GB, MB, meshes, models, uniform

ROUNDING = 1e-9


def random_costs(seed: int, num_workers: int) -> RouteCosts:
    rng = np.random.default_rng(seed)
    names = [f"pc-{number}" for number in range(num_workers)]
    workers = [
        Machine(name, MachineProfile(round(rng.uniform(1, 6) * GB), 0, 0.0, rng.uniform(0.3, 3) * GB, {"int4": 20.0 * GB}))
        for name in names
    ]
    pairs = {(one, other): Link(rng.uniform(1e-4, 0.05), 100.0 * MB) for one in names for other in names}
    near = {name: Link(rng.uniform(1e-4, 0.05), 100.0 * MB) for name in names}
    return route_costs(uniform(30), workers, None, Links(near, pairs))


@settings(deadline=None, max_examples=30)
@given(models(12), meshes(6))
def test_what_is_found_is_possible_and_no_better_than_the_best(model, mesh):
    machines, links = mesh
    coordinator = next((one for one in machines if one.is_coordinator), None)
    costs = route_costs(model, [one for one in machines if not one.is_coordinator], coordinator, links)
    assume(costs.num_workers > 0)
    best, found = ExactSearch(costs).choose(), search_orders(costs)
    assert found.best_seconds >= best.best_seconds * (1 - ROUNDING)
    assert np.isinf(found.best_seconds) == np.isinf(best.best_seconds)
    if not np.isinf(best.best_seconds):
        for choice in (best, found):
            assert divide(costs, choice.order).seconds <= choice.best_seconds * (1.01 + ROUNDING)


def test_the_search_misses_the_best_of_seven_by_little():
    meshes = [random_costs(seed, 7) for seed in range(12)]
    losses = [search_orders(costs).best_seconds / ExactSearch(costs).choose().best_seconds - 1 for costs in meshes]
    assert statistics.mean(losses) < 0.01
    assert max(losses) < 0.05


@pytest.mark.parametrize("order", [nearest_first, nearest_next])
def test_everybody_is_in_an_order_once(order):
    costs = random_costs(0, 9)
    assert sorted(order(costs)) == sorted(shorten(costs, order(costs))) == list(range(9))


def test_a_tour_goes_round_two_rooms_one_after_the_other():
    names = ["a1", "b1", "a2", "b2", "a3", "b3"]
    workers = [Machine(name, MachineProfile(9 * GB, 0, 0.0, 1.0 * GB)) for name in names]
    pairs = {(one, other): Link(1e-3 if one[0] == other[0] else 9e-3, 1e9) for one in names for other in names}
    costs = route_costs(uniform(6), workers, None, Links(dict.fromkeys(names, Link(5e-3, 1e9)), pairs))
    rooms = "".join(names[worker][0] for worker in shorten(costs, range(6)))
    assert rooms in ("aaabbb", "bbbaaa")
    assert [names[worker] for worker in nearest_next(costs)] == ["a1", "a2", "a3", "b1", "b2", "b3"]


def test_nobody_moves_where_that_is_no_gain():
    costs = random_costs(0, 5)
    level = route_costs(uniform(6), [Machine(f"pc-{n}", MachineProfile(GB, 0, 0.0, 1.0)) for n in range(5)], None, EQUAL)
    assert shorten(level, [3, 1, 4, 0, 2]) == [3, 1, 4, 0, 2]
    assert shorten(costs, []) == []


EQUAL = Links({f"pc-{number}": Link(1e-3, 1e6) for number in range(5)})
