import json
import shutil
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgpack import packb, unpackb
from safetensors.torch import load_file, save_file

from layermesh.shared.errors import CheckpointError
from layermesh.shared.fingerprint import fingerprint_of
from layermesh.shared.manifest import MAX_MANIFEST_BYTES, Manifest
from layermesh.shared.parts import CHUNK_BYTES, chunks, lay_out
from layermesh.shared.spans import LayerSpan
from tests.storing import KINDS, all_parts, describe, example


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_survives_its_way(kind):
    manifest = example(kind).manifest
    assert Manifest.parse(manifest.to_bytes()) == manifest
    assert manifest.fingerprint == fingerprint_of(example(kind).checkpoint)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_that_is_needed_is_in_one_part(kind):
    described = example(kind)
    placed = [name for names in described.manifest.parts.values() for name in names]
    assert len(placed) == len(set(placed))
    assert set(placed) == set(described.checkpoint.tensors)
    assert set(all_parts(described.manifest)) == set(described.manifest.parts)


@pytest.mark.parametrize(
    ("kind", "parts", "head"),
    [
        ("safetensors", ("rest", "embed", "layer 0", "layer 1", "layer 2", "layer 3", "head"), ("head",)),
        ("tied", ("rest", "embed", "layer 0", "layer 1", "layer 2"), ("embed",)),
        ("gguf tied", ("rest", "embed", "layer 0", "layer 1"), ("embed",)),
        ("int4", ("rest", "embed", "layer 0", "layer 1", "layer 2", "head"), ("head",)),
    ],
)
def test_parts_are_the_blocks_and_a_tied_head_is_the_table(kind, parts, head):
    manifest = example(kind).manifest
    assert tuple(manifest.parts) == parts
    assert manifest.needs["head"] == head
    assert manifest.needs["layer 1"] == ("layer 1",)


def test_a_machine_needs_only_its_own_parts():
    manifest = example("safetensors").manifest
    assert manifest.parts_for(LayerSpan(1, 3), with_head=False, with_embeddings=False) == ("rest", "layer 1", "layer 2")
    assert manifest.parts_for(LayerSpan(0, 1), with_head=False, with_embeddings=True) == ("rest", "embed", "layer 0")
    assert manifest.parts_for(LayerSpan(4, 4), with_head=True, with_embeddings=False) == ("rest", "head")
    tied = example("tied").manifest
    assert tied.parts_for(LayerSpan(3, 3), with_head=True, with_embeddings=False) == ("rest", "embed")
    with pytest.raises(ValueError, match=r"4 layers.*\[3, 5\)"):
        manifest.parts_for(LayerSpan(3, 5), with_head=False, with_embeddings=False)


def test_layers_that_share_a_block_have_it_in_the_rest(tiny, tmp_path):
    manifest = describe(tiny("zamba2"), tmp_path).manifest
    placed = [name for names in manifest.parts.values() for name in names]
    assert len(placed) == len(set(placed))
    shared = [name for name in manifest.parts["rest"] if "shared_transformer" in name]
    assert shared


@pytest.fixture
def copied(tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(example("safetensors").checkpoint.path, folder)
    return folder


def test_the_release_that_wrote_the_configuration_makes_no_difference(copied, tmp_path):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"transformers_version": "5.99"}, indent=7))
    assert describe(copied, tmp_path).manifest.fingerprint == example("safetensors").manifest.fingerprint


def test_another_configuration_is_another_model(copied, tmp_path):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.01}))
    assert describe(copied, tmp_path).manifest.fingerprint != example("safetensors").manifest.fingerprint


def test_a_finetune_is_another_model(copied, tmp_path):
    tensors = load_file(copied / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] += 1e-3
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    assert describe(copied, tmp_path).manifest.fingerprint != example("safetensors").manifest.fingerprint


