"""Tokenizers of a few hundred tokens, one of each kind, made here."""

from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from layermesh.coordinator.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It doesn't matter, does it?",
    "Der schnelle braune Fuchs springt über den faulen Hund; añadir, naïve, Ελλάδα, Привет мир.",
    "你好，世界。こんにちは世界 안녕하세요 🙂🙃👩‍👩‍👧 \n\n  def main():\n    return 1\t# tab\n",
] * 4
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level_bpe() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return backend


def unigram() -> Backend:
    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def byte_fallback_bpe() -> Backend:
    """As in Llama 2: spaces are ▁, one before the text, and what has no token is written in bytes."""
    tokens = ["<unk>", *BYTES, "▁", *"abcdefghijklmnopqrstuvwxyz.,ü你", "▁t", "th", "▁th", "▁the", "he", "▁▁"]
    merges = [("▁", "t"), ("t", "h"), ("▁t", "h"), ("h", "e"), ("▁th", "e"), ("▁", "▁")]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def word_piece() -> Backend:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


KINDS = {"byte-level": byte_level_bpe, "unigram": unigram, "byte-fallback": byte_fallback_bpe, "wordpiece": word_piece}


def wrap(backend: Backend, **options: Any) -> PreTrainedTokenizerFast:
    """Return `backend` as transformers has it, with special tokens and one that is shown."""
    backend.add_special_tokens(["<s>", "</s>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<think>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **options)


def tiny_tokenizer(kind: str, **options: Any) -> Tokenizer:
    return Tokenizer(wrap(KINDS[kind](), **options), "toy")
