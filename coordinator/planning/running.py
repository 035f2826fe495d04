"""Divisions of a model that are given: one that runs already, and an even one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layermesh.coordinator.planning.machines import Machine
from layermesh.coordinator.planning.mesh_plan import Part
from layermesh.shared.spans import LayerSpan


@dataclass(frozen=True, slots=True)
class Running:
    """A span that is in use on a machine, with or without the head."""

    span: LayerSpan
    has_head: bool


def running_parts(running: Mapping[str, Running], machines: Sequence[Machine], own: Machine, num_layers: int) -> list[Part]:
    """Return the parts of a route that others use at the moment; what is behind them, the head at least, is for `own`.

    `running` has what is in use on each machine. Nothing comes back where these do not follow each other from the first layer
    on.
    """
    by_name = {machine.name: machine for machine in machines}
    parts: list[Part] = []
    end, has_head = 0, False
    for name, one in sorted(running.items(), key=lambda item: (item[1].span.start, item[0])):
        if one.span.start != end or name not in by_name:
            return []
        parts.append(Part(by_name[name], one.span))
        end, has_head = one.span.end, one.has_head
    if parts and not has_head:
        parts.append(Part(own, LayerSpan(end, num_layers)))
    return parts


def spread_evenly(machines: Sequence[Machine], own: Machine, num_layers: int) -> list[Part]:
    """Give every machine about as many layers as the others, in the order of their names, and the head to `own`."""
    chosen = sorted(machines, key=lambda machine: machine.name)[:num_layers]
    spans = LayerSpan.divide(num_layers, len(chosen))
    parts = [Part(machine, span) for machine, span in zip(chosen, spans, strict=True)]
    return [*parts, Part(own, LayerSpan(num_layers, num_layers))]