@given(st.lists(st.integers(0, 3 << 20), max_size=12))
def test_tensors_lie_one_after_the_other_and_large_ones_at_pages(sizes):
    layout = lay_out((str(number), size) for number, size in enumerate(sizes))
    end = 0
    for placed in layout:
        alignment = 4096 if placed.num_bytes >= 1 << 20 else 64
        assert placed.offset % alignment == 0
        assert 0 <= placed.offset - end < alignment
        end = placed.end
    found = list(chunks(layout))
    lengths = [sum(stretch.num_bytes for stretch in chunk) for chunk in found]
    assert sum(lengths) == end
    assert all(length == CHUNK_BYTES for length in lengths[:-1])
    assert all(stretch.num_bytes for chunk in found for stretch in chunk)


def altered(change) -> bytes:
    """The manifest of an example with something changed, and the fingerprint that belongs to it where one can be made."""
    told = unpackb(example("safetensors").manifest.to_bytes())
    change(told)
    return packb(told)


def set_in(*path):
    *way, last, value = path

    def change(told):
        for step in way:
            told = told[step]
        told[last] = value

    return change


NORM = "model.norm.weight"
HOSTILE = {
    "another version": set_in("version", 2),
    "a path for a file": set_in("files", "../config.json", b"{}"),
    "code for a file": set_in("files", "modeling.py", b""),
    "a file that is text": set_in("files", "config.json", "{}"),
    "no configuration": set_in("files", {}),
    "a configuration that is none": set_in("files", "config.json", b"[]"),
    "a tensor with a path": set_in("tensors", "../x", ["F32", [1], 4, bytes(16)]),
    "a negative size": set_in("tensors", NORM, ["F32", [-64], 256, bytes(16)]),
    "other bytes than its shape": set_in("tensors", NORM, ["F32", [64], 255, bytes(16)]),
    "bytes as a float": set_in("tensors", NORM, ["F32", [64], 256.0, bytes(16)]),
    "a huge tensor": set_in("tensors", NORM, ["F32", [1 << 50], 1 << 52, bytes(16)]),
    "an unknown encoding": set_in("tensors", NORM, ["Q99", [64], 256, bytes(16)]),
    "no sample": set_in("tensors", NORM, ["F32", [64], 256, b""]),
    "a part of no tensor": set_in("parts", "rest", ["nothing"]),
    "a tensor in two parts": set_in("parts", "layer 0", [NORM]),
    "a part with a path": set_in("parts", "../../x", [NORM]),
    "a part with a line": set_in("parts", "layer 0\n", [NORM]),
    "a part that is a number": set_in("parts", "rest", 5),
    "a block without its part": set_in("needs", "layer 3", ["layer 9"]),
    "a layer too many": set_in("needs", "layer 7", []),
    "no needs": set_in("needs", {}),
    "a name that rings": set_in("name", "a\x07"),
    "a long name": set_in("name", "a" * 2000),
    "another fingerprint": set_in("fingerprint", "0" * 64),
    "another sample": set_in("tensors", NORM, ["F32", [64], 256, bytes(16)]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_manifests_that_make_no_sense_are_refused(change):
    with pytest.raises(CheckpointError):
        Manifest.parse(altered(change))


def test_a_manifest_of_more_bytes_than_any_is_refused_unread():
    with pytest.raises(CheckpointError, match="larger"):
        Manifest.parse(bytes(MAX_MANIFEST_BYTES + 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data):
    with pytest.raises(CheckpointError):
        Manifest.parse(data)


@settings(max_examples=150)
@given(st.data())
def test_damaged_manifests_are_refused_or_what_they_were_but_for_the_name(data):
    original = bytearray(example("safetensors").manifest.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = Manifest.parse(bytes(original))
    except CheckpointError:
        return
    expected = example("safetensors").manifest
    assert replace(found, name="", parts={}, needs={}) == replace(expected, name="", parts={}, needs={})
    assert all(found.part_bytes(part) >= 0 for part in found.parts)
