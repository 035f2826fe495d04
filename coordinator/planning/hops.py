"""Orders of workers in which the hops of a token are short, whatever the stages take."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from layermesh.coordinator.planning.route_costs import RouteCosts
from layermesh.coordinator.planning.span_sizes import Reals

NUM_ROUNDS: Final = 3  # of moving everybody once


def nearest_first(costs: RouteCosts) -> list[int]:
    """Order all workers by how far they are from the coordinator: the best there is where nothing else is known of links."""
    return [int(worker) for worker in np.argsort(costs.first, kind="stable")]


def nearest_next(costs: RouteCosts) -> list[int]:
    """Order all workers so that each one is followed by the nearest of those that are left."""
    distances = costs.first.copy()
    is_left = np.ones(costs.num_workers, np.bool_)
    order: list[int] = []
    for _ in range(costs.num_workers):
        order.append(int(np.where(is_left, distances, np.inf).argmin()))
        is_left[order[-1]] = False
        distances = costs.between[order[-1]]
    return order


def shorten(costs: RouteCosts, order: Sequence[int]) -> list[int]:
    """Move workers, one at a time, to where the hops of the whole tour take least; where that is no gain they stay."""
    tour = list(order)
    for _ in range(NUM_ROUNDS):
        before = tour.copy()
        for worker in before:
            _move(costs, tour, worker)
        if tour == before:
            break
    return tour


def _move(costs: RouteCosts, tour: list[int], worker: int) -> None:
    place = tour.index(worker)
    del tour[place]
    detours = _detours(costs, tour, worker)
    best = int(detours.argmin())
    tour.insert(best if detours[best] < detours[place] else place, worker)


def _detours(costs: RouteCosts, tour: list[int], worker: int) -> Reals:
    """Return the seconds it adds to visit `worker` before the first of `tour`, the second and so on, and behind the last."""
    if not tour:
        return np.zeros(1)
    there = np.concatenate([costs.first[[worker]], costs.between[tour, worker]])
    onward = np.concatenate([costs.between[worker, tour], costs.back[[worker]]])
    direct = np.concatenate([costs.first[tour[:1]], costs.between[tour[:-1], tour[1:]], costs.back[tour[-1:]]])
    detours: Reals = there + onward - direct
    return detours
