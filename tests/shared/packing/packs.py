"""What tests of packs share."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from layermesh.packs import pack_into
from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.library import Progress
from layermesh.shared.packing.request import PackRequest


def build_llama(folder: Path, *, layers: int = 3, vocab: int = 2000, hidden: int = 128, tied: bool = False) -> Path:
    """A random Llama with sizes that packing likes, in bfloat16."""
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=None, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(5)
    model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def packed(source: Path, folder: Path, bits: int = 4, group: int = 32, progress: Progress | None = None) -> Path:
    """Pack `source` into `folder`."""
    return pack_into(
        source.name, open_checkpoint(source, folder.parent / "unpacked"), PackRequest(bits, group), folder, progress
    )


def packed_family(family: str, folder: Path, **settings: Any) -> Path:
    """Pack a random model of a family, with matrices of one input joined, in `folder` and return where it is."""
    shape = {
        "vocab_size": 256, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 32,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None,
        "eos_token_id": None,
    }  # fmt: skip
    if family == "phi3":
        shape |= {"partial_rotary_factor": 0.5, "pad_token_id": None}
    config = AutoConfig.for_model(family, **shape | settings)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases, which are all alike in a new model
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder / "source")
    checkpoint = open_checkpoint(folder / "source", folder / "unpacked")
    return pack_into(family, checkpoint, PackRequest(4, 32, fused=True), folder / "pack", None)
