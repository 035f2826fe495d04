"""Tiny gpt-oss models in the forms that they are published in, each beside what plain transformers makes of the same values."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, dequantize, quantize
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM

from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.model.block_table import build_block_table
from layermesh.shared.model.definition import define_model
from layermesh.worker.buffers import Buffer, block_tensors
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader
from tests.architectures.tiny import randomise
from tests.shared.checkpoints.gguf_writing import WRITABLE, add_value, stored_rows

LAYERS, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, VOCAB, WINDOW = 4, 4, 2, 32, 4, 320, 16
PROMPT = [1] + [(7 * number) % 300 + 3 for number in range(60)]  # longer than the window
MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
}
PLACES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.router": "ffn_gate_inp",
}  # fmt: skip
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}  # fmt: skip


def untrained(hidden: int = 64, intermediate: int = 96, **more: Any) -> GptOssForCausalLM:
    """A model with random values whose matrices are not square, so that a missing transposition shows."""
    rope = {
        "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128, "rope_theta": 150000.0,
        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    }  # fmt: skip
    config = GptOssConfig(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=LAYERS, head_dim=HEAD_DIM,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, num_local_experts=EXPERTS, num_experts_per_tok=2,
        max_position_embeddings=1024, sliding_window=WINDOW, rope_parameters=rope, bos_token_id=1, eos_token_id=None,
        pad_token_id=0, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GptOssForCausalLM(config).eval()
    randomise(model, 5)
    return model


def save_mxfp4(folder: Path, **sizes: int) -> Path:
    """Write a model as OpenAI does: experts in MXFP4, all else in bfloat16."""
    untrained(**sizes).to(torch.bfloat16).save_pretrained(folder)
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = tensor.shape
            stored[f"{name}_blocks"] = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
            stored[f"{name}_scales"] = torch.randint(118, 124, (experts, outputs, inputs // 32), dtype=torch.uint8)
        else:
            stored[name] = tensor
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"quantization_config": MXFP4}))
    return folder


def save_gguf(path: Path, model: GptOssForCausalLM, encoding: str = "F32", piece_tensors: int = 0, **changed: object) -> Path:
    """Write `model` as llama.cpp's converter does, experts in `encoding`, which `model` has then, too.

    `changed` are keys of the family with __ for dots; None leaves one out. Returns the first file.
    """
    writer = GGUFWriter(path, "gpt-oss", split_max_tensors=piece_tensors)
    for key, value in (metadata(model.config) | {key.replace("__", "."): value for key, value in changed.items()}).items():
        if value is not None:
            add_value(writer, f"gpt-oss.{key}", value)
    for key, number in {"bos": 1, "padding": 0}.items():
        add_value(writer, f"tokenizer.ggml.{key}_token_id", number)
    for name, parameter in model.state_dict().items():
        for place, values in tensors_of(name, parameter).items():
            kind = GGMLQuantizationType[encoding if place.endswith("_exps.weight") else "F32"]
            rows = quantised_rows(values, kind)
            values.copy_(torch.from_numpy(dequantize(rows, kind).reshape(values.shape)))
            writer.add_tensor(place, np.ascontiguousarray(rows), raw_dtype=kind if rows.dtype == np.uint8 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}-00001-of-*.gguf")) if piece_tensors else path


def quantised_rows(values: torch.Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    """`values` as `kind` stores them, or some others where gguf cannot quantise to it."""
    if kind.name not in (*WRITABLE, "MXFP4"):
        return stored_rows(np.random.default_rng(values.numel()), tuple(values.shape), kind.name)
    return quantize(np.ascontiguousarray(values.numpy()), kind)


def metadata(config: GptOssConfig) -> dict[str, object]:
    """The keys of the family, as they are in published files."""
    rope = config.rope_parameters
    return {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size, "block_count": LAYERS,
        "feed_forward_length": config.intermediate_size, "expert_feed_forward_length": config.intermediate_size,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM, "attention.sliding_window": WINDOW,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "expert_count": EXPERTS, "expert_used_count": 2,
        "rope.freq_base": rope["rope_theta"], "rope.scaling.type": RopeScalingType.YARN.value,
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "rope.scaling.yarn_beta_fast": rope["beta_fast"], "rope.scaling.yarn_beta_slow": rope["beta_slow"],
    }  # fmt: skip


def tensors_of(name: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a parameter is in GGUF: views of it by their names there."""
    if name in OUTER:
        return {OUTER[name]: parameter}
    _, _, layer, *places = name.split(".")
    block, leaf = f"blk.{layer}.", places[-1]
    if leaf == "sinks":
        return {f"{block}attn_sinks.weight": parameter}
    if leaf.startswith(("gate_up_proj", "down_proj")):
        kind = "bias" if leaf.endswith("bias") else "weight"
        values = parameter if kind == "bias" else parameter.transpose(1, 2)
        if leaf.startswith("down"):
            return {f"{block}ffn_down_exps.{kind}": values}
        return {f"{block}ffn_{part}_exps.{kind}": values[:, first::2] for first, part in enumerate(("gate", "up"))}
    return {f"{block}{PLACES['.'.join(places[:-1])]}.{leaf}": parameter}


def loaded(path: Path, cache: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the parameters of the layers of the checkpoint at `path`, loaded as a worker loads them."""
    checkpoint = open_checkpoint(path, cache)
    table = build_block_table(checkpoint, define_model(checkpoint.config_dir, dtype))
    files = FileReader()
    loader = BlockLoader(files)
    made: dict[str, torch.Tensor] = {}
    try:
        for block in table.layers:
            buffer = Buffer(block.loaded_bytes)
            loader.start(block, buffer).wait()
            tensors = block_tensors(block, buffer.bytes)
            made |= {name: tensors[tensor.key].clone() for tensor in block.tensors for name in tensor.names}
    finally:
        loader.close()
        files.close()
    return made


def continued(model: Any) -> list[int]:
    """Return what plain transformers says after `PROMPT`."""
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    return made[0, len(PROMPT) :].tolist()
