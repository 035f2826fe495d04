"""The seconds that a token takes in every stage and hop a route could have."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layermesh.coordinator.planning.machines import Links, Machine
from layermesh.coordinator.planning.model_cost import ModelCost
from layermesh.coordinator.planning.span_sizes import Reals, SpanTable
from layermesh.coordinator.planning.stage_cost import stage_costs


@dataclass(frozen=True, slots=True)
class RouteCosts:
    """Seconds, infinite where something does not fit. Workers are numbered; `n` is the number of layers.

    `spans` [worker, start, end] are stages of layers only, `last` [worker, start] those from a layer to the end, with the head,
    and `own` [start] the coordinator's. Then hops: `first` [worker] from the coordinator, `between` [worker, worker], `back`
    [worker] to a stage of the coordinator's, `reply` [worker] with logits.
    """

    spans: Reals  # [worker, n + 1, n + 1]
    last: Reals  # [worker, n + 1]
    own: Reals  # [n + 1]
    first: Reals  # [worker]
    between: Reals  # [worker, worker]
    back: Reals  # [worker]
    reply: Reals  # [worker]

    @property
    def num_workers(self) -> int:
        return len(self.first)

    def arriving(self, worker: int) -> Reals:
        """Return the seconds until a token comes from the coordinator to `worker`, by the layer it waits for: the first."""
        seconds = np.full(len(self.own), np.inf)
        seconds[0] = self.first[worker]
        return seconds

    def after(self, worker: int, arrived: Reals) -> Reals:
        """Return the seconds until `worker` has done its layers, by the layer that comes next."""
        seconds: Reals = (arrived[:, None] + self.spans[worker]).min(axis=0)
        return seconds

    def at_home(self, worker: int, done: Reals) -> Reals:
        """Return the seconds of a whole token whose last worker is this one, by the layer the coordinator goes on with."""
        seconds: Reals = done + self.back[worker] + self.own
        return seconds

    def answered(self, worker: int, arrived: Reals) -> Reals:
        """Return the seconds of a whole token whose logits come from this worker, by the layer it begins with."""
        seconds: Reals = arrived + self.last[worker] + self.reply[worker]
        return seconds


def route_costs(model: ModelCost, workers: Sequence[Machine], coordinator: Machine | None, links: Links) -> RouteCosts:
    """Work out the cost of every stage and hop. Raises ValueError where a link is missing."""
    table, num_layers = SpanTable(model), len(model.layers)
    starts, ends = np.triu_indices(num_layers + 1, k=1)
    some = table.sizes(starts, ends, has_head=False)
    to_end = table.sizes(np.arange(num_layers + 1), num_layers, has_head=True)
    spans = np.full((len(workers), num_layers + 1, num_layers + 1), np.inf)
    last = np.full((len(workers), num_layers + 1), np.inf)
    for number, worker in enumerate(workers):
        spans[number, starts, ends] = stage_costs(worker, model, some).seconds
        last[number, :-1] = stage_costs(worker, model, to_end).seconds[:-1]  # a worker has layers, not only the head
    own = np.full(num_layers + 1, np.inf) if coordinator is None else stage_costs(coordinator, model, to_end).seconds
    near = [links.with_coordinator(worker.name) for worker in workers]
    hidden = _seconds([link.seconds_for(model.hidden_bytes) for link in near])
    reply = _seconds([link.seconds_for(model.logits_bytes) for link in near])
    return RouteCosts(spans, last, own, hidden, _between(model, workers, links), hidden, reply)


def _between(model: ModelCost, workers: Sequence[Machine], links: Links) -> Reals:
    names = [worker.name for worker in workers]
    seconds = [links.between(source, target).seconds_for(model.hidden_bytes) for source in names for target in names]
    return _seconds(seconds).reshape(len(names), len(names))


def _seconds(numbers: list[float]) -> NDArray[np.float64]:
    return np.array(numbers, np.float64)
