"""Small vocabularies in which it shows how a text was cut before its bytes were merged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from gguf_models import LLAMA
from gguf_writing import add_value
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXT = """The 3 quick foxes didn't jump over 12345 lazy dogs, in 2024-06-01; they'd SLEPT!!  It's  $1,234.50 (net) of 100%.

    def f(x):\n\treturn x_1 + x2**10  # don't\r\n日本語のテキスト、123。 Éric naïve café …و،"""


def byte_level() -> tuple[list[str], list[str]]:
    """Return tokens and merges that go over words, digits and spaces alike."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    pieces = [TEXT[start : start + width] for width in (2, 3, 4, 6, 9) for start in range(len(TEXT))]
    tokenizer.train_from_iterator(pieces * 3, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return vocabulary, merges


def sentence_pieces() -> tuple[list[str], list[float]]:
    """Return tokens and scores as SentencePiece has them."""
    words = ["▁", "a", "b", "c", "▁a", "ab", "▁ab", "abc", "▁abc", "bc", "▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    return tokens, [0.0] * 259 + [-float(place) for place in range(len(words))]


def write_vocabulary(path: Path, model: str, keys: dict[str, Any]) -> Path:
    """Write a file with a vocabulary of the kind `model`, "gpt2" or "llama", and a Llama's metadata and embedding."""
    writer = GGUFWriter(path, "llama")
    for key, value in LLAMA[0].items():
        if not key.startswith("tokenizer") and key != "vocab_size":
            add_value(writer, f"llama.{key}", value)
    writer.add_tokenizer_model(model)
    if model == "gpt2":
        tokens, merges = byte_level()
        writer.add_token_merges(merges)
        tokens += ["<s>", "</s>"]
        writer.add_token_types([1] * (len(tokens) - 2) + [3, 3])
        writer.add_bos_token_id(len(tokens) - 2)
        writer.add_eos_token_id(len(tokens) - 1)
    else:
        tokens, scores = sentence_pieces()
        writer.add_token_scores(scores)
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
    writer.add_token_list(tokens)
    for key, value in keys.items():
        add_value(writer, f"tokenizer.{'' if key.startswith('chat_template') else 'ggml.'}{key}", value)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), LLAMA[0]["embedding_length"]), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
