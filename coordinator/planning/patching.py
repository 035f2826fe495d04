"""What a plan becomes when a machine goes away and everybody else is to keep what it has."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from layermesh.coordinator.planning.machines import Links, Machine
from layermesh.coordinator.planning.mesh_plan import MeshPlan, Part, predict_mesh
from layermesh.coordinator.planning.model_cost import ModelCost
from layermesh.shared.errors import BudgetError
from layermesh.shared.spans import LayerSpan

Placed = tuple[str, LayerSpan]  # a machine's name and what it runs
WORTH: Final = 1.5  # times the seconds of the best plan that one may take which leaves the others as they are


def patch_mesh(model: ModelCost, placed: Sequence[Placed], machines: Sequence[Machine], links: Links) -> MeshPlan | None:
    """Return `placed` with the span of whoever is not among `machines` given, as a whole, to whoever is fastest then.

    A machine may so get a second span, beside the first one in its memory and without reading either for every token. The
    coordinator's machine, which comes last, only takes what is next to its own. None where that cannot be, or where several
    spans that do not follow each other are lost.
    """
    by_name = {machine.name: machine for machine in machines}
    lost = [number for number, (name, _) in enumerate(placed) if name not in by_name]
    if not lost or lost != list(range(lost[0], lost[-1] + 1)):
        return None
    first, last = lost[0], lost[-1] + 1
    span = LayerSpan(placed[first][1].start, placed[last - 1][1].end)
    tries = ([*placed[:first], (name, span), *placed[last:]] for name in by_name)
    plans = [plan for tried in tries if (plan := _predict(model, tried, by_name, links)) is not None]
    return min(plans, key=lambda plan: plan.seconds_per_token, default=None)


def _predict(model: ModelCost, placed: Sequence[Placed], by_name: Mapping[str, Machine], links: Links) -> MeshPlan | None:
    """Predict a division; None where it does not fit, or where the coordinator's spans are not one at the end."""
    own = [(by_name[name], span) for name, span in placed if by_name[name].is_coordinator]
    others = [(by_name[name], span) for name, span in placed if not by_name[name].is_coordinator]
    names = [machine.name for machine, _ in others]
    parts = [Part(_beside(machine, others[:number], model), span) for number, (machine, span) in enumerate(others)]
    if own:
        parts.append(Part(own[0][0], LayerSpan(own[0][1].start, own[-1][1].end)))
    with suppress(BudgetError, ValueError):
        plan = predict_mesh(model, parts, links)
        if not any(stage.streamed_bytes for stage in plan.stages if names.count(stage.machine) > 1):
            return plan
    return None


def _beside(machine: Machine, before: Sequence[tuple[Machine, LayerSpan]], model: ModelCost) -> Machine:
    """Return the machine with the memory that the spans it has `before` leave of it."""
    taken = sum(
        sum(layer.loaded_bytes for layer in model.layers[span.start : span.end]) + model.base_bytes
        for other, span in before
        if other.name == machine.name
    )
    profile = machine.profile
    return replace(machine, profile=replace(profile, device_bytes=max(profile.device_bytes - taken, 0)))
