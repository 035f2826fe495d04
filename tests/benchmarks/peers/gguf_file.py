"""The same weights as a GGUF file, and that in Q4_K_M by llama.cpp's own quantiser."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from safetensors import safe_open

from tests.benchmarks.peers.environments import LLAMA_CPP
from tests.benchmarks.peers.running import BENCHMARKS

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def q4_k_m(checkpoint: Path) -> Path:
    """Return `checkpoint`, a Qwen2 folder, as a Q4_K_M file beside it."""
    target = checkpoint.with_name(f"{checkpoint.name}.Q4_K_M.gguf")
    if not target.is_file():
        print(f"making {target}", flush=True)
        whole, unfinished = target.with_suffix(".bf16"), target.with_suffix(".unfinished")
        write_qwen2(checkpoint, whole)
        command = [str(LLAMA_CPP.python()), "-m", "peers.runners.quantise", str(whole), str(unfinished)]
        subprocess.run(command, cwd=BENCHMARKS, check=True, capture_output=True)
        whole.unlink()
        unfinished.rename(target)
    return target


def write_qwen2(checkpoint: Path, path: Path) -> None:
    """Write a Qwen2 folder as GGUF with an output matrix of its own, as the published files of that model have one."""
    config = json.loads((checkpoint / "config.json").read_text())
    writer = GGUFWriter(path, "qwen2")
    add_metadata(writer, config)
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                add_tensor(writer, gguf_name(name), tensors.get_tensor(name))
                if name == "model.embed_tokens.weight" and config["tie_word_embeddings"]:
                    add_tensor(writer, "output.weight", tensors.get_tensor(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_metadata(writer: GGUFWriter, config: dict[str, Any]) -> None:
    """Say the sizes, and a vocabulary of as many meaningless words."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"word{number}" for number in range(config["vocab_size"])])
    writer.add_token_types([TokenType.NORMAL] * config["vocab_size"])
    writer.add_token_merges(["w o"])
    writer.add_eos_token_id(0)


def gguf_name(name: str) -> str:
    """Return what GGUF calls a tensor of a Hugging Face checkpoint."""
    outside = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if not name.startswith("model.layers."):
        return outside.get(name, "output.weight")
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    module, _, kind = rest.rpartition(".")
    return f"blk.{number}.{LAYER_NAMES[module]}.{kind}"


def add_tensor(writer: GGUFWriter, name: str, tensor: torch.Tensor) -> None:
    """Add matrices in bfloat16, vectors in float32, as llama.cpp's converter does."""
    if tensor.dim() == 1:
        writer.add_tensor(name, tensor.float().numpy())
        return
    rows: np.ndarray = tensor.to(torch.bfloat16).view(torch.uint8).numpy()  # [rows, 2 * columns]
    writer.add_tensor(name, rows, raw_dtype=GGMLQuantizationType.BF16)
