"""`layermesh plan`: what a model would take, before it runs."""

from collections.abc import Sequence

from layermesh.local import WORKER_NAME, LocalModel
from layermesh.mesh import LayerMesh
from layermesh.shared.model.blocks import Block
from layermesh.shared.residency import Residency
from layermesh.shared.units import format_bytes, format_seconds
from layermesh.terminal import print_json


def print_plan(mesh: LayerMesh, what_if: Sequence[str], *, as_json: bool) -> None:
    """Print where the model would run and how fast: on the machines that there are, and on those of `what_if`."""
    found = None if mesh.workers is None else mesh.workers.find(what_if)
    if found is None or all(stage.machine == WORKER_NAME for stage in found.plan.stages):
        print_plan_alone(mesh.local, as_json=as_json)
    else:
        from layermesh.cli_mesh_plan import print_mesh_plan

        print_mesh_plan(mesh, found, as_json=as_json)


def print_plan_alone(local: LocalModel, *, as_json: bool) -> None:
    """Print the blocks of the model with their sizes, where each would live, and the predicted speed."""
    plan = local.plan(measured=True)
    residency = local.stage.residency
    assert residency is not None
    if as_json:
        blocks = [_describe(block, residency) for block in residency.blocks]
        print_json(
            {
                "model": local.name,
                "num_tokens": local.planned_tokens,
                "blocks": blocks,
                **plan.to_dict(),
                **budget_fields(local),
            }
        )
        return
    assert plan.predicted_seconds_per_token is not None
    architecture = type(local.definition.model).__name__
    lines = [
        (
            f"{local.name}: {architecture}, {local.definition.num_layers} layers, "
            f"computed in {str(local.dtype).removeprefix('torch.')} on {local.device}"
        ),
        "",
        f"{'block':<24}{'on disk':>10}{'in memory':>12}   where",
        *_rows(residency),
        "",
        (
            f"in memory  {format_bytes(residency.resident_bytes)} of blocks, "
            f"{format_bytes(residency.num_slots * residency.slot_bytes)} to stream through, "
            f"{format_bytes(residency.working_bytes)} for the caches of "
            f"{local.planned_tokens} tokens and the rest"
        ),
        f"streamed   {format_bytes(residency.streamed_bytes)} from disk for every token",
        f"budget     {describe_budget(local)}",
        f"predicted  {format_seconds(plan.predicted_seconds_per_token)} per token, limited by {plan.bottleneck}",
    ]
    print("\n".join(lines))  # noqa: T201


def describe_budget(local: LocalModel) -> str:
    """Return the memory that the model may take, and which limit on this process allows no more."""
    bytes_allowed, limit = local.budget.device_bytes, local.budget.limit
    return f"{format_bytes(bytes_allowed)} of memory" + (f", within a limit on this process: {limit}" if limit else "")


def budget_fields(local: LocalModel) -> dict[str, object]:
    """Return the same for --json."""
    return {"budget_bytes": local.budget.device_bytes, "memory_limit": local.budget.limit}


def _describe(block: Block, residency: Residency) -> dict[str, object]:
    return {
        "name": block.name,
        "layer": block.layer,
        "stored_bytes": block.stored_bytes,
        "loaded_bytes": block.loaded_bytes,
        "resident": block.name in residency.resident,
        "on_host": block.name in residency.on_host,
    }


def _rows(residency: Residency) -> list[str]:
    """One line for each run of layers that are alike; layers in pieces take a line for each kind of piece that lives alike."""
    kinds: dict[tuple[object, ...], list[Block]] = {}
    run = 0
    for block, before in zip(residency.blocks, (None, *residency.blocks), strict=False):
        likeness = (_kind(block), _where(block, residency), block.stored_bytes, block.loaded_bytes)
        if likeness[0] is None and before is not None and (block.layer is None, *likeness) != _likeness(before, residency):
            run += 1
        kinds.setdefault((*likeness, run if likeness[0] is None else None), []).append(block)
    return [_row(blocks, residency) for blocks in kinds.values()]


def _likeness(block: Block, residency: Residency) -> tuple[object, ...]:
    return block.layer is None, _kind(block), _where(block, residency), block.stored_bytes, block.loaded_bytes


def _kind(block: Block) -> str | None:
    """What a piece of a layer is called in every layer; None for anything that is no piece."""
    if block.is_core:
        return "core"
    return None if block.module is None else block.module.partition(f".{block.layer}.")[2]


def _row(blocks: Sequence[Block], residency: Residency) -> str:
    first, kind = blocks[0], _kind(blocks[0])
    name = first.name if len(blocks) == 1 else f"{first.name} to {blocks[-1].name}"
    if kind is not None:
        name = f"layers: {kind}"
    each = f"  × {len(blocks)}" if len(blocks) > 1 else ""
    sizes = f"{format_bytes(first.stored_bytes):>10}{format_bytes(first.loaded_bytes):>12}"
    return f"{name:<24}{sizes}   {_where(first, residency)}{each}"


def _where(block: Block, residency: Residency) -> str:
    if block.name in residency.resident:
        return "stays"
    return "stays on the host" if block.name in residency.on_host else "streams"
