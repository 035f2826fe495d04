"""Random checkpoints of a chosen size, for measuring rather than for reading."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig


def build_llama(folder: Path, *, hidden: int, layers: int, vocab: int, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random Llama with these sizes into `folder` and return it."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(hidden // 256, 1),
        vocab_size=vocab,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    return folder
