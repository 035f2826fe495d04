import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from layermesh import LayerMesh
from layermesh.packs import pack_into
from layermesh.shared.block_hashes import PARTIAL_TABLE, TABLE, BlockTableFile
from layermesh.shared.checkpoints import decode, open_checkpoint
from layermesh.shared.checkpoints.gguf_mapping import map_gguf
from layermesh.shared.errors import BudgetError, CheckpointError, DiskFullError, UnsupportedModelError, UsageError
from layermesh.shared.library.packs import is_complete
from layermesh.shared.packing.block_file import DATA_ALIGNMENT, TENSOR_ALIGNMENT
from layermesh.shared.packing.parameters import read_whole
from layermesh.shared.packing.request import PackRequest
from layermesh.shared.quant.choosing import has_own_forms
from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.linear import QuantLinear
from layermesh.shared.quant.quants import unpack
from layermesh.shared.quant.tiles import packing_tile
from tests.benchmarks.quality import loaded, plain
from tests.running import open_model
from tests.shared.checkpoints.gguf_models import LLAMA
from tests.shared.checkpoints.gguf_writing import read_raw, write_gguf
from tests.shared.packing.packs import build_llama, packed

PROMPT = list(range(5, 25))
SCRIPT = Path(__file__).with_name("pack_script.py")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return build_llama(tmp_path_factory.mktemp("llama") / "llama")


@pytest.fixture(scope="module")
def pack4(llama, tmp_path_factory):
    return packed(llama, tmp_path_factory.mktemp("packs") / "int4")


def weights_of(folder: Path, name: str, rows: int) -> torch.Tensor:
    """A packed matrix as float32 again."""
    tensors = open_checkpoint(folder, folder).tensors
    form = QuantForm(
        *json.loads((folder / "config.json").read_text())["quantization_config"]["modules"][name.split(".pieces")[0]]
    )
    parts = (read_whole(tensors[f"{name}.packed"], torch.uint8), read_whole(tensors[f"{name}.scales"], form.scales_dtype))
    return unpack(*parts, form, packing_tile()).dequantise()[:rows]


@pytest.mark.parametrize(("bits", "most"), [(4, 0.09), (8, 0.006)])
def test_packed_weights_are_those_of_the_model(llama, tmp_path, bits, most):
    folder = packed(llama, tmp_path / "pack", bits)
    for layer in range(3):
        name = f"model.layers.{layer}.mlp.gate_proj"
        expected = read_whole(open_checkpoint(llama, llama).tensors[f"{name}.weight"], torch.float32)
        found = weights_of(folder, name, len(expected))
        assert float((found - expected).norm() / expected.norm()) < most


def test_a_pack_is_a_hugging_face_folder_that_can_be_read_in_place(pack4):
    files = sorted(pack4.glob("*.safetensors"))
    names = [file.name for file in files]
    assert names[0] == "embed-00000.safetensors"
    assert [name for name in names if name.startswith("layer")] == [f"layer-{i:05d}.safetensors" for i in range(3)]
    assert "head-00001.safetensors" in names
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.keys()
        assert (8 + int.from_bytes(file.read_bytes()[:8], "little")) % DATA_ALIGNMENT == 0
    tensors = open_checkpoint(pack4, pack4).tensors.values()
    assert all(tensor.offset % TENSOR_ALIGNMENT == 0 for tensor in tensors)
    _, table = open_model(pack4, torch.bfloat16)
    for block in (*table.layers, *table.pieces):  # where tensors lie in a block is where they lie in its file
        offsets = [recipe.source.offset - DATA_ALIGNMENT for recipe in block.recipes]
        assert sorted(offsets) == [tensor.offset for tensor in block.tensors]
    assert set(json.loads((pack4 / "model.safetensors.index.json").read_text())["weight_map"].values()) == set(names)
    assert set(BlockTableFile.read(pack4 / TABLE).files) == set(names)


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_packed_model_answers_the_same_streamed_as_resident(tmp_path, monkeypatch, size, bits, tied):
    if size == "large":
        monkeypatch.setattr("layermesh.shared.packing.selection.SMALL_MODEL", 0)
    folder = packed(build_llama(tmp_path / "llama", tied=tied), tmp_path / "pack", bits)
    forms = json.loads((folder / "config.json").read_text())["quantization_config"]["modules"]
    has_six_bits = size == "large" and bits == 4 and has_own_forms()
    assert forms["lm_head"] == ([6, 64, 0] if has_six_bits else [8, 32 if bits == 8 else 128, 0])
    answers = []
    with pytest.raises(BudgetError) as least, LayerMesh(str(folder), device="cpu", host_memory="1MB") as mesh:
        mesh.generate(PROMPT, max_new_tokens=12)
    for budget in (least.value.needed_bytes, "1GB"):
        with LayerMesh(str(folder), device="cpu", host_memory=budget) as mesh:
            answers.append(mesh.generate(PROMPT, max_new_tokens=12, temperature=0))
    assert answers[0].token_ids == answers[1].token_ids
    assert [answer.plan.stages[0].streamed_bytes > 0 for answer in answers] == [True, False]


