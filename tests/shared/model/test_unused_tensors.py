import pytest
import torch

from layermesh import LayerMesh
from tests.running import open_model
from tests.shared.model.quantised_checkpoints import quantised, rewrite_tensors, row_fp8

LAYER = "model.layers.1"


@pytest.fixture
def folder(tiny, tmp_path):
    return quantised(tiny("llama"), tmp_path, row_fp8, None)[0]


def add(folder, *names):
    rewrite_tensors(folder, lambda tensors: tensors.update({name: torch.ones(1) for name in names}))


@pytest.mark.parametrize(
    "name",
    [
        "mlp.up_proj.bias",
        "self_attn.q_proj.lora_A.weight",
        "self_attn.sinks",
        "mlp.router.weight",
        "extra_norm.weight",
        "mlp.rescale.bias",
    ],
)
@pytest.mark.parametrize("fast_path", [False, True], ids=["plain", "fast path"])
def test_what_a_layer_has_no_place_for_is_named(folder, name, fast_path):
    add(folder, f"{LAYER}.{name}")
    _, table = open_model(folder, fast_path=fast_path)
    assert table.unused == (f"{LAYER}.{name}",)


def test_the_user_is_told_once(folder):
    add(folder, *(f"model.layers.{layer}.mlp.{name}_proj.bias" for layer in range(2) for name in ("down", "up")))
    with LayerMesh(str(folder), device="cpu", dtype="float32") as mesh:
        (notice,) = (notice for notice in mesh.local.notices if "not used" in notice)
    assert "up_proj.bias" in notice
    assert "1 more" in notice


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}.self_attn.rotary_emb.inv_freq",
        f"{LAYER}.mlp.up_proj.input_scale",
        f"{LAYER}.self_attn.k_scale",
        "model.layers.77.mlp.up_proj.weight",
        "model.vision_tower.encoder.layers.1.mlp.fc1.weight",
        "mtp.norm.weight",
    ],
)
def test_what_transformers_expects_or_runs_elsewhere_is_not(folder, name):
    add(folder, name)
    assert open_model(folder)[1].unused == ()
