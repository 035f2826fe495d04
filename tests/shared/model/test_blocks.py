import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from layermesh.shared.checkpoints.tensors import StoredTensor
from layermesh.shared.errors import CheckpointError
from layermesh.shared.model.blocks import ALIGNMENT, Block, BlockTensor, split_head
from layermesh.shared.model.recipes import Conversion, Copy
from tests.running import open_model

OFFSET = 1000


def head(num_rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Block:
    encoding, num_bytes = (
        {torch.float32: ("F32", 4), torch.bfloat16: ("BF16", 2)}[dtype],
        num_rows * columns * dtype.itemsize,
    )
    source = StoredTensor("head", encoding[0], (num_rows, columns), Path("x"), OFFSET, num_bytes)
    return Block("head", None, (BlockTensor("head", ("head",), source.shape, dtype, 0),), (Copy(source, "head"),))


@given(
    st.integers(1, 2000),
    st.integers(1, 100),
    st.integers(1, 200_000),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_pieces_of_a_head_cover_its_rows_in_order_and_lie_where_they_should(num_rows, columns, max_bytes, dtype):
    whole = head(num_rows, columns, dtype)
    pieces = split_head(whole, max_bytes)
    if len(pieces) == 1:
        assert pieces == (whole,)
        return
    row_bytes = columns * dtype.itemsize
    assert [start for start, _ in (piece.rows for piece in pieces)] == [0, *(piece.rows[1] for piece in pieces[:-1])]
    assert pieces[-1].rows[1] == num_rows
    for piece in pieces:
        start, end = piece.rows
        (recipe,), (tensor,) = piece.recipes, piece.tensors
        assert tensor.shape == recipe.source.shape == (end - start, columns)
        assert (recipe.source.offset, recipe.source.num_bytes) == (
            OFFSET + start * row_bytes,
            (end - start) * row_bytes,
        )
        assert piece.loaded_bytes <= max_bytes
        assert start % ALIGNMENT == 0
    assert len({piece.name for piece in pieces}) == len(pieces)
    assert sum(piece.stored_bytes for piece in pieces) == whole.stored_bytes


def test_a_head_that_is_converted_or_has_huge_rows_stays_whole():
    whole = head(100, 100)
    (copy,) = whole.recipes
    converted = Block("head", None, whole.tensors, (Conversion((copy.source,), ("head",), dict),))
    scattered = Block("head", None, whole.tensors, (Copy(copy.source, "head", rows=torch.arange(100)),))
    assert split_head(converted, 30_000) == (converted,)
    assert split_head(scattered, 30_000) == (scattered,)
    assert split_head(whole, 63 * 400) == (whole,)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "gemma3_text", "deepseek_v3", "falcon_mamba"])
def test_every_parameter_is_in_one_block_or_looked_up(tiny, model_type):
    definition, table = open_model(tiny(model_type))
    bound = [name for block in (table.rest, *table.stream) for tensor in block.tensors for name in tensor.names]
    assert len(bound) == len(set(bound))
    looked_up = {f"{path}.weight" for path in table.lookups}
    assert set(bound) | looked_up == set(definition.model.state_dict())
    assert not set(bound) & looked_up


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_tensors_of_a_block_are_aligned_and_apart(tiny, model_type):
    _, table = open_model(tiny(model_type))
    for block in (table.rest, *table.stream):
        ends = [0, *(tensor.offset + tensor.num_bytes for tensor in block.tensors)]
        assert all(tensor.offset % ALIGNMENT == 0 for tensor in block.tensors)
        assert all(end <= tensor.offset for end, tensor in zip(ends, block.tensors, strict=False))
        assert block.loaded_bytes >= ends[-1]


def test_blocks_hold_the_bytes_of_their_layers(tiny):
    stored = load_file(tiny("llama") / "model.safetensors")
    _, table = open_model(tiny("llama"))
    for block in table.layers:
        of_layer = [tensor.nbytes for name, tensor in stored.items() if name.startswith(f"model.layers.{block.layer}.")]
        assert block.stored_bytes == sum(of_layer)
    assert table.head.stored_bytes == stored["lm_head.weight"].nbytes
    assert {path: table.lookups[path].name for path in table.lookups} == {"model.embed_tokens": "model.embed_tokens.weight"}


@pytest.fixture
def spoilt(tiny, tmp_path):
    """Copy the tiny llama and let the test change its tensors or its configuration."""

    def spoil(change, **config):
        shutil.copytree(tiny("llama"), tmp_path, dirs_exist_ok=True)
        tensors = load_file(tmp_path / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        given = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(given | config))
        return tmp_path

    return spoil


NORM = "model.layers.2.input_layernorm.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
EMBED = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop(NORM), NORM),
        (lambda tensors: tensors.pop(EMBED), EMBED),
        (lambda tensors: tensors.update({DOWN: tensors[DOWN][:10].clone()}), DOWN),
        (lambda tensors: tensors.update({DOWN: tensors[DOWN].repeat(2, 1)}), DOWN),
        (lambda tensors: tensors.update({DOWN: tensors[DOWN].reshape(-1)}), DOWN),
        (lambda tensors: tensors.update({EMBED: tensors[EMBED][:100].clone()}), EMBED),
    ],
    ids=["missing", "table missing", "too few rows", "too many rows", "flat", "small table"],
)
def test_tensors_that_are_missing_or_of_another_shape_are_named(spoilt, change, named):
    with pytest.raises(CheckpointError, match=named):
        open_model(spoilt(change))


def test_tied_heads_and_tables_are_stored_once(spoilt):
    _, table = open_model(spoilt(lambda tensors: tensors.pop("lm_head.weight"), tie_word_embeddings=True))
    (tensor,) = table.head.tensors
    assert (tensor.key, tensor.names) == (EMBED, ("lm_head.weight",))
    assert table.lookups["model.embed_tokens"].name == EMBED


def test_what_the_model_has_no_use_for_is_passed_over(spoilt):
    _, table = open_model(spoilt(lambda tensors: tensors.update({"model.layers.0.extra": torch.ones(3)})))
    assert table.layers[0].stored_bytes == table.layers[1].stored_bytes
