"""The parameters of a checkpoint's model, loaded as a worker loads them, and what the model computes with them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from layermesh.shared.checkpoints import Checkpoint, open_checkpoint
from layermesh.shared.model.block_table import build_block_table
from layermesh.shared.model.definition import define_model
from layermesh.worker.buffers import Buffer, block_tensors
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader

PROMPT = [1, *((7 * place) % 250 + 3 for place in range(80))]


def meta_model(checkpoint: Checkpoint) -> torch.nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint.config_dir))


def parameters_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return every parameter of the model in `checkpoint`, under all its names, loaded as a worker loads it."""
    table = build_block_table(checkpoint, define_model(checkpoint.config_dir, torch.float32))
    made: dict[str, torch.Tensor] = {}
    files = FileReader()
    loader = BlockLoader(files)
    for block in (table.rest, *table.layers, table.head):
        buffer = Buffer(block.loaded_bytes)
        loader.start(block, buffer).wait()
        tensors = block_tensors(block, buffer.bytes)
        made |= {name: tensors[tensor.key] for tensor in block.tensors for name in tensor.names}
    for path, stored in table.lookups.items():
        made[f"{path}.weight"] = torch.empty(stored.shape)
        loader.read(stored, made[f"{path}.weight"])
    loader.close()
    files.close()
    return made


def made_model(path: Path, cache: Path) -> Any:
    """Return the model that layermesh makes of a GGUF file, with its weights in transformers' own code."""
    checkpoint = open_checkpoint(path, cache)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint.config_dir), dtype=torch.float32)
    parameters = parameters_of(checkpoint)
    missing, unexpected = model.load_state_dict(parameters, strict=False)
    assert not unexpected
    assert set(missing) <= set(getattr(model, "all_tied_weights_keys", None) or ())
    return model.eval()


def logits_of(model: Any, length: int) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([PROMPT[:length]]), use_cache=False).logits[0]
