"""The transformers configuration of a model that only its GGUF metadata describes."""

from pathlib import Path
from typing import Any, Final

from layermesh.shared.checkpoints.gguf_gpt_oss import ARCHITECTURE as GPT_OSS
from layermesh.shared.checkpoints.gguf_gpt_oss import gpt_oss_config
from layermesh.shared.checkpoints.gguf_header import GGUFHeader
from layermesh.shared.errors import CheckpointError, UnsupportedModelError

_ALIASES: Final = frozenset({"qwen2moe", "qwen3moe", "minimax-m2"})
_DECODER_KEYS: Final = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_SPECIAL_TOKENS: Final = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}


def make_config(header: GGUFHeader, gguf: Path, stub: Path) -> Any:
    """Return the transformers configuration for `header`, which transformers reads from `stub` where it can.

    Raises UnsupportedModelError for an architecture without a causal language model in transformers, CheckpointError
    for metadata that make none.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config = _config(header, gguf, stub)
        _complete(config, header)
    except (UnsupportedModelError, CheckpointError):
        raise
    except Exception as error:  # transformers says it with whatever its code stumbles over
        raise CheckpointError(
            f"{header.path}: its metadata make no {header.architecture} model ({type(error).__name__}: {error}). Fetch "
            "the file again, or look for another conversion of this model."
        ) from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"{header.path} is a {header.architecture} model, which does not continue text. Give one that does."
        )
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    return config


def _config(header: GGUFHeader, gguf: Path, stub: Path) -> Any:
    from transformers import AutoConfig

    if header.architecture == "gemma":
        return _gemma(header)
    if header.architecture == "llama" and header.metadata.get("llama.expert_count"):
        return _mixtral(header)
    if header.architecture == GPT_OSS:
        return gpt_oss_config(header)
    file = _readable_by_transformers(header, gguf, stub)
    return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


def _readable_by_transformers(header: GGUFHeader, gguf: Path, stub: Path) -> Path:
    from transformers import CONFIG_MAPPING
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    direct = directly_loaded_architectures()
    if header.architecture in direct:
        return gguf
    known = _ALIASES | {name for name in GGUF_SUPPORTED_ARCHITECTURES if name in CONFIG_MAPPING}
    if header.architecture in known:
        return stub
    names = ", ".join(sorted(known | direct | {"gemma", GPT_OSS}))
    raise UnsupportedModelError(
        f"{header.path} is of the architecture {ascii(header.architecture)[:60]}, which the installed transformers "
        f"cannot read from GGUF. It reads {names}. Look for this model in safetensors."
    )


def directly_loaded_architectures() -> frozenset[str]:
    """Return the GGUF architectures that transformers, from 5.17, loads like any other checkpoint."""
    try:
        from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
        from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
    except ImportError:
        return frozenset()
    return frozenset(GGUF_ARCHS) & frozenset(GGUF_CONFIG_ARCHS)


def _complete(config: Any, header: GGUFHeader) -> None:
    """Set what the file says and transformers' tables leave at a default that is one checkpoint's own."""

    def stated(key: str) -> Any:
        return header.metadata.get(f"{header.architecture}.{key}")

    config.tie_word_embeddings = config.tie_word_embeddings and "output.weight" not in header.tensors
    if stated("vocab_size") is None and header.array_lengths.get("tokenizer.ggml.tokens"):
        config.vocab_size = header.array_lengths["tokenizer.ggml.tokens"]
    if hasattr(config, "moe_intermediate_size") and stated("expert_feed_forward_length"):
        config.moe_intermediate_size = stated("expert_feed_forward_length")
    if hasattr(config, "shared_expert_intermediate_size") and stated("expert_shared_feed_forward_length"):
        config.shared_expert_intermediate_size = stated("expert_shared_feed_forward_length")
    if header.architecture == "qwen3" and stated("attention.key_length"):
        config.head_dim = stated("attention.key_length")


def _decoder_values(header: GGUFHeader, head_dim: str) -> dict[str, Any]:
    prefix = header.architecture
    values = {name: header.metadata[f"{prefix}.{key}"] for key, name in _DECODER_KEYS.items()}
    values |= {name: header.metadata.get(f"tokenizer.ggml.{key}_token_id") for key, name in _SPECIAL_TOKENS.items()}
    values["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": header.metadata.get(f"{prefix}.rope.freq_base", 10000.0),
    }
    if (stated := header.metadata.get(f"{prefix}.{head_dim}")) is not None:
        values["head_dim"] = stated
    values["vocab_size"] = header.tensors["token_embd.weight"].shape[0]
    values["tie_word_embeddings"] = "output.weight" not in header.tensors
    return values


def _gemma(header: GGUFHeader) -> Any:
    from transformers import GemmaConfig

    return GemmaConfig(**_decoder_values(header, "attention.key_length"))


def _mixtral(header: GGUFHeader) -> Any:
    from transformers import MixtralConfig

    return MixtralConfig(
        **_decoder_values(header, "rope.dimension_count"),
        sliding_window=None,
        num_local_experts=header.metadata["llama.expert_count"],
        num_experts_per_tok=header.metadata["llama.expert_used_count"],
    )
