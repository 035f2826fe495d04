"""Measuring how fast this machine reads a model's blocks and computes with them, by doing both with some of them."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

from layermesh.shared.errors import CheckpointError, LayermeshError
from layermesh.shared.frames import Frame, LayerOutput, SessionId
from layermesh.shared.model.blocks import Block
from layermesh.shared.profile import Profile
from layermesh.shared.residency import Residency
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader, Loading
from layermesh.worker.placement import place_on
from layermesh.worker.stage import Stage
from layermesh.worker.streaming import Streamer

NUM_LAYERS = 8  # that stream in a trial
NUM_SWEEPS = 5
TRIAL = SessionId("trial")
FALLBACK_SECONDS = 1.2e-3  # transformers' Python and small kernels per layer, for models that cannot run in part


def measure_profile(stage: Stage) -> Profile:
    """Send tokens through some layers of `stage`, once with what stays in memory and once with what streams.

    The stage must have made its plan and not run yet: this takes the memory that its residents would. Reading and computing
    share cores and memory: by how much the two together are slower than the slower of them counts as reading. Raises
    CheckpointError where a block cannot be read.
    """
    residency = stage.residency
    assert residency is not None
    by_layer = groupby(residency.blocks, key=lambda block: block.layer)
    layers = [list(blocks) for layer, blocks in by_layer if layer is not None]  # each whole, or in pieces
    heads = [block for block in residency.blocks if block.layer is None and block.name in residency.resident]
    with _loading() as loader:
        reading = _sample(layers, NUM_LAYERS) if layers else residency.streamed
        load_seconds = _load(loader, [block for block in reading if not block.is_core], stage) if reading else 0.0
        for hidden in stage.trial_inputs:
            trial = _Trial(stage, loader, hidden)
            try:
                if layers:
                    return _measure(trial, layers, heads, load_seconds)
                return _measure_head(trial, heads, load_seconds)
            except CheckpointError:
                raise
            except LayermeshError:  # a family whose layers do not run without each other
                continue
    per_byte = FALLBACK_SECONDS / _loaded_bytes(layers[0]) if layers else 0.0
    return Profile(load_seconds / max(_stored_bytes(reading), 1), per_byte, 0.0)


@dataclass(frozen=True, slots=True)
class _Trial:
    """A stage to try out, what brings its blocks, and the hidden states that it would be handed."""

    stage: Stage
    loader: BlockLoader
    hidden: LayerOutput | None


def _measure(trial: _Trial, layers: Sequence[Sequence[Block]], heads: Sequence[Block], load_seconds: float) -> Profile:
    stage = trial.stage
    assert stage.residency is not None
    num_fitting = min(max(stage.residency.resident_bytes // _loaded_bytes(layers[0]), 2), NUM_LAYERS)
    first, fitting, reading = _sample(layers, 1), _sample(layers, num_fitting), _sample(layers, NUM_LAYERS)
    one = _time(trial, [*first, *heads], streaming=False)
    both = _time(trial, [*fitting, *heads], streaming=False)
    per_byte = both / _loaded_bytes([*fitting, *heads])
    if len(layers) > 1 and both > one:
        per_byte = min((both - one) / (_loaded_bytes(fitting) - _loaded_bytes(first)), per_byte)
    outside = max(one - per_byte * _loaded_bytes([*first, *heads]), 0)
    computing = per_byte * _loaded_bytes(reading)
    together = _time(trial, reading, streaming=True) - outside
    if load_seconds > computing and trial.loader.passes_page_cache:  # it has become regular, and really reads
        load_seconds = max(together, computing)
    else:
        load_seconds += max(together - max(load_seconds, computing), 0)
    return Profile(load_seconds / max(_stored_bytes(reading), 1), per_byte, outside)


def _measure_head(trial: _Trial, heads: Sequence[Block], load_seconds: float) -> Profile:
    """Measure a stage that has no layers; a head that streams counts as reading, next to which its product is nothing."""
    assert trial.stage.residency is not None
    per_stored = load_seconds / max(trial.stage.residency.streamed_bytes, 1)
    per_byte = _time(trial, heads, streaming=False) / _loaded_bytes(heads) if heads else 0.0
    return Profile(per_stored, per_byte, 0.0)


def _time(trial: _Trial, blocks: Sequence[Block], *, streaming: bool) -> float:
    """Seconds of a sweep through `blocks`, when it has become regular."""
    stage = trial.stage
    streamer = _streamer(stage, trial.loader, blocks, streaming=streaming)
    times = []
    try:
        for number in range(2 + NUM_SWEEPS):  # the first brings the blocks, the second is the first to find them there
            began = time.monotonic()
            stage.trial(Frame(TRIAL, 0, number, number, (0,), trial.hidden), blocks, streamer)
            times.append(time.monotonic() - began)
    finally:
        stage.release(TRIAL)
        stage.unbind(blocks)
        streamer.close()
    return statistics.mean(times[2:]) if streaming else statistics.median(times[2:])


def _streamer(stage: Stage, loader: BlockLoader, blocks: Sequence[Block], *, streaming: bool) -> Streamer:
    residency = stage.residency
    assert residency is not None
    names = frozenset(block.name for block in blocks if block.is_core or not streaming)
    slots = (max(residency.num_slots, 2), max(block.loaded_bytes for block in blocks)) if streaming else (0, 0)
    trial = Residency(tuple(blocks), names, *slots, 0)
    return Streamer(trial, loader, place_on(stage.device, trial))


def reading_seconds(stage: Stage, blocks: Sequence[Block], most_bytes: int) -> tuple[int, float]:
    """Read `blocks`, or as many as make `most_bytes`, with nobody computing; return the bytes and the seconds."""
    chosen: list[Block] = []
    num_bytes = 0
    for block in blocks:
        if not chosen or num_bytes + block.stored_bytes <= most_bytes:
            chosen.append(block)
            num_bytes += block.stored_bytes
    with _loading() as loader:
        return num_bytes, _load(loader, chosen, stage)


def _load(loader: BlockLoader, blocks: Sequence[Block], stage: Stage) -> float:
    """Seconds to bring `blocks` one behind the other through two buffers."""
    assert stage.residency is not None
    placement = place_on(stage.device, stage.residency)
    buffers = [placement.buffer(max(block.loaded_bytes for block in blocks)) for _ in range(2)]
    for buffer in buffers:  # starts the threads, imports what decodes, touches the memory
        loader.start(blocks[0], buffer).wait()
    began = time.monotonic()
    loadings: list[Loading] = []
    for number, block in enumerate(blocks):
        if number >= len(buffers):
            loadings[number - len(buffers)].wait()
        loadings.append(loader.start(block, buffers[number % len(buffers)]))
    for loading in loadings:
        loading.wait()
    placement.close()
    return time.monotonic() - began


@contextmanager
def _loading() -> Iterator[BlockLoader]:
    files = FileReader()
    loader = BlockLoader(files)
    try:
        yield loader
    finally:
        loader.close()
        files.close()


def _sample(layers: Sequence[Sequence[Block]], num_layers: int) -> list[Block]:
    """Return the blocks of `num_layers` from all over the stack, the first among them, or of all where there are fewer."""
    if num_layers >= len(layers):
        return [block for layer in layers for block in layer]
    step = (len(layers) - 1) / max(num_layers - 1, 1)
    return [block for number in range(num_layers) for block in layers[int(number * step)]]


def _loaded_bytes(blocks: Sequence[Block]) -> int:
    return sum(block.loaded_bytes for block in blocks)


def _stored_bytes(blocks: Sequence[Block]) -> int:
    return sum(block.stored_bytes for block in blocks)
