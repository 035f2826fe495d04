"""Which machine runs which layers, and how long a token then takes and what for."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from layermesh.coordinator.planning.machines import Links, Machine
from layermesh.coordinator.planning.model_cost import ModelCost
from layermesh.coordinator.planning.span_sizes import SpanTable
from layermesh.coordinator.planning.stage_cost import StageBottleneck, stage_costs, stage_floor
from layermesh.shared.errors import BudgetError
from layermesh.shared.spans import LayerSpan

WORDS: Final = {"disk": "disk", "bus": "bus", "compute": "computing"}


@dataclass(frozen=True, slots=True)
class Part:
    """What a machine is given to run; the last part of a mesh has the head as well."""

    machine: Machine
    span: LayerSpan


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One machine's part, and what it will take.

    `memory_bytes` is all that it takes where it computes, of which `resident_bytes` are weights that stay; `streamed_bytes` are
    read from disk for every token, in which it is busy for `seconds`, most of all with its `bottleneck`.
    """

    machine: str
    span: LayerSpan
    has_head: bool
    memory_bytes: int
    resident_bytes: int
    streamed_bytes: int
    seconds: float
    bottleneck: StageBottleneck

    @property
    def complaint(self) -> str:
        """What one would say it waits for: "attic's disk"."""
        return f"{self.machine}'s {WORDS[self.bottleneck]}"


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """Stages in the order in which a token visits them, and the seconds it is under way between them."""

    stages: tuple[PlannedStage, ...]
    network_seconds: float

    @property
    def seconds_per_token(self) -> float:
        """Stages and hops, one after the other."""
        return sum(stage.seconds for stage in self.stages) + self.network_seconds

    @property
    def bottleneck(self) -> str:
        """What most of a token's time goes to: "attic's disk", "den-pc's bus", "desk's computing" or "the network"."""
        slowest = max(self.stages, key=lambda stage: stage.seconds)
        return slowest.complaint if slowest.seconds >= self.network_seconds else "the network"


def predict_mesh(model: ModelCost, parts: Sequence[Part], links: Links) -> MeshPlan:
    """Predict a token that visits `parts` in order, for instance those that run already.

    Raises ValueError unless they cover the model's layers in order, and BudgetError where one does not fit its machine.
    """
    starts, ends = [part.span.start for part in parts], [part.span.end for part in parts]
    if [0, *ends] != [*starts, len(model.layers)] or any(part.machine.is_coordinator for part in parts[:-1]):
        raise ValueError(f"parts cover {len(model.layers)} layers in order and end with the coordinator: {_spans(parts)}")
    table = SpanTable(model)
    stages = tuple(_stage(model, table, part, has_head=part is parts[-1]) for part in parts)
    return MeshPlan(stages, _network_seconds(model, [part.machine for part in parts], links))


def _stage(model: ModelCost, table: SpanTable, part: Part, *, has_head: bool) -> PlannedStage:
    machine, span = part.machine, part.span
    sizes = table.sizes(np.array(span.start), np.array(span.end), has_head=has_head)
    costs = stage_costs(machine, model, sizes)
    if not costs.fits:
        floor = stage_floor(machine, model, sizes)
        raise BudgetError(f"layers {span} on {machine.name}", floor.budget_bytes, floor.needed_bytes, floor.flag)
    disk, bus, compute = (float(seconds) for seconds in (costs.disk_seconds, costs.bus_seconds, costs.compute_seconds))
    shares: list[tuple[float, StageBottleneck]] = [(compute, "compute"), (bus, "bus"), (disk, "disk")]
    seconds, bottleneck = max(shares, key=lambda share: share[0])
    return PlannedStage(
        machine=machine.name,
        span=span,
        has_head=has_head,
        memory_bytes=round(float(costs.memory_bytes)),
        resident_bytes=round(float(costs.resident_bytes)),
        streamed_bytes=round(float(costs.streamed_bytes)),
        seconds=seconds,
        bottleneck=bottleneck,
    )


def _network_seconds(model: ModelCost, machines: Sequence[Machine], links: Links) -> float:
    """Return what the hops take: none where a token begins and ends at the coordinator without leaving it."""
    first, last = machines[0], machines[-1]
    if first.is_coordinator:
        return 0.0
    hops = [links.with_coordinator(first.name).seconds_for(model.hidden_bytes)]
    for source, target in pairwise(machines):
        way = links.with_coordinator(source.name) if target.is_coordinator else links.between(source.name, target.name)
        hops.append(way.seconds_for(model.hidden_bytes))
    if not last.is_coordinator:
        hops.append(links.with_coordinator(last.name).seconds_for(model.logits_bytes))
    return sum(hops)


def _spans(parts: Sequence[Part]) -> str:
    return ", ".join(f"{part.machine.name} {part.span}" for part in parts)
