"""Run a checkpoint through layermesh's stages, with so little memory that every layer streams in every sweep."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from layermesh.coordinator.pipeline import Pipeline
from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.footprint import Footprint, SequenceSize
from layermesh.shared.frames import Frame, SessionId
from layermesh.shared.model.block_table import build_block_table
from layermesh.shared.model.definition import define_model
from layermesh.shared.residency import LOOK_AHEAD
from layermesh.shared.spans import LayerSpan
from layermesh.worker.stage import Stage
from tests.architectures.tiny import Reference


@contextmanager
def streaming_pipeline(
    folder: Path, num_stages: int, num_tokens: int, num_new: int, *, fast_path: bool = False
) -> Iterator[Pipeline]:
    """Divide the model in `folder` among stages that hold no layer for longer than its turn."""
    checkpoint = open_checkpoint(folder, folder / "unpacked")
    num_layers = define_model(folder, torch.float32).num_layers
    stages: list[Stage] = []
    try:
        for span in LayerSpan.divide(num_layers, num_stages):
            definition = define_model(folder, torch.float32)
            table = build_block_table(checkpoint, definition, fast_path=fast_path)
            largest = max(block.loaded_bytes for block in table.layers)
            size = SequenceSize(num_tokens, num_new)
            working_bytes = Footprint.of(definition, span, table).working_bytes(size)
            budget_bytes = working_bytes + (1 + LOOK_AHEAD) * largest
            stage = Stage(definition, table, span, torch.device("cpu"), budget_bytes)
            stages.append(stage)
            stage.reserve(SessionId("session 0"), size)
            assert stage.residency is not None
            if sum(block.loaded_bytes for block in table.layers[span.start : span.end]) > (1 + LOOK_AHEAD) * largest:
                assert not {block.name for block in table.layers} & stage.residency.resident
        yield Pipeline(stages)
    finally:
        for stage in stages:
            stage.close()


def answer_greedily(pipeline: Pipeline, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[Reference]:
    """Let `prompts` share every sweep and return for each its greedy tokens and their logits."""
    answers = [Reference([], []) for _ in prompts]
    frames = [Frame(SessionId(f"session {i}"), 0, 0, 0, tuple(prompt)) for i, prompt in enumerate(prompts)]
    for step in range(1, num_tokens + 1):
        for answer, logits in zip(answers, pipeline.sweep(frames), strict=True):
            answer.logits.append(logits.scores)
            answer.token_ids.append(int(logits.scores.argmax()))
        frames = [
            Frame(frame.session, 0, step, frame.position + len(frame.token_ids), (answer.token_ids[-1],))
            for frame, answer in zip(frames, answers, strict=True)
        ]
    return answers


def difference(ours: Reference, theirs: Reference, within: float = 0.0) -> str:
    """Say in what two answers differ; nothing if their tokens are equal and no logit differs by more than `within`."""
    if ours.token_ids != theirs.token_ids:
        return f"tokens {ours.token_ids} and not {theirs.token_ids}"
    furthest = max(float((a - b).abs().max()) for a, b in zip(ours.logits, theirs.logits, strict=True))
    return f"logits differ by up to {furthest:.1e}" if furthest > within else ""
