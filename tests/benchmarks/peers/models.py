"""The checkpoints that the peers run: random weights in the shape of a published model, made once and kept.

Speed does not depend on what the weights say, only on their shapes and formats.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Config

from tests.benchmarks.peers.cache import models_folder

SHARD_BYTES = 10**9
SPREAD = 0.02  # standard deviation of the random weights


def qwen2_1_5b() -> Path:
    """Return a folder with a random model in the shape of Qwen2-1.5B: 3.1 GB of bfloat16, head and embeddings tied."""
    config = Qwen2Config(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=151936,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _kept("qwen2-1.5b-random", config, torch.bfloat16)


def small_llama() -> Path:
    """Return a folder with a random Llama of 16 layers x 1024: 0.9 GB of float32."""
    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=32000,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _kept("llama-16x1024-random", config, torch.float32)


def smollm2_shape() -> Path:
    """Return a folder with a random model in the shape of SmolLM2-135M: thirty small layers, 0.5 GB of float32."""
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _kept("smollm2-135m-random", config, torch.float32)


def weight_files(model: Path) -> list[Path]:
    """Return the files that hold a checkpoint's weights."""
    return [model] if model.is_file() else sorted(model.glob("*.safetensors"))


def _kept(name: str, config: PreTrainedConfig, dtype: torch.dtype) -> Path:
    folder = models_folder() / name
    if not folder.is_dir():
        print(f"making {folder}", flush=True)
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        config.dtype = dtype
        write_random(unfinished, config, dtype)
        unfinished.rename(folder)
    return folder


def write_random(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config, sharded random weights and a tokenizer, never holding more than a shard."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    shards = list(_divide(shapes, dtype.itemsize, shard_bytes))
    torch.manual_seed(0)
    homes = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: _random(name, shapes[name], dtype) for name in names}, folder / file, {"format": "pt"})
        homes |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(shape.numel() for shape in shapes.values()) * dtype.itemsize}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder, config.vocab_size)


def write_tokenizer(folder: Path, num_words: int) -> None:
    """Write a tokenizer of as many words as the model has rows; the peers load one, whether or not they are given text."""
    words = {f"word{number}": number for number in range(num_words)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="word0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="word0").save_pretrained(folder)


def _divide(shapes: dict[str, torch.Size], item_bytes: int, shard_bytes: int) -> Iterator[list[str]]:
    """Yield the names of one file after the other, none above `shard_bytes` unless one tensor is."""
    names: list[str] = []
    room = shard_bytes
    for name, shape in shapes.items():
        size = shape.numel() * item_bytes
        if names and size > room:
            yield names
            names, room = [], shard_bytes
        names.append(name)
        room -= size
    yield names


def _random(name: str, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=dtype)
    return torch.empty(shape, dtype=dtype).normal_(std=SPREAD)
