"""Which machine runs which layers, decided from what they are, what the model asks, and how far apart they are."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from layermesh.coordinator.planning.division import MARGIN, Choice, Division, Order, acceptable_seconds, divide
from layermesh.coordinator.planning.exact_search import ExactSearch
from layermesh.coordinator.planning.machines import Links, Machine
from layermesh.coordinator.planning.mesh_plan import MeshPlan, Part, predict_mesh
from layermesh.coordinator.planning.model_cost import ModelCost
from layermesh.coordinator.planning.order_search import search_orders
from layermesh.coordinator.planning.route_costs import RouteCosts, route_costs
from layermesh.coordinator.planning.span_sizes import SpanTable
from layermesh.coordinator.planning.stage_cost import stage_floor
from layermesh.shared.errors import BudgetError
from layermesh.shared.spans import LayerSpan

MOST_EXACT: Final = 8  # workers of whom every set is looked at
LEAST_SECONDS: Final = 1e-9  # of a token; only a model without weights is as fast


def plan_mesh(model: ModelCost, machines: Sequence[Machine], links: Links) -> MeshPlan:
    """Give contiguous spans of the model to those of `machines` with whom one token takes least.

    Whatever the order of `machines`, the plan is the same. Of plans within 1 % of the fastest it is one with few hops, machines
    in the order of their names and as much for each to do as for the others. The coordinator's machine, if it takes part, comes
    last and has the head, perhaps nothing else. Up to eight workers the fastest plan is known; for more of them it is the best
    one found. Raises BudgetError where no division of the layers fits, and ValueError for machines of one name, several
    coordinators or a missing link.
    """
    coordinator, workers = _sorted(machines)
    costs = route_costs(model, workers, coordinator, links)
    choice = ExactSearch(costs).choose() if len(workers) <= MOST_EXACT else search_orders(costs)
    if np.isinf(choice.best_seconds):
        raise _too_small(model, machines)
    return predict_mesh(model, _parts(_settle(costs, choice), workers, coordinator, len(model.layers)), links)


def _sorted(machines: Sequence[Machine]) -> tuple[Machine | None, list[Machine]]:
    """Return the coordinator's machine and the others by name."""
    ordered = sorted(machines, key=lambda machine: machine.name)
    twice = [one.name for one, other in pairwise(ordered) if one.name == other.name]
    coordinators = [machine for machine in ordered if machine.is_coordinator]
    if not machines or twice or len(coordinators) > 1:
        raise ValueError(f"a mesh has machines of different names, one of them the coordinator's: {[m.name for m in ordered]}")
    return next(iter(coordinators), None), [machine for machine in ordered if not machine.is_coordinator]


def _settle(costs: RouteCosts, choice: Choice) -> Division:
    """Return a division within the margin, in the order of names and even if there is one: small changes do not move it."""
    limit = acceptable_seconds(costs, choice.best_seconds)
    evenness = MARGIN / max(choice.best_seconds, LEAST_SECONDS)
    by_name = Order(tuple(sorted(choice.order.workers)), choice.order.at_home)
    tries = [(by_name, evenness), (by_name, 0.0), (choice.order, evenness)]
    divisions = (divide(costs, order, evenness) for order, evenness in tries)
    return next((division for division in divisions if division.seconds <= limit), divide(costs, choice.order))


def _parts(division: Division, workers: Sequence[Machine], coordinator: Machine | None, num_layers: int) -> list[Part]:
    visited = [workers[number] for number in division.order.workers]
    if division.order.at_home and coordinator is not None:
        visited.append(coordinator)
    spans = [LayerSpan(start, end) for start, end in pairwise((*division.starts, num_layers))]
    return [Part(machine, span) for machine, span in zip(visited, spans, strict=True)]


def _too_small(model: ModelCost, machines: Sequence[Machine]) -> BudgetError:
    """Say what the machine that lacks least would need to run all layers."""
    sizes = SpanTable(model).sizes(np.array(0), len(model.layers), has_head=True)
    floors = [(stage_floor(machine, model, sizes), machine.name) for machine in sorted(machines, key=lambda m: m.name)]
    floor, name = min(floors, key=lambda found: found[0].needed_bytes - found[0].budget_bytes)
    return BudgetError(f"running the whole model on {name}", floor.budget_bytes, floor.needed_bytes, floor.flag)
