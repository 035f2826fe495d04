"""A model as this machine has it open: all of its layers here, or its part of a route of workers."""

import logging
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Unpack

import torch

from layermesh.coordinator.answer import HopFigures
from layermesh.coordinator.generation_config import read_generation_config
from layermesh.coordinator.mesh_pipeline import MeshPipeline
from layermesh.coordinator.pipeline import Line, Pipeline
from layermesh.coordinator.plan import Plan, StagePlan
from layermesh.coordinator.recovery.lasting_line import LastingLine
from layermesh.coordinator.tokenizer import Tokenizer
from layermesh.packs import use_pack
from layermesh.settings import OpeningOptions, check_opening, device_budget, host_budget
from layermesh.shared.checkpoints import Checkpoint, open_checkpoint
from layermesh.shared.checkpoints.json_files import read_object
from layermesh.shared.checkpoints.packing import is_packed
from layermesh.shared.errors import BudgetError
from layermesh.shared.footprint import SequenceSize, planned_sizes
from layermesh.shared.frames import SessionId
from layermesh.shared.library import resolve
from layermesh.shared.library.home import unpacked_folder
from layermesh.shared.manifest import Manifest
from layermesh.shared.model.blocks import BlockTable
from layermesh.shared.model.context import choose_context, context_notices
from layermesh.shared.model.definition import ModelDefinition
from layermesh.shared.model.unused_tensors import describe_unused
from layermesh.shared.prediction import Prediction, predict
from layermesh.shared.residency import Residency
from layermesh.shared.spans import LayerSpan
from layermesh.shared.stage_key import StageKey
from layermesh.shared.tested_versions import newer_than_tested
from layermesh.worker.card_memory import CardMemory
from layermesh.worker.machine import pick_device, pick_dtype, return_memory_promptly
from layermesh.worker.opening import choose_budget, define, define_as_stored, open_stage
from layermesh.worker.profiling import measure_profile
from layermesh.worker.stage import Stage

WORKER_NAME = "local"
CHUNK_TOKENS = 512  # the most of a prompt that goes through the layers in one call
SMALLEST_CHUNK = 16
PLANNING = SessionId("plan")


