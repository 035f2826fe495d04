"""`layermesh plan` where there are other machines: what would run on which, and how fast."""

from collections.abc import Sequence

from layermesh.coordinator.planning.mesh_plan import PlannedStage
from layermesh.mesh import LayerMesh
from layermesh.shared.units import format_bytes, format_seconds
from layermesh.terminal import harmless, print_json
from layermesh.workers import Found


def print_mesh_plan(mesh: LayerMesh, found: Found, *, as_json: bool) -> None:
    """Print the part of each machine with its memory, what it streams and how long it takes."""
    plan = found.plan
    if as_json:
        print_json(
            {
                "model": mesh.local.name,
                "stages": [_to_dict(stage) for stage in plan.stages],
                "network_seconds": plan.network_seconds,
                "predicted_seconds_per_token": plan.seconds_per_token,
                "bottleneck": plan.bottleneck,
                "workers": [peer.name for peer in found.peers],
            }
        )
        return
    architecture = type(mesh.local.definition.model).__name__
    unused = _unused(found)
    lines = [
        f"{mesh.local.name}: {architecture}, {mesh.local.definition.num_layers} layers, {len(plan.stages)} machines",
        "",
        f"{'machine':<24}{'layers':>12}{'stays':>11}{'streams':>11}{'a token':>11}",
        *(_row(stage) for stage in plan.stages),
        f"{'the network':<24}{'':>34}{format_seconds(plan.network_seconds):>11}",
        "",
        f"predicted  {format_seconds(plan.seconds_per_token)} per token, limited by {harmless(plan.bottleneck)}",
        *([f"left out   {', '.join(map(harmless, unused))}: the others are faster without"] if unused else []),
    ]
    print("\n".join(lines))  # noqa: T201


def _unused(found: Found) -> Sequence[str]:
    used = {stage.machine for stage in found.plan.stages}
    return [peer.name for peer in found.peers if peer.name not in used]


def _row(stage: PlannedStage) -> str:
    span = stage.span
    layers = f"{span.start}–{span.end - 1}" if span.end > span.start else ""
    layers += (" + head" if layers else "head") if stage.has_head else ""
    sizes = f"{format_bytes(stage.resident_bytes):>11}{format_bytes(stage.streamed_bytes):>11}"
    return f"{harmless(stage.machine):<24}{layers:>12}{sizes}{format_seconds(stage.seconds):>11}"


def _to_dict(stage: PlannedStage) -> dict[str, object]:
    return {
        "worker": stage.machine,
        "start": stage.span.start,
        "end": stage.span.end,
        "has_head": stage.has_head,
        "memory_bytes": stage.memory_bytes,
        "resident_bytes": stage.resident_bytes,
        "streamed_bytes": stage.streamed_bytes,
        "seconds": stage.seconds,
        "bottleneck": stage.bottleneck,
    }
