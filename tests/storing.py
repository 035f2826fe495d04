"""What tests of manifests, parts and stores share."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from layermesh.coordinator.pipeline import Pipeline
from layermesh.shared.checkpoints import Checkpoint, open_checkpoint
from layermesh.shared.frames import SessionId
from layermesh.shared.manifest import Manifest
from layermesh.shared.model.block_table import build_block_table
from layermesh.shared.model.definition import define_model
from layermesh.shared.part_source import PartSource
from layermesh.shared.spans import LayerSpan
from layermesh.worker.stage import Stage
from layermesh.worker.stored_model import StoredModel
from tests.architectures.runs import answer_greedily
from tests.architectures.tiny import PROMPT, Reference, build
from tests.running import PLENTY, SIZE
from tests.shared.checkpoints.gguf_models import LLAMA, attention, feed_forward, whole
from tests.shared.checkpoints.gguf_writing import write_gguf
from tests.shared.model.gpt_oss_models import save_gguf, save_mxfp4, untrained
from tests.shared.model.quantised_checkpoints import block_fp8, compressed, packed_int, quantised
from tests.shared.packing.packs import build_llama, packed

KINDS = (
    *("safetensors", "experts", "tied", "sharded", "gguf", "gguf tied", "gguf pieces", "gguf gpt-oss", "mxfp4", "int4"),
    *("int4 tied", "fp8 experts", "int4 words"),
)


@dataclass(frozen=True, slots=True)
class Described:
    """A model, what is said of it, and what it is computed in."""

    checkpoint: Checkpoint
    manifest: Manifest
    dtype: torch.dtype


def describe(path: Path, unpacked: Path, dtype: torch.dtype = torch.float32) -> Described:
    checkpoint = open_checkpoint(path, unpacked)
    table = build_block_table(checkpoint, define_model(checkpoint.config_dir, dtype), fast_path=True)
    return Described(checkpoint, Manifest.of(checkpoint, table, path.name), dtype)


@cache
def example(kind: str) -> Described:
    """A tiny model of one of the `KINDS`, built once; not to be changed."""
    folder = Path(_all.name) / kind.replace(" ", "-")
    folder.mkdir()
    path, dtype = _build(kind, folder)
    return describe(path, folder / "unpacked", dtype)


def _build(kind: str, folder: Path) -> tuple[Path, torch.dtype]:
    if kind == "mxfp4":
        return save_mxfp4(folder / "model"), torch.float32
    if kind == "gguf gpt-oss":
        return save_gguf(folder / "model.gguf", untrained(), "MXFP4", piece_tensors=12), torch.float32
    if kind.startswith("gguf"):
        shapes = whole(attention() | feed_forward(), head=False) if "tied" in kind else LLAMA[1]
        encodings, pieces = ("Q4_K", "Q8_0", "F16"), 5 if "pieces" in kind else 0
        return write_gguf(folder / "model.gguf", "llama", LLAMA[0], shapes, encodings, piece_tensors=pieces), torch.float32
    if kind.startswith("int4"):
        return packed(build_llama(folder / "llama", tied="tied" in kind), folder / "pack"), torch.bfloat16
    if kind == "fp8 experts":
        config = {"quant_method": "fp8", "weight_block_size": [20, 13], "scale_fmt": "ue8m0"}
        blocks = partial(block_fp8, sides=(20, 13), dtype=torch.uint8)
        return quantised(build("mixtral", folder / "model"), folder, blocks, config)[0], torch.float32
    if kind == "int4 words":
        config = compressed(num_bits=4, group_size=8, symmetric=False)
        words = partial(packed_int, width=8, symmetric=False)
        return quantised(build("llama", folder / "model"), folder, words, config)[0], torch.float32
    if kind == "tied":
        return build_llama(folder / "llama", tied=True, hidden=512), torch.bfloat16
    if kind == "sharded":
        model = AutoModelForCausalLM.from_pretrained(build("qwen2", folder / "whole"))
        model.save_pretrained(folder / "shards", max_shard_size="150KB")
        return folder / "shards", torch.float32
    return build({"safetensors": "llama", "experts": "mixtral"}[kind], folder / "model"), torch.float32


_all = tempfile.TemporaryDirectory(prefix="layermesh-tests-")


def all_parts(manifest: Manifest) -> tuple[str, ...]:
    span = LayerSpan(0, manifest.num_layers)
    return manifest.parts_for(span, with_head=True, with_embeddings=True)


def fetch(model: StoredModel, source: PartSource, parts: Iterable[str]) -> int:
    """Bring what is missing of `parts` and return how many bytes came."""
    fetched = 0
    for part in model.missing(parts):
        with model.receiving(part) as writer:
            reading = source.read(part, writer.offset)
            for chunk in reading:
                writer.write(chunk)
                fetched += len(chunk)
            writer.finish(reading.sha256)
    return fetched


def answer(checkpoints: Sequence[Checkpoint], spans: Sequence[LayerSpan], dtype: torch.dtype) -> Reference:
    """What stages of `spans` answer together, each with a checkpoint of its own; the last one has the head."""
    stages: list[Stage] = []
    try:
        for number, (checkpoint, span) in enumerate(zip(checkpoints, spans, strict=True), 1):
            definition = define_model(checkpoint.config_dir, dtype)
            table = build_block_table(checkpoint, definition, fast_path=True)
            has_head = number == len(spans)
            stages.append(Stage(definition, table, span, torch.device("cpu"), PLENTY, has_head=has_head))
            stages[-1].reserve(SessionId("session 0"), SIZE)
        return answer_greedily(Pipeline(stages), [PROMPT], 4)[0]
    finally:
        for stage in stages:
            stage.close()
