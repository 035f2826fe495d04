"""The layers of a model, divided among workers whose order is known."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from layermesh.coordinator.planning.route_costs import RouteCosts
from layermesh.coordinator.planning.span_sizes import Reals

MARGIN: Final = 0.01  # of a token's time: what a plan may take longer that has fewer hops or does not move layers about


@dataclass(frozen=True, slots=True)
class Order:
    """Workers in the order in which a token visits them; `at_home` tells whether it ends in a stage of the coordinator's."""

    workers: tuple[int, ...]
    at_home: bool

    @property
    def preference(self) -> tuple[int, bool, tuple[int, ...]]:
        """Sorts orders that are equally fast: few hops first, then those that return no logits, then by name."""
        return len(self.workers), not self.at_home, self.workers


@dataclass(frozen=True, slots=True)
class Choice:
    """The order to take, and the seconds of a token in the fastest one that was found, which may be another."""

    order: Order
    best_seconds: float


def acceptable_seconds(costs: RouteCosts, best_seconds: float) -> float:
    """Return the most that a token may take where `best_seconds` is the least: never more than with a single machine."""
    singles = costs.first + costs.last[:, 0] + costs.reply
    return float(min(best_seconds * (1 + MARGIN), costs.own[0], singles.min(initial=np.inf)))


@dataclass(frozen=True, slots=True)
class Division:
    """Worker `i` of the order begins with layer `starts[i]`; who comes next begins where it ends, last the coordinator.

    `seconds` are those of a token, infinite where no division fits.
    """

    order: Order
    starts: tuple[int, ...]
    seconds: float


def divide(costs: RouteCosts, order: Order, evenness: float = 0.0) -> Division:
    """Return the fastest division of all layers among all workers of `order`.

    With `evenness`, in 1/s, each stage counts as if it took `seconds * (1 + evenness * seconds)`: of divisions that are about
    equally fast, the one that gives everybody equally much to do.
    """
    if not order.workers:
        return Division(order, (0,), float(costs.own[0]))
    arrived = costs.arriving(order.workers[0])
    begun: list[NDArray[np.intp]] = []  # the best start of each stage, by its end
    for worker, hop in zip(order.workers, _hops(costs, order), strict=False):
        sums = arrived[:, None] + _evened(costs.spans[worker], evenness)
        begun.append(sums.argmin(axis=0))
        arrived = sums.min(axis=0) + hop
    starts = [int((arrived + _evened(_final(costs, order), evenness)).argmin())]
    for by_end in reversed(begun):
        starts.insert(0, int(by_end[starts[0]]))
    return Division(order, tuple(starts), _total(costs, order, starts))


def _hops(costs: RouteCosts, order: Order) -> list[float]:
    """Return the hops behind the stages that are layers only."""
    hops = [float(costs.between[pair]) for pair in pairwise(order.workers)]
    return [*hops, float(costs.back[order.workers[-1]])] if order.at_home else hops


def _final(costs: RouteCosts, order: Order) -> Reals:
    """Return the seconds of the stage with the head, by the layer it begins with."""
    return costs.own if order.at_home else costs.last[order.workers[-1]]


def _evened(seconds: Reals, evenness: float) -> Reals:
    return seconds + evenness * seconds * seconds if evenness else seconds


def _total(costs: RouteCosts, order: Order, starts: list[int]) -> float:
    stages = zip(order.workers, pairwise(starts), strict=False)
    seconds = sum(float(costs.spans[worker, start, end]) for worker, (start, end) in stages)
    hops = [float(costs.first[order.workers[0]]), *_hops(costs, order)]
    reply = 0.0 if order.at_home else float(costs.reply[order.workers[-1]])
    return seconds + float(_final(costs, order)[starts[-1]]) + sum(hops) + reply
