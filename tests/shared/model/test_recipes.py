from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import CheckpointError
from layermesh.shared.model.definition import define_model
from layermesh.shared.model.recipes import Conversion, Copy, as_recipes, find_recipes


def recipes_for(folder: Path, *, without: str = ""):
    tensors = {name: t for name, t in open_checkpoint(folder, folder / "u").tensors.items() if name != without}
    return find_recipes(tensors, define_model(folder, torch.float32).model)


def carried_out(recipe, stored, parameters):
    """Fill `parameters` as a recipe says, the plain way."""
    if isinstance(recipe, Conversion):
        for name, tensor in recipe.combine([stored[source.name] for source in recipe.sources]).items():
            parameters[name].copy_(tensor)
        return
    raw = Path(recipe.source.path).read_bytes()[recipe.source.offset :][: recipe.source.num_bytes]
    values = torch.frombuffer(bytearray(raw), dtype=recipe.source.dtype)
    if recipe.rows is not None:
        columns = recipe.source.shape[-1]
        parameters[recipe.target].view(-1, columns)[recipe.rows] = values.view(-1, columns)
    else:
        parameters[recipe.target].view(-1)[recipe.start : recipe.start + values.numel()] = values


@pytest.mark.parametrize(
    "model_type", ["llama", "mixtral", "deepseek_v3", "olmo_hybrid", "qwen3_next", "jamba", "longcat_flash"]
)
def test_recipes_make_what_transformers_loads(tiny, model_type):
    expected = AutoModelForCausalLM.from_pretrained(tiny(model_type)).state_dict()
    stored = load_file(tiny(model_type) / "model.safetensors")
    found = {name: torch.full_like(tensor, float("nan")) for name, tensor in expected.items() if tensor.is_floating_point()}
    for recipe in recipes_for(tiny(model_type)):
        if all(name in found for name in getattr(recipe, "targets", None) or (recipe.target,)):
            carried_out(recipe, stored, found)
    filled = {name for name, tensor in found.items() if not tensor.isnan().any()}
    assert filled
    for name in filled:
        assert torch.equal(found[name], expected[name]), name
    assert {name for name in expected if "mlp" in name or "experts" in name} & found.keys() <= filled


def test_a_missing_expert_is_an_error_that_names_the_fused_parameter(tiny):
    lost = next(name for name in load_file(tiny("mixtral") / "model.safetensors") if "experts" in name)
    with pytest.raises(CheckpointError, match="experts"):
        recipes_for(tiny("mixtral"), without=lost)


def stored(name: str, *shape: int) -> StoredTensor:
    return StoredTensor(name, "F32", shape, Path("x"), 0, 4 * torch.Size(shape).numel())


def test_a_conversion_that_only_moves_rows_becomes_copies():
    sources = [stored("a", 2, 8), stored("b", 2, 8)]
    recipes = as_recipes(sources, {"ab": (4, 8)}, lambda given: {"ab": torch.cat(list(given))}, None)
    assert [(type(recipe), recipe.source.name, recipe.start) for recipe in recipes] == [(Copy, "a", 0), (Copy, "b", 16)]


@pytest.mark.parametrize(
    "combine",
    [
        lambda given: {"t": given[0].T.contiguous()},
        lambda given: {"t": given[0] * 2},
        lambda given: {"t": given[0] + 1},
    ],
    ids=["transposed", "scaled", "shifted"],
)
def test_a_conversion_that_alters_values_stays_one(combine):
    recipes = as_recipes([stored("s", 8, 8)], {"t": (8, 8)}, combine, None)
    assert [type(recipe) for recipe in recipes] == [Conversion], recipes


def test_a_conversion_that_reorders_columns_is_not_taken_for_copies():
    recipes = as_recipes([stored("s", 4, 8)], {"t": (4, 8)}, lambda given: {"t": given[0].flip(1)}, None)
    assert isinstance(recipes[0], Conversion)