@pytest.mark.parametrize(("bits", "most"), [(4, 0.2), (8, 0.02)])
@pytest.mark.parametrize("num_tokens", [20, 100], ids=["few rows", "many rows"])
@pytest.mark.parametrize("small", [0, 500_000_000], ids=["large", "small"])
def test_logits_are_near_those_of_the_unpacked_model(llama, tmp_path, monkeypatch, bits, most, num_tokens, small):
    monkeypatch.setattr("layermesh.shared.packing.selection.SMALL_MODEL", small)
    folder = packed(llama, tmp_path / "pack", bits)
    token_ids = list(range(5, 5 + num_tokens))
    expected = plain(llama, torch.bfloat16)(token_ids).float()
    assert float((loaded(folder)(token_ids).float() - expected).norm() / expected.norm()) < most


def test_matrices_are_the_same_however_many_rows_are_rounded_at_a_time(llama, pack4, tmp_path, monkeypatch):
    monkeypatch.setattr("layermesh.shared.packing.contents._ROUNDED_ELEMENTS", 64 * 128)
    folder = packed(llama, tmp_path / "pack")
    names = sorted(path.name for path in pack4.glob("*.safetensors"))
    assert names == sorted(path.name for path in folder.glob("*.safetensors"))
    assert all((folder / name).read_bytes() == (pack4 / name).read_bytes() for name in names)


@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q8_0", "Q6_K", "IQ4_XS", "F16"])
def test_gguf_files_keep_their_quants(tmp_path, monkeypatch, encoding):
    path = write_gguf(tmp_path / "model.gguf", "llama", *LLAMA, encodings=(encoding,))
    folder = packed(path, tmp_path / "pack", 4)
    checkpoint = open_checkpoint(path, tmp_path / "unpacked")
    definition, _ = open_model_of(checkpoint)
    groups = {group.targets[0]: group for group in map_gguf(checkpoint, definition.model)}
    for name in ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"):  # q_proj's rows are permuted
        group = groups[f"{name}.weight"]
        (stored,) = (checkpoint.tensors[source] for source in group.sources)
        decoded = torch.empty(stored.shape)
        decode(read_raw(path, stored.offset, stored.num_bytes), stored.encoding, decoded)
        expected = decoded if group.plain else group.convert([decoded])[f"{name}.weight"]
        found = weights_of(folder, name, len(expected))
        most = {"F16": 0.06, "IQ4_XS": 0.006}.get(encoding, 2**-8)
        assert float((found - expected).norm() / expected.norm()) < most
    table = json.loads((folder / "config.json").read_text())["quantization_config"]["embeddings"]
    assert table == {"model.embed_tokens.weight": ["Q8_0" if encoding == "F16" else encoding, [300, 256]]}
    with LayerMesh(str(folder), device="cpu") as mesh:
        assert len(mesh.generate([5, 6, 7], max_new_tokens=4, temperature=0, ignore_eos=True).token_ids) == 4


def open_model_of(checkpoint):
    from layermesh.shared.model.block_table import build_block_table
    from layermesh.shared.model.definition import define_model

    definition = define_model(checkpoint.config_dir, torch.float32)
    return definition, build_block_table(checkpoint, definition)


