"""Meshes drawn at random, and every division of a model's layers among machines, one by one."""

from collections.abc import Iterator
from functools import cache
from itertools import combinations, pairwise, permutations

import numpy as np
from hypothesis import strategies as st

from layermesh.coordinator.planning.machines import Link, Links, Machine
from layermesh.coordinator.planning.mesh_plan import MeshPlan, Part
from layermesh.coordinator.planning.model_cost import LayerCost, ModelCost
from layermesh.coordinator.planning.span_sizes import SpanTable
from layermesh.coordinator.planning.stage_cost import stage_costs
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.spans import LayerSpan

MB, GB = 10**6, 10**9
NAMES = ("attic", "den-pc", "hall", "kitchen", "loft", "porch")


def uniform(num_layers: int = 10, layer_bytes: int = 400 * MB, **changes: int) -> ModelCost:
    """Return a model of equal layers; `changes` are of its head, in bytes, and of what travels."""
    head = LayerCost(changes.get("head_bytes", 100 * MB), changes.get("head_bytes", 100 * MB))
    layers = (LayerCost(layer_bytes, layer_bytes),) * num_layers
    return ModelCost(layers, head, "int4", 100 * MB, changes.get("hidden_bytes", 16384), changes.get("logits_bytes", 500_000))


def machine(name: str, memory: float, disk: float = 1.0, compute: float = 20.0, *, is_coordinator: bool = False) -> Machine:
    """Return a machine without a card: memory in GB, rates in GB/s."""
    profile = MachineProfile(round(memory * GB), 0, 0.0, disk * GB, {"int4": compute * GB})
    return Machine(name, profile, is_coordinator=is_coordinator)


def star(*machines: Machine, seconds: float = 1e-3, rate: float = 100.0) -> Links:
    """Link all machines to the coordinator alike, at `rate` MB/s."""
    return Links({one.name: Link(seconds, rate * MB) for one in machines})


@st.composite
def layer_costs(draw: st.DrawFn) -> LayerCost:
    loaded = draw(st.sampled_from([200, 50, 400, 1200])) * MB
    stored = loaded // draw(st.sampled_from([1, 2]))
    return LayerCost(loaded, stored, draw(st.integers(0, 100)) * MB, draw(st.none() | st.just(loaded // 4)))


@st.composite
def models(draw: st.DrawFn, max_layers: int) -> ModelCost:
    num_layers = draw(st.integers(1, max_layers))
    alike = layer_costs().map(lambda layer: [layer] * num_layers)
    layers = draw(alike | st.lists(layer_costs(), min_size=num_layers, max_size=num_layers))
    head, logits_bytes = draw(layer_costs()), draw(st.sampled_from([0, 200_000, 2_000_000]))
    return ModelCost(tuple(layers), head, "int4", draw(st.integers(0, 100)) * MB, 16384, logits_bytes)


@st.composite
def profiles(draw: st.DrawFn) -> MachineProfile:
    memory, disk, compute = draw(st.integers(2, 40)) * 100 * MB, draw(st.integers(1, 30)) * 0.1 * GB, draw(st.integers(1, 60))
    host, bus = draw(st.just((0, 0.0)) | st.tuples(st.integers(1, 80).map(lambda size: size * 100 * MB), st.just(12.0 * GB)))
    return MachineProfile(memory, host, bus, disk, {"int4": compute * GB})


LINKS = st.builds(Link, st.sampled_from([2e-4, 1e-3, 2e-3, 5e-3, 0.1]), st.sampled_from([100.0 * MB, 10.0 * MB, 1.0 * MB]))
DELAYS = st.floats(0, 1e-3)


@st.composite
def meshes(draw: st.DrawFn, max_machines: int) -> tuple[list[Machine], Links]:
    names = draw(st.permutations(NAMES))[: draw(st.integers(1, max_machines))]
    has_coordinator = draw(st.booleans())
    machines = [
        Machine(name, draw(profiles()), draw(DELAYS), draw(st.floats(0.5, 4)), has_coordinator and name == names[0])
        for name in names
    ]
    near = {name: draw(LINKS) for name in names}
    pairs = [pair for pair in permutations(names, 2) if draw(st.booleans())]
    return machines, Links(near, {pair: draw(LINKS) for pair in pairs})


def divisions(machines: list[Machine], num_layers: int) -> Iterator[list[Part]]:
    """Return every way to give layers to machines: each of a worker's has at least one, the coordinator's may have none."""
    workers = [one for one in machines if not one.is_coordinator]
    for size in range(len(workers) + 1):
        for order in permutations(workers, size):
            for one in machines:
                if one.is_coordinator:
                    for cuts in combinations(range(1, num_layers + 1), size):
                        yield _parts([*order, one], [0, *cuts, num_layers])
            for cuts in combinations(range(1, num_layers), size - 1) if size else ():
                yield _parts(list(order), [0, *cuts, num_layers])


def _parts(order: list[Machine], bounds: list[int]) -> list[Part]:
    return [Part(one, LayerSpan(*ends)) for one, ends in zip(order, pairwise(bounds), strict=True)]


def least_seconds(model: ModelCost, machines: list[Machine], links: Links) -> float:
    """Try every division and return the seconds of the fastest; infinite where none fits."""
    table = SpanTable(model)
    by_name = {one.name: one for one in machines}

    @cache
    def stage(name: str, span: LayerSpan, has_head: bool) -> float:
        sizes = table.sizes(np.array(span.start), np.array(span.end), has_head=has_head)
        return float(stage_costs(by_name[name], model, sizes).seconds)

    @cache
    def hop(source: str | None, target: str | None, num_bytes: int) -> float:
        if source is None or target is None:
            return links.near[source or target or ""].seconds_for(num_bytes)
        return links.between(source, target).seconds_for(num_bytes)

    def seconds(parts: list[Part]) -> float:
        stages = sum(stage(part.machine.name, part.span, part is parts[-1]) for part in parts)
        stops = [None, *(part.machine.name for part in parts if not part.machine.is_coordinator), None]
        sizes = [model.hidden_bytes] * (len(stops) - 1)
        if not parts[-1].machine.is_coordinator:
            sizes[-1] = model.logits_bytes
        is_local = stops == [None, None]
        return stages + (0.0 if is_local else sum(hop(*ends, size) for ends, size in zip(pairwise(stops), sizes, strict=True)))

    return min((seconds(parts) for parts in divisions(machines, len(model.layers))), default=np.inf)


def summary(plan: MeshPlan) -> list[tuple[str, int, int]]:
    """Return who runs which layers."""
    return [(stage.machine, stage.span.start, stage.span.end) for stage in plan.stages]
