"""Random checkpoints of a chosen size, for measuring rather than for reading."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedConfig


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
    return _build(folder, config, dtype)


def build_mixtral(folder: Path, *, hidden: int, layers: int, vocab: int, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random Mixtral with eight experts and these sizes into `folder` and return it."""
    config = MixtralConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(hidden // 256, 1),
        num_local_experts=8,
        vocab_size=vocab,
        max_position_embeddings=4096,
    )
    return _build(folder, config, dtype)


def _build(folder: Path, config: PreTrainedConfig, dtype: torch.dtype) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    return folder
