"""Tiny models of transformers, and the GGUF files that llama.cpp's converter would make of them."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf_writing import add_value
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

VOCAB, HIDDEN, INNER, LAYERS, HEADS, KV, CONTEXT = 256, 64, 96, 3, 4, 2, 256
SHARE = HIDDEN // HEADS
THETA = 10000.0
KEY_HEADS, VALUE_HEADS, STATE_DIM = 2, 4, 8
TOKENS = ["<unk>", "<s>", "</s>", *(f"t{number}" for number in range(VOCAB - 3))]

Tensors = dict[str, np.ndarray]
Change = Callable[[str, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Twin:
    """A model of the type `model_type` with `values` for its configuration, and what its GGUF file says.

    `keys` are the file's own; None takes one away that `decoder_keys` has. `tensors` are beside the parameters. `change`
    is what the converter does to a tensor of some name. `prepare` changes the model once it is made.
    """

    architecture: str
    model_type: str
    values: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    change: Change = lambda _, values: values
    prepare: Callable[[Any], None] = lambda _: None

    def model(self) -> Any:
        """Return the model with random weights, the same at each call."""
        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "num_key_value_heads": KV, "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-6, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
            "tie_word_embeddings": False,
        }  # fmt: skip
        config = CONFIG_MAPPING[self.model_type](**sizes | self.values)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if "norm" in name or "ln_" in name or (name.endswith(("bias", "scale", "scalar")) and "embed" not in name):
                    tensor.add_(torch.randn_like(tensor) * 0.2)
            self.prepare(model)
        return model

    def write(self, path: Path, model: Any) -> Path:
        """Write `model` to `path` as llama.cpp's converter would."""
        writer = gguf.GGUFWriter(path, self.architecture)
        for key, value in (decoder_keys() | self.keys).items():
            if value is not None:
                add_value(writer, f"{self.architecture}.{key}", value)
        write_vocabulary(writer)
        for name, values in (gguf_tensors(self.architecture, model, self.change) | self.tensors).items():
            writer.add_tensor(name, np.atleast_1d(values.squeeze()).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def decoder_keys() -> dict[str, Any]:
    return {
        "context_length": CONTEXT, "embedding_length": HIDDEN, "block_count": LAYERS, "feed_forward_length": INNER,
        "attention.head_count": HEADS, "attention.head_count_kv": KV, "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": THETA,
    }  # fmt: skip


def write_vocabulary(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (VOCAB - 3))
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)


def gguf_tensors(architecture: str, model: Any, change: Change) -> Tensors:
    """Return the parameters of `model` under GGUF's names, changed as the converter does."""
    kind = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    made: Tensors = {}
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        for part, values in split_experts(architecture, name, change(name, tensor.float().numpy())):
            place = place_of(names, part)
            assert place is not None, part
            made[place] = values
    return made


def place_of(names: gguf.TensorNameMap, name: str) -> str | None:
    name = name.replace(".dt_bias", ".dt_proj.bias").replace(".layer_scalar", ".layer_scalar.weight")
    layer = name.split(".")[2] if ".layers." in name else ""
    if name.endswith("router.scale"):
        return f"blk.{layer}.ffn_gate_inp.scale"
    if name.endswith("router.per_expert_scale"):
        return f"blk.{layer}.ffn_down_exps.scale"
    if name.endswith("e_score_correction_bias"):
        return f"blk.{layer}.exp_probs_b.bias"
    suffixes = (".weight", ".bias")
    return names.get_name(name, suffixes) or names.get_name(name.removeprefix("transformer."), suffixes)


def split_experts(architecture: str, name: str, values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the halves of gates and ups of all experts, which Gemma 4 keeps together, and other tensors as they are."""
    stem = name.removesuffix("gate_up_proj")
    if name.endswith("experts.gate_up_proj") and architecture != "gemma4":
        gate, up = np.split(values, 2, axis=1)
        return [(f"{stem}gate_proj.weight", gate), (f"{stem}up_proj.weight", up)]
    return [(f"{name}.weight" if ".experts." in name else name, values)]


def interleave(name: str, values: np.ndarray) -> np.ndarray:
    """Order the rows of queries and keys as llama.cpp's Llama turns them: neighbours in place of halves."""
    heads = HEADS if ".q_proj." in name else KV if ".k_proj." in name else None
    if heads is None:
        return values
    return values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def plus_one(name: str, values: np.ndarray) -> np.ndarray:
    return values + 1 if name.endswith("norm.weight") else values


def transpose(name: str, values: np.ndarray) -> np.ndarray:
    return values.T if re.search(r"\.c_(attn|proj|fc)\.weight$", name) else values


def by_kind(name: str, values: np.ndarray) -> np.ndarray:
    """Order Bloom's rows as all queries, all keys, all values."""
    if "query_key_value" not in name:
        return values
    return values.reshape(HEADS, 3, SHARE, -1).swapaxes(0, 1).reshape(values.shape)


def state_space(name: str, values: np.ndarray) -> np.ndarray:
    return -np.exp(values) if name.endswith("A_log") else values


def tile_heads(name: str, values: np.ndarray) -> np.ndarray:
    """Order Qwen 3.5's value heads by turns of their key heads, and change what state spaces and norms have."""
    part = name.rsplit("linear_attn.", 1)[-1]
    if part.startswith(("in_proj_qkv", "conv1d")):
        untouched = 2 * KEY_HEADS * STATE_DIM
        return np.concatenate([values[:untouched], _tile_rows(values[untouched:])])
    if part.startswith(("in_proj_z", "in_proj_a", "in_proj_b", "dt_bias", "A_log")):
        return _tile_rows(state_space(name, values))
    if part.startswith("out_proj"):
        return _tile_rows(values.T).T
    return values if part == "norm.weight" else plus_one(name, values)


def _tile_rows(values: np.ndarray) -> np.ndarray:
    per_key = VALUE_HEADS // KEY_HEADS
    return values.reshape(KEY_HEADS, per_key, len(values) // VALUE_HEADS, -1).swapaxes(0, 1).reshape(values.shape)


def llama3_factors(rope: dict[str, Any], dim: int, theta: float = THETA) -> np.ndarray:
    original, low, high = (rope[key] for key in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    factors = []
    for power in np.arange(0, dim, 2) / dim:
        length = 2 * math.pi * theta**power
        smooth = (original / length - low) / (high - low)
        between = 1 / ((1 - smooth) / rope["factor"] + smooth)
        factors.append(1.0 if length < original / high else rope["factor"] if length > original / low else between)
    return np.array(factors, dtype=np.float32)
