"""What tests of packs share."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

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
