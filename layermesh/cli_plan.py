"""`layermesh plan`: what a model would take, before it runs."""

from itertools import groupby

from layermesh.local import LocalModel
from layermesh.shared.model.blocks import Block
from layermesh.shared.residency import Residency
from layermesh.shared.units import format_bytes, format_seconds
from layermesh.terminal import print_json


def print_plan(local: LocalModel, *, as_json: bool) -> None:
    """Print the blocks of the model with their sizes, where each would live, and the predicted speed."""
    plan = local.plan(measured=True)
    residency = local.stage.residency
    assert residency is not None
    if as_json:
        blocks = [_describe(block, residency) for block in residency.blocks]
        print_json({"model": local.name, "num_tokens": local.planned_tokens, "blocks": blocks, **plan.to_dict()})
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
        f"predicted  {format_seconds(plan.predicted_seconds_per_token)} per token, limited by {plan.bottleneck}",
    ]
    print("\n".join(lines))  # noqa: T201


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
    """One line for each run of blocks that are alike."""

    def likeness(block: Block) -> tuple[bool, str, int, int]:
        return block.layer is None, _where(block, residency), block.stored_bytes, block.loaded_bytes

    rows = []
    for (_, where, stored, loaded), alike in groupby(residency.blocks, key=likeness):
        blocks = list(alike)
        name = blocks[0].name if len(blocks) == 1 else f"{blocks[0].name} to {blocks[-1].name}"
        each = f"  × {len(blocks)}" if len(blocks) > 1 else ""
        rows.append(f"{name:<24}{format_bytes(stored):>10}{format_bytes(loaded):>12}   {where}{each}")
    return rows


def _where(block: Block, residency: Residency) -> str:
    if block.name in residency.resident:
        return "stays"
    return "stays on the host" if block.name in residency.on_host else "streams"