def test_killed_at_any_point_it_goes_on_and_comes_out_the_same(llama, pack4, tmp_path):
    folder = tmp_path / "pack"
    total = sum(file.stat().st_size for file in pack4.glob("*.safetensors"))
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    for num_bytes in (1000, total // 3, total * 2 // 3):
        command = [sys.executable, str(SCRIPT), str(llama), str(folder), str(num_bytes)]
        assert subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode == -9
        assert not is_complete(folder)
    done = BlockTableFile.read(folder / PARTIAL_TABLE).files
    assert done
    kept = folder / next(iter(done))
    before = kept.stat().st_mtime_ns
    (folder / list(done)[-1]).write_bytes(b"half")  # one that is not what was written is written again
    packed(llama, folder)
    assert kept.stat().st_mtime_ns == before
    assert is_complete(folder)
    assert {file.name: file.read_bytes() for file in folder.glob("*.safetensors")} == {
        file.name: file.read_bytes() for file in pack4.glob("*.safetensors")
    }
    assert not list(folder.glob("*.part*"))


@pytest.mark.parametrize("position", [0.0, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("name", ["embed-00000", "rest", "layer-00001", "head-00001"])
def test_a_flipped_bit_is_found_before_it_is_used(pack4, tmp_path, name, position):
    folder = Path(shutil.copytree(pack4, tmp_path / "pack"))
    path = folder / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + int(position * (len(content) - start))] ^= 1
    path.write_bytes(content)
    with (
        pytest.raises(CheckpointError, match=rf"{name}.safetensors is damaged.*pack the model again"),
        LayerMesh(str(folder), device="cpu") as mesh,
    ):
        mesh.generate(PROMPT, max_new_tokens=2, temperature=0)


def test_a_truncated_file_and_a_broken_table_are_found(pack4, tmp_path):
    folder = Path(shutil.copytree(pack4, tmp_path / "pack"))
    path = folder / "layer-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="truncated"):
        LayerMesh(str(folder), device="cpu")
    folder = Path(shutil.copytree(pack4, tmp_path / "other"))
    (folder / TABLE).write_bytes(b"\xc1 nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        LayerMesh(str(folder), device="cpu")


def test_a_source_that_changes_meanwhile_is_noticed(llama, tmp_path):
    source = Path(shutil.copytree(llama, tmp_path / "llama"))

    class Meddler:
        def start(self, *_):
            (source / "config.json").write_text((source / "config.json").read_text() + " ")

        def advance(self, *_):
            pass

        def finish(self):
            pass

    with pytest.raises(CheckpointError, match="changed while"):
        packed(source, tmp_path / "pack", progress=Meddler())
    assert not is_complete(tmp_path / "pack")


@contextmanager
def small_disk(folder: Path, num_bytes: int):
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small tmpfs needs Linux and the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_full_disk_leaves_nothing_half_done(llama, tmp_path, monkeypatch, foreseen):
    if not foreseen:  # others fill it meanwhile
        monkeypatch.setattr("layermesh.shared.packing.packer.require_room", lambda *_: None)
    with small_disk(tmp_path / "disk", 300_000):
        with pytest.raises(DiskFullError, match="needed") as caught:
            packed(llama, tmp_path / "disk" / "pack")
        assert caught.value.exit_code == 6
        folder = tmp_path / "disk" / "pack"
        known = BlockTableFile.read(folder / PARTIAL_TABLE).files if (folder / PARTIAL_TABLE).is_file() else {}
        assert {file.name for file in folder.glob("*.safetensors*")} >= set(known)
        assert not list(folder.glob("*.part"))
        assert not is_complete(folder)


@pytest.mark.parametrize("model_type", ["gpt2", "mixtral"])
def test_a_family_without_plain_linear_layers_is_refused_by_their_names(tiny, tmp_path, model_type):
    with pytest.raises(UnsupportedModelError, match=r"Conv1D|Experts"):
        packed(tiny(model_type), tmp_path / "pack")


def test_folders_that_hold_something_else_are_refused(llama, pack4, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        packed(llama, tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        packed(llama, tmp_path / "note.txt")
    with pytest.raises(UsageError, match="packed already, to int4"):
        packed(pack4, tmp_path / "again")


def test_a_pack_for_another_processor_is_refused(pack4, tmp_path):
    folder = Path(shutil.copytree(pack4, tmp_path / "pack"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["tile"] = 96 - packing_tile()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"tiles of.*layermesh quantize"):
        LayerMesh(str(folder), device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 5}, {"tile": 7}, {"modules": {"model.layers.0.mlp": [4, 32, 0]}}, {"modules": {"no.such": [4, 32, 1]}},
        {"modules": {"lm_head": [4, 7, 0]}}, {"modules": {"lm_head": [8, 32, 2]}}, {"modules": {"lm_head": [8, 32]}},
        {"head_bounds": [0, 64]}, {"head_bounds": [5, 3]}, {"embeddings": 3},
        {"embeddings": {"model.embed_tokens.weight": ["Q4_0", [2000, 128]]}}, {"version": 1}, {"version": 4}, {"modules": None},
    ],
    ids=str,
)  # fmt: skip
def test_descriptions_that_make_no_sense_are_refused(pack4, tmp_path, change):
    folder = Path(shutil.copytree(pack4, tmp_path / "pack"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, UnsupportedModelError), match=r"[Pp]ack"):
        open_model(folder)


def test_small_matrices_and_routers_stay_as_they_are(tiny, tmp_path):
    _, table = open_model(tiny("llama"))
    folder = packed(tiny("llama"), tmp_path / "pack", 8)
    definition, packed_table = open_model(folder)
    assert len(packed_table.layers) == len(table.layers)
    assert any(isinstance(module, QuantLinear) for module in definition.model.modules())
    request = PackRequest(8)
    with pytest.raises(UsageError):
        pack_into("again", open_checkpoint(folder, folder), request, tmp_path / "again", None)


def test_named_chat_templates_go_along(tmp_path: Path) -> None:
    source = build_llama(tmp_path / "llama")
    name = "additional_chat_templates/rag.jinja"
    (source / name).parent.mkdir()
    (source / name).write_text("{{ messages }}")
    assert (packed(source, tmp_path / "pack") / name).read_text() == "{{ messages }}"
