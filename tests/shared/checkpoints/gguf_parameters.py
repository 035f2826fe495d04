"""The parameters of a checkpoint's model, loaded as a worker loads them."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from layermesh.shared.checkpoints import Checkpoint
from layermesh.shared.model.block_table import build_block_table
from layermesh.shared.model.definition import define_model
from layermesh.worker.buffers import Buffer, block_tensors
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader


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
