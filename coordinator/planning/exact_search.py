"""The fastest order of a few workers, found by looking at every set of them."""

from itertools import combinations

import numpy as np

from layermesh.coordinator.planning.division import Choice, Order, acceptable_seconds
from layermesh.coordinator.planning.route_costs import RouteCosts
from layermesh.coordinator.planning.span_sizes import Reals

Workers = frozenset[int]


class ExactSearch:
    """Seconds of every set of workers by who of them comes last, as Held and Karp do for travelling salesmen."""

    def __init__(self, costs: RouteCosts) -> None:
        self._costs = costs
        self._arrived: dict[tuple[Workers, int], Reals] = {}
        self._done: dict[tuple[Workers, int], Reals] = {}
        for size in range(1, costs.num_workers + 1):
            for members in combinations(range(costs.num_workers), size):
                self._visit(frozenset(members))

    def choose(self) -> Choice:
        """Return the order that is preferred among those that are nearly as fast as the fastest."""
        alone = Order((), at_home=True)
        ends = {alone: (float(self._costs.own[0]), -1)}  # of each set: the seconds, and the last worker
        for workers, last in self._done:
            for at_home in (True, False):
                key = Order(tuple(sorted(workers)), at_home)
                seconds = float(self._finished(workers, last, at_home=at_home).min())
                ends[key] = min(ends.get(key, (np.inf, -1)), (seconds, last))
        best_seconds = min(seconds for seconds, _ in ends.values())
        limit = acceptable_seconds(self._costs, best_seconds)
        near = [key for key, (seconds, _) in ends.items() if seconds <= limit]
        chosen = min(near, key=lambda key: key.preference)
        return Choice(self._ordered(chosen, ends[chosen][1]) if chosen.workers else alone, best_seconds)

    def _visit(self, workers: Workers) -> None:
        for worker in workers:
            others = workers - {worker}
            ways = [self._done[others, other] + self._costs.between[other, worker] for other in others]
            arrived = np.minimum.reduce(ways) if ways else self._costs.arriving(worker)
            self._arrived[workers, worker] = arrived
            self._done[workers, worker] = self._costs.after(worker, arrived)

    def _finished(self, workers: Workers, last: int, *, at_home: bool) -> Reals:
        """Return the seconds of a whole token, by the layer at which its last stage begins."""
        if at_home:
            return self._costs.at_home(last, self._done[workers, last])
        return self._costs.answered(last, self._arrived[workers, last])

    def _ordered(self, members: Order, last: int) -> Order:
        """Follow the fastest way back from the last worker of a set."""
        workers, costs = frozenset(members.workers), self._costs
        order = [last]
        layer = int(self._finished(workers, last, at_home=members.at_home).argmin())
        if members.at_home:
            layer = int((self._arrived[workers, last] + costs.spans[last][:, layer]).argmin())
        while workers := workers - {order[0]}:
            following = order[0]
            ways = {other: self._done[workers, other][layer] + costs.between[other, following] for other in sorted(workers)}
            order.insert(0, min(ways, key=ways.__getitem__))
            layer = int((self._arrived[workers, order[0]] + costs.spans[order[0]][:, layer]).argmin())
        return Order(tuple(order), members.at_home)
