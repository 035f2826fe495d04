"""Better orders by putting one worker at a time where it serves best."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from layermesh.coordinator.planning.route_costs import RouteCosts
from layermesh.coordinator.planning.span_sizes import Reals
from layermesh.coordinator.planning.way import Passage, Way

LEAST_GAIN: Final = 1e-9  # of a token's time; less is rounding


@dataclass(frozen=True, slots=True)
class Improvement:
    """A way, and how many steps of dynamic programming it took to find it."""

    way: Way
    num_steps: int


def improve(costs: RouteCosts, way: Way, max_steps: int) -> Improvement:
    """Take workers out of `way`, or from beside it, and put them where they save most, until no worker saves anything."""
    beside = [worker for worker in range(costs.num_workers) if worker not in way.order.workers]
    queue = [*way.order.workers, *beside]
    num_steps = num_idle = num_tried = 0
    while num_idle < len(queue) and num_steps < max_steps:
        worker = queue[num_tried % len(queue)]
        others = [other for other in way.order.workers if other != worker]
        seconds, place = _best_place(costs, others, worker)
        num_steps += 3 * len(others) + 1
        num_tried, num_idle = num_tried + 1, num_idle + 1
        if seconds < way.seconds * (1 - LEAST_GAIN):
            way = Passage(costs, [*others[:place], worker, *others[place:]]).fastest()
            num_steps, num_idle = num_steps + len(others) + 1, 0
    return Improvement(way, num_steps)


def _best_place(costs: RouteCosts, others: list[int], worker: int) -> tuple[float, int]:
    """Return the seconds of a token that visits `worker` as well, some of `others` before it and some behind, and how many."""
    passage = Passage(costs, others)
    onward = _onward(passage, worker)
    arrived = costs.arriving(worker)
    found = []
    for place in range(len(others) + 1):
        if place > 0:
            arrived = np.minimum(arrived, passage.done[place - 1] + costs.between[others[place - 1], worker])
        at_end = (arrived + costs.last[worker] + costs.reply[worker]).min()
        between = (costs.after(worker, arrived) + onward[place]).min()
        found.append((float(min(at_end, between)), place))
    return min(found)


def _onward(passage: Passage, worker: int) -> list[Reals]:
    """Return the seconds from `worker` on, by layer, if those from each place on come behind it, and if nobody does."""
    costs = passage.costs
    onward = [costs.back[worker] + costs.own]
    for other, seconds in zip(passage.order[::-1], passage.remaining()[::-1], strict=True):
        onward.append(np.minimum(onward[-1], costs.between[worker, other] + seconds))
    return onward[::-1]
