"""A fast order of many workers: from a few sensible ones, improved worker by worker, for a fixed amount of work."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Final

import numpy as np

from layermesh.coordinator.planning.division import MARGIN, Choice, Order, acceptable_seconds
from layermesh.coordinator.planning.hops import nearest_first, nearest_next, shorten
from layermesh.coordinator.planning.insertion import improve
from layermesh.coordinator.planning.route_costs import RouteCosts
from layermesh.coordinator.planning.way import Passage, Way

WORK: Final = 100_000_000  # cells of tables to go through: some tenths of a second
NUM_FIRST: Final = 4  # orders that are tried in any case
STEP_CELLS: Final = 15_000  # what a step of dynamic programming costs beside its cells, in cells


def search_orders(costs: RouteCosts) -> Choice:
    """Return the order that is preferred among those found that are nearly as fast as the fastest of them."""
    orders = list(_orders(costs))
    found = _search(costs, orders)
    limit = acceptable_seconds(costs, found.seconds)
    candidates = [found.order, *(way.order for way in _short_ways(costs) if way.seconds <= limit)]
    if all(len(order.workers) > 1 for order in candidates):
        price = MARGIN * found.seconds / len(found.order.workers)  # of a hop: the margin buys as many as there are
        dear = replace(costs, first=costs.first + price, between=costs.between + price)
        ways = [Passage(dear, order).fastest() for order in (*orders[:NUM_FIRST], found.order.workers)]
        candidates += [way.order for way in ways if way.seconds - price * len(way.order.workers) <= limit]
    return Choice(min(candidates, key=lambda order: order.preference), found.seconds)


def _search(costs: RouteCosts, orders: list[list[int]]) -> Way:
    """Return the fastest way from the first orders, then from others as long as the work lasts."""
    num_steps = WORK // (len(costs.own) ** 2 + STEP_CELLS)
    first = sorted((Passage(costs, order).fastest() for order in orders[:NUM_FIRST]), key=lambda way: way.seconds)
    num_steps -= sum(len(order) for order in orders[:NUM_FIRST])
    best = first[0]
    for way in chain(first, (Passage(costs, order).fastest() for order in orders[NUM_FIRST:])):
        improvement = improve(costs, way, num_steps)
        best = min(best, improvement.way, key=lambda way: way.seconds)
        num_steps -= improvement.num_steps + costs.num_workers
        if num_steps <= 0:
            break
    return best


def _orders(costs: RouteCosts) -> Iterator[list[int]]:
    """Order all workers so that hops are short, both ways round; then dealt out like cards to two, three and more places."""
    near, tour = nearest_first(costs), shorten(costs, nearest_next(costs))
    for num_places in range(1, max(costs.num_workers, 2)):
        for order in (near, tour):
            dealt = [worker for place in range(num_places) for worker in order[place::num_places]]
            yield from (dealt, dealt[::-1])


def _short_ways(costs: RouteCosts) -> Iterator[Way]:
    """Return the ways past one worker, and past none."""
    yield Way(Order((), at_home=True), float(costs.own[0]))
    at_home = (costs.spans[:, 0] + costs.own).min(axis=1, initial=np.inf) + costs.first + costs.back
    answered = costs.first + costs.last[:, 0] + costs.reply
    for worker in range(costs.num_workers):
        yield Way(Order((worker,), at_home=True), float(at_home[worker]))
        yield Way(Order((worker,), at_home=False), float(answered[worker]))
