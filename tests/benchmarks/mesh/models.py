"""The checkpoints of the mesh's benchmarks: as many equal random layers as wanted, written once and kept."""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig

from layermesh.shared.checkpoints.packing import VERSION
from tests.benchmarks.grown import grow, write_one_layer
from tests.benchmarks.peers.cache import models_folder


def kept_llama(name: str, config: LlamaConfig, dtype: torch.dtype) -> Path:
    """Return the folder of a random Llama with the sizes of `config`, making it unless it is there."""
    folder = models_folder() / name
    if not folder.is_dir():
        print(f"making {folder}", flush=True)
        num_layers = config.num_hidden_layers
        one, unfinished = folder.with_suffix(".one-layer"), folder.with_suffix(".unfinished")
        for left_over in (one, unfinished):
            shutil.rmtree(left_over, ignore_errors=True)
        grow(write_one_layer(one, config, dtype), unfinished, num_layers)
        shutil.rmtree(one)
        unfinished.rename(folder)
    return folder


def wide_and_thin() -> Path:
    """Hidden states of 16 KiB and little else: 8 float32 layers of 30 MB, which compute in a millisecond or two."""
    return kept_llama("llama-wide-and-thin", _config(4096, 256, layers=8, heads=4, head_dim=64, vocab=512), torch.float32)


def hundred_megabyte_layers(num_layers: int = 12) -> Path:
    """Layers of 103 MB in bfloat16, 1.2 GB in all."""
    config = _config(2048, 5632, layers=num_layers, heads=32, head_dim=64, vocab=512)
    return kept_llama(f"llama-{num_layers}x100MB", config, torch.bfloat16)


def six_gigabytes(num_layers: int = 28) -> Path:
    """A model of 3 billion parameters in bfloat16."""
    config = _config(3072, 8192, layers=num_layers, heads=24, head_dim=128, vocab=32000)
    return kept_llama(f"llama-{num_layers}x200MB", config, torch.bfloat16)


def int4_folder(checkpoint: Path) -> Path:
    """Return `checkpoint` packed to 4 bits in groups of 32, beside it."""
    folder = checkpoint.with_name(f"{checkpoint.name}.int4-v{VERSION}")
    command = [sys.executable, "-m", "layermesh", "quantize", str(checkpoint), "--to", "int4", "--group-size", "32"]
    if not (folder / "model.safetensors.index.json").is_file():  # which is written last
        print(f"packing {folder}", flush=True)
        subprocess.run([*command, "-o", str(folder)], check=True, capture_output=True)
    return folder


def _config(hidden: int, intermediate: int, *, layers: int, heads: int, head_dim: int, vocab: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 4, 1),
        head_dim=head_dim,
        vocab_size=vocab,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
