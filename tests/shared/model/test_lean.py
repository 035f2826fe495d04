"""Lean layers: which families get them, and how near they come to the layers they stand in for."""

from pathlib import Path

import pytest
import torch

from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.model.lean import lean_layers, make_lean
from layermesh.shared.model.lean_fit import lean_shape
from layermesh.shared.model.lean_layer import LeanLayer
from layermesh.shared.model.recipes import Conversion, Copy
from layermesh.shared.model.same_code import same_code
from tests.architectures.runs import answer_greedily, streaming_pipeline
from tests.architectures.tiny import PROMPT, reference
from tests.running import open_model

NUM_TOKENS = 8
TOLERANCE = 5e-5  # of logits around one, in float32
LEAN = [
    "llama",
    "mistral",
    "ministral",
    "qwen2",
    "qwen3",
    "phi3",
    "internlm3",
    "cwm",
    "mellum",
    "dots1",
    "qwen2_moe",
    "qwen3_moe",
]
OTHERS = ["gpt2", "gemma3_text", "mixtral", "olmo2", "granite", "cohere", "smollm3", "deepseek_v3", "falcon_mamba", "stablelm"]


@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("model_type", LEAN)
def test_lean_layers_answer_as_transformers_does(tiny, model_type, num_stages):
    folder = tiny(model_type)
    assert lean_layers(open_model(folder, fast_path=True)[0])
    length = len(PROMPT) + NUM_TOKENS
    with streaming_pipeline(folder, num_stages, length, len(PROMPT), fast_path=True) as pipeline:
        (ours,) = answer_greedily(pipeline, [PROMPT], NUM_TOKENS)
    theirs = reference(folder, PROMPT, NUM_TOKENS)
    assert ours.token_ids == theirs.token_ids
    for mine, other in zip(ours.logits, theirs.logits, strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=TOLERANCE), float((mine - other).abs().max())


@pytest.mark.parametrize("model_type", OTHERS)
def test_layers_of_another_shape_are_left_alone(tiny, model_type):
    assert not lean_layers(open_model(tiny(model_type), fast_path=True)[0])


def test_without_the_fast_path_no_layer_is_replaced(tiny):
    assert not lean_layers(open_model(tiny("llama"), fast_path=False)[0])


def test_matrices_with_one_input_become_one(tiny):
    _, plain = open_model(tiny("qwen2"))
    definition, lean = open_model(tiny("qwen2"), fast_path=True)
    layer = definition.layers[0]
    assert isinstance(layer, LeanLayer)
    assert (len(layer.qkv.members), len(layer.gate_up.members)) == (1, 1)
    assert sum(block.stored_bytes for block in lean.stream) == sum(block.stored_bytes for block in plain.stream)
    assert len(lean.layers[0].tensors) == len(plain.layers[0].tensors) - 5  # two weights and two biases, one weight


def test_matrices_stored_in_different_ways_keep_apart(tiny):
    definition, _ = open_model(tiny("llama"))
    recipes = [
        Copy(StoredTensor(name, "Q6_K" if "v_proj" in name else "Q4_K", tuple(tensor.shape), Path("x"), 0, 1), name)
        for name, tensor in definition.model.state_dict().items()
    ]
    made = make_lean(definition, recipes)
    assert (len(definition.layers[0].qkv.members), len(definition.layers[0].gate_up.members)) == (3, 1)
    state = definition.model.state_dict()
    assert {recipe.target for recipe in made} == state.keys()


def test_rows_and_conversions_go_where_their_parameter_went(tiny):
    definition, _ = open_model(tiny("llama"))
    path = f"{definition.layers_path}.0"
    rows = torch.tensor([1, 0, *range(2, definition.layers[0].self_attn.k_proj.out_features)])
    num_queries, hidden = definition.layers[0].self_attn.q_proj.weight.shape
    source = StoredTensor("k", "F32", (len(rows), hidden), Path("x"), 0, 1)
    query = StoredTensor("q", "F32", (num_queries, hidden), Path("x"), 0, 1)
    conversion = Conversion(
        (query,), (f"{path}.mlp.down_proj.weight",), lambda given: {f"{path}.mlp.down_proj.weight": given[0]}
    )
    made = make_lean(
        definition,
        [
            Copy(query, f"{path}.self_attn.q_proj.weight"),
            Copy(source, f"{path}.self_attn.k_proj.weight", rows=rows),
            Copy(source, f"{path}.self_attn.v_proj.weight"),
            conversion,
        ],
    )
    assert [recipe.target for recipe in made[:3]] == [f"{path}.qkv.members.0.weight"] * 3
    assert torch.equal(made[1].rows, rows + num_queries)
    assert made[2].start == (num_queries + len(rows)) * hidden
    assert made[3].targets == (f"{path}.down_proj.weight",)
    assert made[3].combine([torch.ones(1)]).keys() == {f"{path}.down_proj.weight"}


def test_a_bias_on_one_of_several_keeps_a_layer_as_it_is(tiny):
    definition, _ = open_model(tiny("llama"))
    layer = definition.layers[0]
    assert lean_shape(layer) is not None
    layer.self_attn.k_proj.bias = torch.nn.Parameter(torch.zeros(1))
    assert lean_shape(layer) is None


def one(value: int) -> int:
    """Say something."""
    return value + 1


def other(value):
    return value + 1


def third(value):
    return value + 2


def test_code_is_compared_without_names_annotations_and_docstrings():
    assert same_code(one, other)
    assert not same_code(one, third)
    assert not same_code(one, len)
