"""The tokenizer of a GGUF file: transformers builds it, and what it passes over of the file's keys is applied here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from layermesh.shared.checkpoints.gguf_header import GGUFHeader

_TEMPLATE: Final = "tokenizer.chat_template."
_STRING: Final = (8).to_bytes(4, "little")  # GGUF's number for texts
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS: Final = (r"\p{N}", _GPT2)
_BLOOM: Final = r" ?[^(\s|.,!?…。，、।۔،)]+"
_DEEPSEEK3: Final = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)
# How llama.cpp cuts text before it merges bytes, by tokenizer.ggml.pre; one pattern after the other cuts what is left.
_SPLITS: Final[dict[str, Sequence[str]]] = {
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK3),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), (_BLOOM,)),
    "viking": (_BLOOM, r"\p{N}"),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "deepseek-coder": ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}"),
}
_LIKE_QWEN2: Final = frozenset({"stablelm2", "hunyuan", "solar-open", "grok-2"})
_LIKE_LLAMA3: Final = frozenset({"chatglm-bpe", "glm4", "glm5"})
# Cut as transformers' GPT-2 does, which it also takes where a file names no way.
_LIKE_GPT2: Final = frozenset(
    {None, "default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "a.x-4.0"}
    | {"mellum", "exaone4", "modern-bert"}
)
_LLAMA3: Final = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken"}
)
_WHOLE_WORDS: Final = _LLAMA3 | {"glm4", "glm5"}  # a piece that is a token stays one, whatever merges lead there


def build_tokenizer(header: GGUFHeader, link: Path) -> Any:
    """Return the tokenizer of `header`, whose file `link` is alone in its folder.

    Raises ValueError for a way of cutting text that is not known, and whatever transformers raises.
    """
    from transformers import PreTrainedTokenizerFast

    kind, pre = _stated(header, "model"), _stated(header, "pre")
    if _stated(header, "add_sep_token"):
        raise ValueError("tokenizer.ggml.add_sep_token is set, and layermesh adds no separators")
    more: dict[str, Any] = {"add_bos_token": True} if pre in _LLAMA3 and _stated(header, "add_bos_token") is None else {}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(link.parent, gguf_file=link.name, **more)
    backend = tokenizer.backend_tokenizer
    if kind == "gpt2":
        _cut_as_stated(backend, pre)
        backend.model.ignore_merges = pre in _WHOLE_WORDS
    if kind == "llama":
        _prefix_as_stated(backend, _stated(header, "add_space_prefix"))
    if named := _named_templates(header):
        default = {"default": tokenizer.chat_template} if isinstance(tokenizer.chat_template, str) else {}
        tokenizer.chat_template = default | named
    return tokenizer


def _named_templates(header: GGUFHeader) -> dict[str, str]:
    """Return the templates for special uses, which transformers leaves out; raises ValueError for one that is no text."""
    keys = [key for key in header.spans if key.startswith(_TEMPLATE)]
    return {key.removeprefix(_TEMPLATE): _text(header, key) for key in keys}


def _text(header: GGUFHeader, key: str) -> str:
    """Read the text of `key`, however long it is."""
    start, end = header.spans[key]
    with header.path.open("rb") as file:
        file.seek(start)
        field = file.read(end - start)
    value = field[8 + len(key.encode()) :]  # behind the key and its length: a type, a length, the text
    if value[:4] != _STRING:
        raise ValueError(f"{key} is no text")
    return value[12:].decode("utf-8")


def _stated(header: GGUFHeader, key: str) -> Any:
    return header.metadata.get(f"tokenizer.ggml.{key}")


def _cut_as_stated(backend: Any, pre: str | None) -> None:
    from tokenizers import Regex, pre_tokenizers

    known = _splits_of_transformers()
    splits = _SPLITS.get(str(pre))
    if splits is None and pre in _LIKE_QWEN2 | _LIKE_LLAMA3:
        splits = [known["qwen2" if pre in _LIKE_QWEN2 else "llama3"]]
    if splits is not None:
        cuts = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in splits]
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    elif pre not in known and pre not in _LIKE_GPT2:
        raise ValueError(f"tokenizer.ggml.pre = {ascii(pre)[:40]} is a way of cutting text that layermesh does not know")


def _splits_of_transformers() -> dict[str, str]:
    """Return the patterns by which transformers itself cuts, by tokenizer.ggml.pre."""
    from layermesh.shared.transformers_api import GGUF_PRE_TOKENIZER_SPLITS

    return dict(GGUF_PRE_TOKENIZER_SPLITS)


def _prefix_as_stated(backend: Any, stated: bool | None) -> None:
    """Let texts begin with a space or not, as the file says; Llama's and Phi 3's do unless it says otherwise."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    if stated is None or stated == _adds_prefix(backend):
        return
    if stated:
        raise ValueError("tokenizer.ggml.add_space_prefix is set, and such a tokenizer adds none")
    if backend.pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    else:
        backend.normalizer = normalizers.Replace(pattern=" ", content="▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def _adds_prefix(backend: Any) -> bool:
    text = "a" if backend.normalizer is None else backend.normalizer.normalize_str("a")
    pieces = [(text, None)] if backend.pre_tokenizer is None else backend.pre_tokenizer.pre_tokenize_str(text)
    return bool(pieces[0][0].startswith("▁"))