class LocalModel:
    """A model opened on this machine, within the memory it is allowed.

    Raises ModelError and its kin for a model that cannot be run, ResourceError for a device that is not here, UsageError
    for options that make no sense.
    """

    def __init__(self, name: str, **options: Unpack[OpeningOptions]) -> None:
        began = time.monotonic()
        check_opening(options)
        return_memory_promptly()
        self.device = pick_device(options.get("device"))
        self.host_budget_bytes = host_budget(options)
        self.device_budget_bytes = device_budget(options)
        resolved = resolve(
            name,
            revision=options.get("revision"),
            offline=options.get("offline", False),
            progress=options.get("progress"),
        )
        self.name = resolved.name
        self.revision = options.get("revision")
        self._notices = resolved.notices
        self.checkpoint = use_pack(resolved, open_checkpoint(resolved.path, unpacked_folder()), options)
        self.planned_tokens: int | None = None  # the length of sequence that a plan makes room for
        self.fast_path = options.get("fast_path", True)
        self.on_tell: Callable[[str], None] = options.get("tell", _log)  # what a user should know meanwhile
        self._warned: set[str] = set()
        self.on_wait: Callable[[], None] = lambda: None  # called now and then while other machines compute
        self.on_progress: Callable[[str, str, int, int], None] = lambda *_: None  # who does what, and how far it is in bytes
        self.remote_stages: tuple[StagePlan, ...] = ()
        self.has_part = True  # of the layers or the head, where a route goes through workers
        self.predicted: Prediction | None = None  # for a route
        self.definition, self.table = self._define(_dtype(options.get("dtype")))
        self.context_length = choose_context(self.definition, options.get("context"), self.name)
        self.dtype: torch.dtype = self.definition.model.dtype
        self.budget = choose_budget(self.device, self.device_budget_bytes, self.host_budget_bytes)
        if self.budget.notice is not None:  # less than was asked for
            self._notices += (self.budget.notice,)
            self.host_budget_bytes = self.budget.device_bytes if self.device.type == "cpu" else self.budget.host_bytes
        self.card_memory = None if self.device.type == "cpu" else CardMemory(self.device, self.device_budget_bytes)
        try:
            self.stage = self._open_stage(LayerSpan(0, self.definition.num_layers))
        except BaseException:
            self._lift_bound()
            raise
        self.line: Line = Pipeline([self.stage])
        self.load_seconds = time.monotonic() - began

    def warn_once(self, text: str) -> None:
        """Tell the user `text`, the first time that it is so."""
        if text not in self._warned:
            self._warned.add(text)
            self.on_tell(f"note: {text}")

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about the model and how it runs."""
        unused = (describe_unused(self.table.unused),) if self.table.unused else ()
        context = context_notices(self.definition, self.context_length)
        return (*self._notices, *newer_than_tested(), *unused, *context, *self.stage.notices)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None if it has none. Raises TokenizerError for one that cannot be used."""
        folder = self.checkpoint.tokenizer_dir
        return None if folder is None else Tokenizer.load(folder, self.name)

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """What generation_config.json says, or in older models config.json; empty where neither says anything."""
        return read_generation_config(self.checkpoint.config_dir, self.config)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.json says."""
        return _read_json(self.checkpoint.config_dir / "config.json")

    def run_alone(self) -> Pipeline:
        """Have all layers here, and return the line through them."""
        self.run_part(LayerSpan(0, self.definition.num_layers))
        self.remote_stages, self.predicted, self.has_part = (), None, True
        return Pipeline([self.stage])

    def run_part(self, span: LayerSpan) -> None:
        """Have a stage of `span` here, in place of the one there is."""
        if self.stage.span == span:
            return
        watcher = self.stage.watcher
        self.stage.close()
        self.definition, self.table = define(self.checkpoint, self.dtype, fast_path=self.fast_path)
        self.stage = self._open_stage(span)
        self.stage.watcher = watcher

    @cached_property
    def manifest(self) -> Manifest:
        """What describes the model to other machines; reads a little of every tensor."""
        return Manifest.of(self.checkpoint, self.table, self.name)

    def stage_key(self, span: LayerSpan, *, has_head: bool) -> StageKey:
        """Return what a stage of `span` is known by everywhere."""
        return StageKey(self.manifest.fingerprint, span, str(self.dtype).removeprefix("torch."), self.fast_path, has_head)

    def reserve(self, session: SessionId, num_tokens: int, num_prompt: int) -> int:
        """Make room for a session of `num_tokens` and return how many tokens of its prompt to run at once.

        A long prompt goes in chunks, smaller ones where memory is short; families that keep a state take it whole.
        Raises BudgetError with the least memory that would do.
        """
        return self._fit(num_tokens, num_prompt, partial(self.line.reserve, session))

    def chunk_alone(self, num_tokens: int, num_prompt: int) -> int:
        """Return what `reserve` would with nobody else aboard, and reserve nothing. Raises BudgetError."""
        return self._fit(num_tokens, num_prompt, self.layout if self.has_part else lambda _: None)

    def layout(self, *sizes: SequenceSize) -> Residency:
        """Return what would stay and what would stream with sessions of these sizes aboard. Raises BudgetError."""
        return self.stage.plan(*sizes)

    def plan(self, *, measured: bool) -> Plan:
        """Return what stays in memory and what streams; `measured` also times a block, to predict the speed."""
        stages = (*self.remote_stages, *self._own_stages())
        prediction = self.predicted
        if measured and prediction is None and self.stage.residency is not None:
            prediction = predict([self.stage.residency], measure_profile(self.stage))
        if prediction is None:
            return Plan(stages)
        return Plan(stages, prediction.seconds_per_token, prediction.bottleneck)

    def _own_stages(self) -> tuple[StagePlan, ...]:
        """The part that runs here, if there is one."""
        if not self.has_part:
            return ()
        if self.stage.residency is None:
            self.reserve_for_plan()
        assert self.stage.residency is not None
        return (StagePlan.of(WORKER_NAME, self.stage.span, self.stage.residency),)

    def hop_figures(self) -> tuple[HopFigures, ...]:
        """Return where the time of recent tokens went on other machines, in the order of the route."""
        if (line := self.mesh_line) is None:
            return ()
        names = [hop.client.name for hop in line.route.hops]
        times = zip(names, line.hop_times(), strict=False)  # none before the first token
        return tuple(HopFigures(name, time.computed, time.waited) for name, time in times)

    def network_seconds(self) -> float | None:
        """Return what recent tokens spent between machines; None where this one is alone."""
        return None if (line := self.mesh_line) is None else line.network_seconds()

    @property
    def mesh_line(self) -> MeshPipeline | None:
        """The line through workers; None where this machine is alone, be it for want of them."""
        line = self.line.current if isinstance(self.line, LastingLine) else self.line
        return line if isinstance(line, MeshPipeline) else None

    def close(self) -> None:
        """Give everything back."""
        try:
            self.stage.close()
        finally:
            self._lift_bound()

    def _lift_bound(self) -> None:
        if self.card_memory is not None:
            self.card_memory.close()

    def _fit(self, num_tokens: int, num_prompt: int, reserve: Callable[[SequenceSize], object]) -> int:
        """Return the largest chunk of a prompt for which `reserve` finds room."""
        chunk = min(CHUNK_TOKENS, num_prompt) if self.definition.takes_chunks else num_prompt
        while True:
            try:
                reserve(SequenceSize(num_tokens, chunk))
            except BudgetError:
                if not self.definition.takes_chunks or chunk <= SMALLEST_CHUNK:
                    raise
                chunk = max(chunk // 2, SMALLEST_CHUNK)
            else:
                return chunk

    def reserve_for_plan(self) -> None:
        """Make room for as long a sequence as fits, from what is usual down to a short one."""
        for size in (sizes := planned_sizes(self.context_length)):
            try:
                self.reserve(PLANNING, size.num_tokens, size.num_tokens)
            except BudgetError:
                if size is sizes[-1]:
                    raise
            else:
                self.line.release(PLANNING)
                self.planned_tokens = size.num_tokens
                return

    def _define(self, dtype: torch.dtype | None) -> tuple[ModelDefinition, BlockTable]:
        stored = _stored_dtype(self.checkpoint, self.config)
        if dtype is not None or is_packed(self.config):
            return define(self.checkpoint, dtype or pick_dtype(stored, self.device), fast_path=self.fast_path)
        return define_as_stored(self.checkpoint, stored, self.device, fast_path=self.fast_path)

    def _open_stage(self, span: LayerSpan) -> Stage:
        return open_stage(self.checkpoint, self.definition, self.table, span, self.device, self.budget)


def _log(text: str) -> None:
    """Show a user of the Python API what nobody else asked to be told; on stderr unless logging is set up otherwise."""
    logging.getLogger("layermesh").warning(text)


def _dtype(name: str | None) -> torch.dtype | None:
    dtype: torch.dtype | None = getattr(torch, name, None) if name else None
    return dtype


def _stored_dtype(checkpoint: Checkpoint, config: dict[str, Any]) -> torch.dtype | None:
    """The dtype that most of the weights are stored in, or that quantised ones are to be computed in; None if nobody knows."""
    if config.get("quantization_config") is not None:
        named = None if is_packed(config) else _dtype(str(config.get("dtype") or config.get("torch_dtype")))
        return named if isinstance(named, torch.dtype) else torch.bfloat16
    sizes: dict[torch.dtype | None, int] = {}
    for tensor in checkpoint.tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.num_bytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


def _read_json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}
