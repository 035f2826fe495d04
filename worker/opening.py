"""From a checkpoint to a stage of some of its layers."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from layermesh.shared.checkpoints import Checkpoint
from layermesh.shared.checkpoints.json_files import read_object
from layermesh.shared.model.block_table import build_block_table
from layermesh.shared.model.blocks import BlockTable
from layermesh.shared.model.checking import blaming, check_config
from layermesh.shared.model.definition import ModelDefinition, define_model
from layermesh.shared.model.lean_layer import LeanLayer
from layermesh.shared.process_limits import limited_memory
from layermesh.shared.quant.native.kernel import PLAIN_COLUMNS, native_kernel
from layermesh.shared.spans import LayerSpan
from layermesh.shared.units import format_bytes
from layermesh.worker.machine import free_memory, pick_dtype
from layermesh.worker.stage import Stage


@dataclass(frozen=True, slots=True)
class StageBudget:
    """Bytes that a stage may take on its device, with the flag that allows more, and on the host beside a card.

    `limit` is what allows no more host memory where that is less than the machine has, or than the user allows; `notice` is
    what the user should know about it.
    """

    device_bytes: int
    flag: str = "--host-memory"
    host_bytes: int | None = None
    limit: str | None = None
    notice: str | None = None


def choose_budget(device: torch.device, device_bytes: int | None, host_bytes: int | None) -> StageBudget:
    """Return what a stage on `device` may take of what the user allows; what nobody named is what is free now.

    What is named for the host is reduced where a limit on this process leaves less, and the budget's notice says so.
    """
    budget, is_host = named_budget(device, device_bytes, host_bytes), device.type == "cpu"
    on_host = budget.device_bytes if is_host else budget.host_bytes or 0
    if host_bytes is None and (device_bytes is None or not is_host):
        return budget
    tightest = min(limited_memory(), key=lambda free: free.num_bytes, default=None)
    if tightest is None or on_host <= tightest.num_bytes:
        return budget
    reduced = replace(budget, device_bytes=tightest.num_bytes) if is_host else replace(budget, host_bytes=tightest.num_bytes)
    flag = budget.flag if is_host else "--host-memory"
    said = f"{flag} {format_bytes(on_host)} is reduced to {format_bytes(tightest.num_bytes)}, which is all that a limit leaves"
    return replace(reduced, limit=tightest.limit, notice=f"{said}: {tightest.limit}. Raise that limit to use more.")


def named_budget(device: torch.device, device_bytes: int | None, host_bytes: int | None) -> StageBudget:
    """Return what the user allows, and what is free now for what nobody named."""
    if device.type == "cpu":
        given = [(host_bytes, "--host-memory"), (device_bytes, "--device-memory")]
        named = [(budget, flag) for budget, flag in given if budget is not None]
        if named:
            return StageBudget(*min(named))
        free = free_memory(device)
        return StageBudget(free.num_bytes, limit=free.limit)
    on_card = free_memory(device).num_bytes if device_bytes is None else device_bytes
    if host_bytes is not None:
        return StageBudget(on_card, "--device-memory", host_bytes)
    free = free_memory(torch.device("cpu"))
    return StageBudget(on_card, "--device-memory", free.num_bytes // 2, free.limit)  # pinned, so nobody else gets it


def define(checkpoint: Checkpoint, dtype: torch.dtype, *, fast_path: bool) -> tuple[ModelDefinition, BlockTable]:
    """Build what `checkpoint` describes, and divide it into blocks.

    Raises ModelError and its kin for a model that cannot be run.
    """
    check_config(checkpoint, read_object(checkpoint.config_dir / "config.json"))
    with blaming(checkpoint):
        definition = define_model(checkpoint.config_dir, dtype)
        return definition, build_block_table(checkpoint, definition, fast_path=fast_path)


def define_as_stored(
    checkpoint: Checkpoint, stored: torch.dtype | None, device: torch.device, *, fast_path: bool
) -> tuple[ModelDefinition, BlockTable]:
    """As `define`, computing in what suits weights that are `stored` so.

    Lean layers do with bfloat16 on any processor that our kernel can be built for. Others take what torch does well.
    """
    dtype = pick_dtype(stored, device)
    if stored is torch.bfloat16 and dtype is not stored and device.type == "cpu" and fast_path:
        definition, table = define(checkpoint, torch.bfloat16, fast_path=True)
        if _has_fast_bfloat16(definition):
            return definition, table
    return define(checkpoint, dtype, fast_path=fast_path)


def open_stage(
    checkpoint: Checkpoint,
    definition: ModelDefinition,
    table: BlockTable,
    span: LayerSpan,
    device: torch.device,
    budget: StageBudget,
    *,
    has_head: bool = True,
) -> Stage:
    """Open a stage of `span`, to which `definition` belongs from then on; the last one has the head if it is to."""
    with blaming(checkpoint):
        return Stage(definition, table, span, device, budget.device_bytes, budget.flag, budget.host_bytes, has_head=has_head)


def _has_fast_bfloat16(definition: ModelDefinition) -> bool:
    """Whether all products in `definition` are such as our kernel makes in bfloat16 on a processor that does not."""
    matrices = [module for module in definition.layers.modules() if isinstance(module, nn.Linear)]
    is_lean = all(isinstance(layer, LeanLayer) for layer in definition.layers)
    return is_lean and all(each.in_features % PLAIN_COLUMNS == 0 for each in matrices) and native_kernel() is not None
