"""Tiny checkpoints with a tokenizer and a chat template, and ways to spoil them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.architectures.tiny import randomise

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
CONTEXT = 256


def build_llama(folder: Path) -> Path:
    """Write a Llama of 4 layers, 320 tokens and a context of 256, without a tokenizer, into `folder`."""
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=None, dtype="float32",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    randomise(model, 3)
    model.save_pretrained(folder)
    return folder


def add_tokenizer(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Put a tokenizer of single bytes and the marks of a conversation beside the model in `folder`."""
    vocab = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(MARKS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


def copied(source: Path, target: Path) -> Path:
    """Return a copy of the checkpoint `source` at `target`, to be spoilt."""
    return Path(shutil.copytree(source, target))


def change_config(folder: Path, **changes: Any) -> Path:
    """Set values of config.json; None takes a key away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def change_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Rewrite the header of model.safetensors as `change` leaves it; the data stays."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return folder
