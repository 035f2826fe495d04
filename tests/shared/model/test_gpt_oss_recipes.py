"""gpt-oss from GGUF: the answers of plain transformers with the same values, or an error that names a key or a tensor."""

from typing import Any

import pytest
import torch
from gpt_oss_models import LAYERS, PROMPT, continued, loaded, save_gguf, tensors_of, untrained
from transformers import AutoConfig

from layermesh import LayerMesh
from layermesh.shared.checkpoints import gguf, open_checkpoint, unpack_gguf
from layermesh.shared.checkpoints.gguf_split import read_gguf
from layermesh.shared.errors import CheckpointError, UnsupportedModelError
from layermesh.shared.model.block_table import build_block_table
from layermesh.shared.model.definition import define_model

SMALL = {"hidden": 64, "intermediate": 96}
LARGE = {"hidden": 256, "intermediate": 512}  # which blocks of 256 values divide


@pytest.fixture(autouse=True)
def unpack_here(monkeypatch):
    monkeypatch.setattr(gguf, "_run_child", lambda path, folder: unpack_gguf.unpack(read_gguf(path), folder))


@pytest.mark.parametrize(
    ("encoding", "sizes"),
    [("F32", SMALL), ("F16", SMALL), ("BF16", SMALL), ("MXFP4", SMALL), ("Q8_0", SMALL), ("Q4_0", SMALL), ("Q4_K", LARGE),
     ("Q6_K", LARGE), ("IQ4_XS", LARGE)],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_answers_equal_those_of_transformers(tmp_path, encoding, sizes):
    model = untrained(**sizes)
    path = save_gguf(tmp_path / "m.gguf", model, encoding)
    made = loaded(path, tmp_path / "cache", torch.float32)
    for name, parameter in model.named_parameters():
        if ".layers." in name:
            assert torch.equal(made[name], parameter), name
    with LayerMesh(str(path), device="cpu", dtype="float32", alone=True) as mesh:
        assert list(mesh.generate(PROMPT, max_new_tokens=8, temperature=0).token_ids) == continued(model)


def test_it_streams_from_several_files(tmp_path):
    model = untrained()
    path = save_gguf(tmp_path / "m.gguf", model, "MXFP4", piece_tensors=9)
    with LayerMesh(str(path), device="cpu", dtype="float32", alone=True, host_memory="60MB") as mesh:
        assert list(mesh.generate(PROMPT, max_new_tokens=8, temperature=0).token_ids) == continued(model)


def test_the_configuration_is_the_models(tmp_path):
    model = untrained()
    told = AutoConfig.from_pretrained(open_checkpoint(save_gguf(tmp_path / "m.gguf", model), tmp_path / "cache").config_dir)
    beside = ("_name_or_path", "architectures", "dtype", "transformers_version", "rms_norm_eps", "initializer_range")
    expected = model.config.to_dict()
    assert {key: value for key, value in told.to_dict().items() if key not in beside} == {
        key: value for key, value in expected.items() if key not in beside
    }
    assert told.rms_norm_eps == pytest.approx(expected["rms_norm_eps"])


def layer_types(path: Any, cache: Any) -> str:
    config = AutoConfig.from_pretrained(open_checkpoint(path, cache).config_dir)
    return "".join(kind[0] for kind in config.layer_types)


@pytest.mark.parametrize(
    ("pattern", "kinds"),
    [(None, "sfsf"), (2, "sfsf"), (4, "sssf"), (1, "ffff"), (0, "ssss"), ([True, True, False, False], "ssff")],
    ids=str,
)
def test_windows_are_where_the_file_says(tmp_path, pattern, kinds):
    path = save_gguf(tmp_path / "m.gguf", untrained(), attention__sliding_window_pattern=pattern)
    assert layer_types(path, tmp_path / "cache") == kinds


@pytest.mark.parametrize(
    "changed",
    [
        {"attention__scale": 32**-0.5}, {"rope__dimension_count": 32}, {"rope__freq_base_swa": 150000.0},
        {"rope__scaling__attn_factor": 1.0}, {"rope__scaling__yarn_ext_factor": 1.0}, {"rope__scaling__finetuned": True},
        {"rope__scaling__yarn_attn_factor": 1.2079442}, {"expert_gating_func": 3}, {"feed_forward_length": None},
        {"expert_weights_scale": 1.0}, {"attention__causal": True}, {"rope__scaling__yarn_log_multiplier": 0.0},
    ],
    ids=str,
)  # fmt: skip
def test_keys_that_say_what_holds_anyway_are_let_through(tmp_path, changed):
    plain = open_checkpoint(save_gguf(tmp_path / "plain.gguf", untrained()), tmp_path / "cache")
    told = open_checkpoint(save_gguf(tmp_path / "m.gguf", untrained(), **changed), tmp_path / "cache")
    assert (told.config_dir / "config.json").read_text() == (plain.config_dir / "config.json").read_text()


@pytest.mark.parametrize(
    "changed",
    [
        {"attention__scale": 0.5}, {"attention__value_length": 64}, {"rope__dimension_count": 16},
        {"rope__freq_base_swa": 10000.0}, {"rope__scaling__type": "cubic"}, {"rope__scaling__yarn_ext_factor": 0.0},
        {"rope__scaling__yarn_log_multiplier": 0.1}, {"rope__scaling__alpha": 2.0}, {"rope__scale_linear": 4.0},
        {"expert_gating_func": 2}, {"expert_weights_scale": 2.5}, {"expert_weights_norm": True}, {"expert_shared_count": 1},
        {"attention__causal": False}, {"swiglu_clamp_exp": [7.0] * LAYERS}, {"logit_scale": 2.0}, {"nextn_predict_layers": 1},
    ],
    ids=str,
)  # fmt: skip
def test_keys_that_are_not_applied_are_refused_by_name(tmp_path, changed):
    (key,) = changed
    with pytest.raises(UnsupportedModelError, match=rf"gpt-oss\.{key.replace('__', '.')}"):
        open_checkpoint(save_gguf(tmp_path / "m.gguf", untrained(), **changed), tmp_path / "cache")


@pytest.mark.parametrize(
    "changed",
    [
        *({key: None} for key in ("context_length", "attention__key_length", "attention__sliding_window", "expert_count")),
        {"expert_used_count": None}, {"expert_feed_forward_length": 32}, {"attention__sliding_window_pattern": [True]},
    ],
    ids=str,
)  # fmt: skip
def test_keys_that_are_missing_or_make_no_sense_are_named(tmp_path, changed):
    (key,) = changed
    with pytest.raises(CheckpointError, match=rf"gpt-oss\.{key.replace('__', '.')}"):
        open_checkpoint(save_gguf(tmp_path / "m.gguf", untrained(), **changed), tmp_path / "cache")


def test_scaling_of_positions_is_the_files(tmp_path):
    path = save_gguf(
        tmp_path / "m.gguf", untrained(), rope__scaling__yarn_beta_fast=16.0, rope__scaling__yarn_beta_slow=None,
        rope__scaling__original_context_length=256,
    )  # fmt: skip
    rope = AutoConfig.from_pretrained(open_checkpoint(path, tmp_path / "cache").config_dir).rope_parameters
    assert rope == {
        "rope_type": "yarn", "rope_theta": 150000.0, "factor": 8.0, "original_max_position_embeddings": 256,
        "beta_fast": 16.0, "beta_slow": 1.0, "truncate": False,
    }  # fmt: skip


class _Altered:
    """A model whose tensors are written under other names, with others, or without some."""

    def __init__(self, lost: str = "", renamed: tuple[str, str] = ("", ""), cut: str = "") -> None:
        self._model = untrained()
        self.config = self._model.config
        self._lost, self._renamed, self._cut = lost, renamed, cut

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self._model.state_dict()

    def tensors_of(self, name: str, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        made = {place.replace(*self._renamed): values for place, values in tensors_of(name, parameter).items()}
        kept = {place: values for place, values in made.items() if place != self._lost}
        return {place: values[:, :-32] if place == self._cut else values for place, values in kept.items()}


@pytest.mark.parametrize(
    ("altered", "error", "message"),
    [
        ({"lost": f"blk.1.{name}"}, CheckpointError, f"lacks .*{named}")
        for name, named in {
            "ffn_gate_exps.weight": r"blk\.1\.ffn_gate_exps\.weight",
            "ffn_up_exps.weight": r"blk\.1\.ffn_up_exps\.weight",
            "ffn_gate_exps.bias": "gate_up_proj_bias",
            "ffn_up_exps.bias": "gate_up_proj_bias",
            "attn_sinks.weight": "sinks",
            "attn_k.bias": r"k_proj\.bias",
        }.items()
    ]
    + [
        ({"renamed": ("blk.2.attn_sinks", "blk.2.attn_rotation")}, UnsupportedModelError, r"blk\.2\.attn_rotation\.weight"),
        ({"renamed": ("blk.2.", "blk.7.")}, CheckpointError, r"blk\.7\..*does not have"),
        ({"cut": "blk.0.ffn_down_exps.weight"}, CheckpointError, r"blk\.0\.ffn_down_exps\.weight of shape"),
        ({"cut": "blk.0.ffn_up_exps.bias"}, CheckpointError, r"blk\.0\.ffn_gate_exps\.bias of shape"),
        ({"cut": "blk.0.ffn_gate_exps.weight"}, CheckpointError, r"blk\.0\.ffn_gate_exps\.weight of shape"),
    ],
    ids=str,
)
def test_tensors_that_are_missing_unknown_or_do_not_fit_are_named(tmp_path, monkeypatch, altered, error, message):
    model = _Altered(**altered)
    monkeypatch.setattr("gpt_oss_models.tensors_of", model.tensors_of)
    checkpoint = open_checkpoint(save_gguf(tmp_path / "m.gguf", model), tmp_path / "cache")
    with pytest.raises(error, match=message):
        build_block_table(checkpoint, define_model(checkpoint.config_dir, torch.float32))
