"""What a GGUF file says is applied, known to change nothing, or refused by the name of its key or tensor."""

import re
from dataclasses import replace

import numpy as np
import pytest
from gguf_parameters import meta_model
from gguf_twin_models import TWINS
from gguf_twins import CONTEXT, HEADS, HIDDEN, KV, LAYERS, SHARE, VOCAB
from gguf_writing import write_gguf

from layermesh.shared.checkpoints import map_gguf, open_checkpoint
from layermesh.shared.checkpoints.gguf_config import make_config
from layermesh.shared.checkpoints.gguf_families import FAMILIES
from layermesh.shared.checkpoints.gguf_header import read_gguf_header
from layermesh.shared.errors import CheckpointError, UnsupportedModelError

KEYS = {
    "context_length": CONTEXT, "embedding_length": HIDDEN, "block_count": LAYERS, "feed_forward_length": 96,
    "attention.head_count": HEADS, "attention.head_count_kv": KV, "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.layer_norm_epsilon": None,
}  # fmt: skip
EMBEDDING = {"token_embd.weight": (VOCAB, HIDDEN)}
FACTORS = {"rope_freqs.weight": (SHARE // 2,)}
LONG, SHORT = {"rope_factors_long.weight": (SHARE // 2,)}, {"rope_factors_short.weight": (SHARE // 2,)}
MIXTRAL = {"expert_count": 4, "expert_used_count": 2}
QWEN_MOE = MIXTRAL | {"expert_feed_forward_length": 48}


def config_of(tmp_path, architecture, keys, tensors=None):
    path = write_gguf(tmp_path / "tiny.gguf", architecture, KEYS | keys, EMBEDDING | (tensors or {}))
    return make_config(read_gguf_header(path))


REFUSED = {
    "a key of the future": ("llama", {"attention.telepathy": 1}, "attention.telepathy"),
    "a key of another family": ("llama", {"ssm.conv_kernel": 4}, "ssm.conv_kernel"),
    "a list": ("qwen2", {"attention.compress_ratios": [1, 2, 4]}, "attention.compress_ratios"),
    "a text": ("qwen2", {"hidden_activation": "gelu"}, "hidden_activation"),
    "not causal": ("llama", {"attention.causal": False}, "attention.causal"),
    "values clamped": ("llama", {"attention.clamp_kqv": 8.0}, "attention.clamp_kqv"),
    "attention scaled": ("llama", {"attention.scale": 0.5}, "attention.scale"),
    "logits scaled": ("llama", {"logit_scale": 8.0}, "logit_scale"),
    "residuals scaled": ("llama", {"residual_scale": 0.22}, "residual_scale"),
    "embeddings scaled": ("llama", {"embedding_scale": 12.0}, "embedding_scale"),
    "attention capped": ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    "logits capped": ("qwen3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    "a window": ("llama", {"attention.sliding_window": CONTEXT // 2}, "attention.sliding_window"),
    "a window's pattern": ("phi3", {"attention.sliding_window_pattern": 2}, "attention.sliding_window_pattern"),
    "values of another size": ("llama", {"attention.value_length": 8}, "attention.value_length"),
    "heads of another size": ("stablelm", {"attention.key_length": 24}, "attention.key_length"),
    "heads that differ": ("llama", {"attention.head_count": [4, 4, 2]}, "attention.head_count"),
    "keys that differ": ("llama", {"attention.head_count_kv": [2, 1, 2]}, "attention.head_count_kv"),
    "widths that differ": ("qwen3", {"feed_forward_length": [96, 96, 128]}, "feed_forward_length"),
    "sinks of a draft": ("llama", {"nextn_predict_layers": 1}, "nextn_predict_layers"),
    "pooled": ("qwen3", {"pooling_type": 3}, "pooling_type"),
    "experts' weights scaled": ("llama", MIXTRAL | {"expert_weights_scale": 2.5}, "expert_weights_scale"),
    "experts' weights not normed": ("llama", MIXTRAL | {"expert_weights_norm": False}, "expert_weights_norm"),
    "experts by sigmoid": ("qwen3moe", QWEN_MOE | {"expert_gating_func": 2}, "expert_gating_func"),
    "experts in groups": ("qwen3moe", QWEN_MOE | {"expert_group_count": 4}, "expert_group_count"),
    "experts after dense layers": ("qwen3moe", QWEN_MOE | {"leading_dense_block_count": 1}, "leading_dense_block_count"),
    "part of each head": ("llama", {"rope.dimension_count": SHARE // 2}, "rope.dimension_count"),
    "more than a head": ("phi3", {"rope.dimension_count": SHARE * 2}, "rope.dimension_count"),
    "sections": ("qwen2", {"rope.dimension_sections": [4, 2, 2, 0]}, "rope.dimension_sections"),
    "a second base": ("qwen2", {"rope.freq_base_swa": 1e4}, "rope.freq_base_swa"),
    "another second base": ("gemma2", {"rope.freq_base_swa": 1e6}, "rope.freq_base_swa"),
    "unknown scaling": ("llama", {"rope.scaling.type": "ntk", "rope.scaling.factor": 2.0}, "rope.scaling.type"),
    "longrope without factors": ("llama", {"rope.scaling.type": "longrope"}, "rope.scaling.type"),
    "two factors": ("llama", {"rope.scaling.factor": 2.0, "rope.scale_linear": 4.0}, "rope.scale_linear"),
    "alpha": ("llama", {"rope.scaling.alpha": 1000.0}, "rope.scaling.alpha"),
    "part of yarn": (
        "qwen2",
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_ext_factor": 0.5},
        "rope.scaling.yarn_ext_factor",
    ),
    "logarithmic yarn": (
        "qwen2",
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_log_multiplier": 0.1},
        "rope.scaling.yarn_log_multiplier",
    ),
    "yarn of a model without": (
        "phi3",
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
        "rope.scaling.type",
    ),
    "magnitude of no scaling": ("qwen2", {"rope.scaling.yarn_attn_factor": 1.2}, "rope.scaling.yarn_attn_factor"),
    "falcon with several keys": ("falcon", {"attention.head_count_kv": 2}, "attention.head_count_kv"),
    "mamba that norms more": (
        "mamba",
        {"ssm.dt_b_c_rms": True, "feed_forward_length": 0, "attention.head_count": 0, "attention.head_count_kv": 0},
        "ssm.dt_b_c_rms",
    ),
    "parallel halves that are not": ("stablelm", {"use_parallel_residual": False}, "use_parallel_residual"),
}


@pytest.mark.parametrize(("architecture", "keys", "key"), REFUSED.values(), ids=REFUSED)
def test_what_a_model_does_not_compute_is_refused_by_name(tmp_path, architecture, keys, key):
    with pytest.raises(UnsupportedModelError, match=re.escape(f"'{architecture}.{key}'")) as raised:
        config_of(tmp_path, architecture, keys)
    assert "safetensors" in str(raised.value)


HARMLESS = {
    "causal": {"attention.causal": True},
    "nothing clamped": {"attention.clamp_kqv": 0.0},
    "the usual scale": {"attention.scale": SHARE**-0.5},
    "scales of one": {"logit_scale": 1.0, "residual_scale": 1.0, "embedding_scale": 1.0, "expert_weights_scale": 1.0},
    "no experts": {"expert_count": 0, "expert_used_count": 0, "expert_shared_count": 0, "leading_dense_block_count": 0},
    "no draft": {"nextn_predict_layers": 0},
    "a window of everything": {"attention.sliding_window": CONTEXT},
    "no window": {"attention.sliding_window": 0},
    "the whole head": {"rope.dimension_count": SHARE, "attention.key_length": SHARE, "attention.value_length": SHARE},
    "the same for every layer": {"attention.head_count": [HEADS] * LAYERS, "attention.head_count_kv": [KV] * LAYERS},
    "not scaled": {"rope.scaling.type": "none", "rope.scaling.finetuned": True, "rope.scaling.attn_factor": 1.0},
    "scaled by one": {"rope.scaling.type": "yarn", "rope.scaling.factor": 1.0, "rope.scale_linear": 0.0},
    "trained so long": {"rope.scaling.original_context_length": 64},
    "how it was stored": {"tensor_data_layout": "Meta AI original pth", "vocab_size": VOCAB},
    "what sees": {"vision.block_count": 27, "mm.tokens_per_image": 256},
    "keys of others": {"general.telepathy": 1, "tokenizer.ggml.telepathy": 1},
}


@pytest.mark.parametrize("keys", HARMLESS.values(), ids=HARMLESS)
def test_what_changes_nothing_is_passed_over(tmp_path, keys):
    plain, made = config_of(tmp_path, "llama", {}), config_of(tmp_path, "llama", keys)
    assert made.to_dict() == plain.to_dict()


@pytest.mark.parametrize("architecture", sorted(FAMILIES.keys() - {"gemma4"}))
def test_every_family_refuses_a_key_that_it_does_not_know(tmp_path, architecture):
    state_only = {"feed_forward_length": 0, "attention.head_count": 0, "attention.head_count_kv": 0}
    keys = {
        "bloom": {"feed_forward_length": 4 * HIDDEN, "attention.head_count_kv": HEADS},
        "falcon": {"attention.head_count_kv": 1},
        "gpt2": {"attention.head_count_kv": HEADS},
        "lfm2": {"attention.head_count_kv": [0, KV, 0], "shortconv.l_cache": 3},
        "llama": {},
        "mamba": state_only | {"ssm.inner_size": 128, "ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.time_step_rank": 4},
        "minimax-m2": QWEN_MOE | {"expert_feed_forward_length": 96},
        "qwen2moe": QWEN_MOE | {"expert_shared_feed_forward_length": 80},
        "qwen3moe": QWEN_MOE,
        "gpt-oss": QWEN_MOE | {"attention.key_length": 16, "attention.sliding_window": 16, "feed_forward_length": None},
    }.get(architecture, {})
    hybrid = {"ssm.inner_size": 32, "ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.time_step_rank": 4, "ssm.group_count": 2}
    if architecture.startswith("qwen35"):
        keys = hybrid | {"rope.dimension_sections": [2, 1, 1, 0], "rope.dimension_count": 8}
        keys |= QWEN_MOE | {"expert_shared_feed_forward_length": 80} if architecture.endswith("moe") else {}
    untold = {"bloom": "attention.layer_norm_rms_epsilon", "gpt2": "attention.layer_norm_rms_epsilon"}.get(architecture)
    if untold:
        keys |= {untold: None, "attention.layer_norm_epsilon": 1e-5}
    assert config_of(tmp_path, architecture, keys).num_hidden_layers == LAYERS
    with pytest.raises(UnsupportedModelError, match=re.escape(f"'{architecture}.attention.telepathy'")):
        config_of(tmp_path, architecture, keys | {"attention.telepathy": 0})


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("gpt2", "rope_freqs.weight"), ("gpt2", "rope_factors_long.weight")],
)
def test_factors_of_positions_that_a_family_does_not_turn_are_refused(tmp_path, architecture, name):
    keys = {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 1e-5, "attention.head_count_kv": HEADS}
    with pytest.raises(UnsupportedModelError, match=re.escape(name)):
        config_of(tmp_path, architecture, keys, {name: (SHARE // 2,)})


@pytest.mark.parametrize("epsilon", [float("inf"), float("nan"), -1.0])
def test_an_epsilon_that_is_none_is_refused(tmp_path, epsilon):
    with pytest.raises(CheckpointError, match=r"llama\.attention\.layer_norm_rms_epsilon"):
        config_of(tmp_path, "llama", {"attention.layer_norm_rms_epsilon": epsilon})


GEMMA4_REFUSED = {
    "a key of the future": {"attention.telepathy": 0},
    "scaled positions": {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    "part of each head": {"rope.dimension_count": 16},
    "no pattern": {"attention.sliding_window_pattern": 2},
    "keys that differ": {"attention.head_count_kv": [2, 1, 1, 1, 2, 1]},
    "widths that differ": {"feed_forward_length": [96, 128, 96, 96, 192, 192]},
}


@pytest.mark.parametrize("keys", GEMMA4_REFUSED.values(), ids=GEMMA4_REFUSED)
def test_gemma4_refuses_what_it_does_not_compute(tmp_path, keys):
    twin = TWINS["gemma4, inputs of layers, shared keys"]
    path = replace(twin, keys=twin.keys | keys).write(tmp_path / "tiny.gguf", twin.model())
    with pytest.raises(UnsupportedModelError, match=re.escape(f"'gemma4.{list(keys)[-1]}'").replace("factor", "(factor|type)")):
        make_config(read_gguf_header(path))


@pytest.mark.parametrize(
    ("keys", "tensors", "name"),
    [
        ({}, {"rope_freqs.weight": (SHARE,)}, "rope_freqs.weight is"),
        ({}, LONG, "rope_factors_long.weight stands alone"),
        ({}, SHORT, "rope_factors_short.weight stands alone"),
        ({}, LONG | SHORT | FACTORS, "rope_freqs.weight stands beside"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, FACTORS, "stands beside rope_freqs.weight"),
    ],
    ids=["too many", "long ones alone", "short ones alone", "all at once", "with yarn"],
)
def test_factors_that_cannot_be_applied_are_refused(tmp_path, keys, tensors, name):
    with pytest.raises(UnsupportedModelError, match=name):
        config_of(tmp_path, "llama", keys, tensors)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_that_divide_nothing_are_damage(tmp_path, value):
    path = write_gguf(tmp_path / "tiny.gguf", "llama", KEYS, EMBEDDING | FACTORS)
    header = read_gguf_header(path)
    with path.open("r+b") as file:
        file.seek(header.tensors["rope_freqs.weight"].offset)
        file.write(np.full(SHARE // 2, value, dtype="<f4").tobytes())
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        make_config(header)


@pytest.mark.parametrize(
    "keys",
    [
        {"attention.head_count": None}, {"attention.head_count": 0}, {"attention.head_count": "four"},
        {"context_length": None}, {"rope.scaling.factor": -2.0}, {"rope.scaling.factor": float("nan")},
        {"rope.freq_base": "high"}, {"embedding_length": [64, 64]}, {"block_count": 10**9}, {"block_count": 0},
    ],
    ids=str,
)  # fmt: skip
def test_metadata_that_make_no_model_are_damage(tmp_path, keys):
    with pytest.raises(CheckpointError, match="llama"):
        config_of(tmp_path, "llama", keys)


def llama_tensors() -> dict[str, tuple[int, ...]]:
    block = {"attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,), "attn_q": (HIDDEN, HIDDEN), "attn_output": (HIDDEN, HIDDEN)}
    block |= {"attn_k": (KV * SHARE, HIDDEN), "attn_v": (KV * SHARE, HIDDEN), "ffn_down": (HIDDEN, 96)}
    block |= {"ffn_gate": (96, HIDDEN), "ffn_up": (96, HIDDEN)}
    layers = {f"blk.{layer}.{name}.weight": shape for layer in range(LAYERS) for name, shape in block.items()}
    return EMBEDDING | layers | {"output_norm.weight": (HIDDEN,)}


@pytest.mark.usefixtures("unpack_here")
@pytest.mark.parametrize(
    "name",
    ["blk.1.attn_q.scale", "blk.2.ffn_up.bias", "blk.0.attn_sinks.weight", "blk.3.attn_norm.weight", "cls.weight", "telepathy"],
)
def test_a_tensor_without_use_is_refused_by_name(tmp_path, name):
    path = write_gguf(tmp_path / "tiny.gguf", "llama", KEYS, llama_tensors() | {name: (HIDDEN,)})
    checkpoint = open_checkpoint(path, tmp_path / "cache")
    with pytest.raises(UnsupportedModelError, match=re.escape(name)):
        map_gguf(checkpoint, meta_model(checkpoint))


@pytest.mark.usefixtures("unpack_here")
@pytest.mark.parametrize("name", ["v.blk.0.attn_q.weight", "mm.0.weight", "a.conv1d.1.weight"])
def test_tensors_that_see_and_hear_are_passed_over(tmp_path, name):
    path = write_gguf(tmp_path / "tiny.gguf", "llama", KEYS, llama_tensors() | {name: (HIDDEN,)})
    checkpoint = open_checkpoint(path, tmp_path / "cache")
    assert map_gguf(checkpoint, meta_model(checkpoint))
