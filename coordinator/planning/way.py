"""The fastest way past workers in a given order, of whom some may be left out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layermesh.coordinator.planning.division import Order
from layermesh.coordinator.planning.route_costs import RouteCosts
from layermesh.coordinator.planning.span_sizes import Reals


@dataclass(frozen=True, slots=True)
class Way:
    """Those who take part in an order, and the seconds of a token."""

    order: Order
    seconds: float


class Passage:
    """Seconds until each worker of an order is reached (`arrived`) and is done with its layers (`done`), by the next layer."""

    def __init__(self, costs: RouteCosts, order: Sequence[int]) -> None:
        self.costs = costs
        self.order = np.array(order, np.intp)
        self.arrived = np.full((len(order), len(costs.own)), np.inf)
        self.done = self.arrived.copy()
        for place, worker in enumerate(order):
            fastest = self._ways_to(place).min(axis=0, initial=np.inf)
            self.arrived[place] = np.minimum(costs.arriving(worker), fastest)
            self.done[place] = costs.after(worker, self.arrived[place])

    def fastest(self) -> Way:
        """Return the fastest way: the coordinator's alone, one that ends there, or one whose last worker has the head."""
        costs, order = self.costs, self.order
        alone = Way(Order((), at_home=True), float(costs.own[0]))
        if not order.size:
            return alone
        at_home = self.done + costs.back[order][:, None] + costs.own
        answered = self.arrived + costs.last[order] + costs.reply[order][:, None]
        ends_at_home = bool(at_home.min() <= answered.min())
        ends = at_home if ends_at_home else answered
        place, layer = divmod(int(ends.argmin()), len(costs.own))
        if ends[place, layer] >= alone.seconds:
            return alone
        start = self._start_of(place, layer) if ends_at_home else layer
        return Way(Order(self._traced(place, start), ends_at_home), float(ends[place, layer]))

    def remaining(self) -> Reals:
        """Return the seconds from each worker on until the token is done, by the layer that is next when it is reached."""
        costs, order = self.costs, self.order
        seconds = np.full(self.done.shape, np.inf)
        for place in reversed(range(len(order))):
            worker = order[place]
            hops = costs.between[worker, order[place + 1 :]]
            onward = (seconds[place + 1 :] + hops[:, None]).min(axis=0, initial=np.inf)
            onward = np.minimum(onward, costs.back[worker] + costs.own)
            seconds[place] = np.minimum((costs.spans[worker] + onward).min(axis=1), costs.last[worker] + costs.reply[worker])
        return seconds

    def _ways_to(self, place: int) -> Reals:
        """Return the seconds until the worker at `place` is reached: from each worker before it, by layer."""
        hops = self.costs.between[self.order[:place], self.order[place]]
        ways: Reals = self.done[:place] + hops[:, None]
        return ways

    def _start_of(self, place: int, end: int) -> int:
        """Return where the stage at `place` that ends at layer `end` had best begin."""
        return int((self.arrived[place] + self.costs.spans[self.order[place], :, end]).argmin())

    def _traced(self, place: int, start: int) -> tuple[int, ...]:
        """Follow the fastest way back from the stage at `place` that begins with layer `start`."""
        places = [place]
        while start > 0:
            places.insert(0, int(self._ways_to(places[0])[:, start].argmin()))
            start = self._start_of(places[0], start)
        return tuple(int(worker) for worker in self.order[places])
