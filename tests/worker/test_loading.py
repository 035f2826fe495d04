import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from layermesh.shared.checkpoints.safetensors_header import read_header
from layermesh.shared.errors import CheckpointError
from layermesh.shared.model import blocks
from layermesh.shared.model.blocks import PAGE_BYTES, Block, BlockTensor
from layermesh.shared.model.recipes import Conversion, Copy, TransposedCopy
from layermesh.worker import loading
from layermesh.worker.buffers import Buffer, block_tensors
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader
from tests.running import open_model, wait_until

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def loader():
    files = FileReader()
    loader = BlockLoader(files)
    yield loader
    loader.close()
    files.close()


def load(loader: BlockLoader, block: Block) -> dict[str, torch.Tensor]:
    buffer = Buffer(block.loaded_bytes)
    loader.start(block, buffer).wait()
    return dict(block_tensors(block, buffer.bytes))


def block_of(path: Path, dtype: torch.dtype) -> Block:
    """All tensors of a file as one block, computed in `dtype`."""
    tensors, offset = [], 0
    stored = read_header(path)
    for name, source in stored.items():
        tensors.append(BlockTensor(name, (name,), source.shape, dtype, offset))
        offset += -(-tensors[-1].num_bytes // 64) * 64
    return Block("all", 0, tuple(tensors), tuple(Copy(source, name) for name, source in stored.items()))


SHAPES = {
    "matrix": (130, 70),
    "vector": (1_000_003,),
    "one": (1,),
    "scalar": (),
    "empty": (0, 5),
    "cube": (3, 5, 7),
    "wide": (3, 400_000),
}


@pytest.mark.parametrize("computed", DTYPES, ids=str)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
def test_blocks_are_what_safetensors_reads_cast(loader, tmp_path, stored, computed):
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator).to(stored) for name, shape in SHAPES.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    loaded = load(loader, block_of(tmp_path / "x.safetensors", computed))
    assert loaded.keys() == tensors.keys()
    for name, expected in load_file(tmp_path / "x.safetensors").items():
        assert loaded[name].shape == expected.shape
        assert torch.equal(loaded[name], expected.to(computed)), name


@pytest.mark.parametrize("num_bytes", [1, 100, 4096], ids="reads of {}".format)
def test_pieces_of_any_size_make_the_same_block(loader, tmp_path, monkeypatch, num_bytes):
    for module, name in (
        (blocks, "READ_BYTES"),
        (blocks, "LEAST_READ_BYTES"),
        (loading, "READ_BYTES"),
        (loading, "STAGING_BYTES"),
        (loading, "SCATTERED_BYTES"),
    ):
        monkeypatch.setattr(module, name, num_bytes)
    tensors = {"a": torch.randn(50, 30), "b": torch.randn(7)}
    save_file(tensors, tmp_path / "x.safetensors")
    for dtype in DTYPES:
        loaded = load(loader, block_of(tmp_path / "x.safetensors", dtype))
        assert all(torch.equal(loaded[name], tensor.to(dtype)) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "model_type", ["llama", "mixtral", "deepseek_v3", "olmo_hybrid", "longcat_flash", "qwen3_next", "falcon_mamba"]
)
def test_blocks_of_a_model_are_what_transformers_loads(loader, tiny, model_type, dtype):
    expected = AutoModelForCausalLM.from_pretrained(tiny(model_type), dtype=dtype).state_dict()
    _, table = open_model(tiny(model_type), dtype)
    for block in (table.rest, *table.stream):
        for key, tensor in load(loader, block).items():
            assert tensor.dtype == expected[key].dtype, key
            assert torch.equal(tensor, expected[key]), key


def test_a_conversion_is_carried_out_on_decoded_tensors(loader, tmp_path):
    halves = {"up": torch.randn(6, 4).to(torch.bfloat16), "down": torch.randn(4, 6).to(torch.bfloat16)}
    save_file(halves, tmp_path / "x.safetensors")
    stored = read_header(tmp_path / "x.safetensors")
    dtypes = []

    def combine(given):
        dtypes.extend(tensor.dtype for tensor in given)
        return {"sum": given[0] + given[1].T, "unused": given[0]}

    recipe = Conversion((stored["up"], stored["down"]), ("sum", "unused"), combine, torch.float32)
    block = Block("x", 0, (BlockTensor("sum", ("sum",), (6, 4), torch.float32, 0),), (recipe,))
    assert torch.equal(load(loader, block)["sum"], halves["up"].float() + halves["down"].float().T)
    assert dtypes == [torch.float32, torch.float32]


def test_copies_by_rows_scatter_them(loader, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "SCATTERED_BYTES", 64)
    matrix = torch.randn(40, 6)
    save_file({"m": matrix}, tmp_path / "x.safetensors")
    order = torch.randperm(40)
    tensors = (BlockTensor("m", ("m",), (40, 6), torch.bfloat16, 0),)
    block = Block("x", 0, tensors, (Copy(read_header(tmp_path / "x.safetensors")["m"], "m", rows=order),))
    loaded = load(loader, block)["m"]
    assert torch.equal(loaded[order], matrix.to(torch.bfloat16))


@pytest.mark.parametrize("piece_bytes", [1, 3 * 4 * 64, 1 << 20])
def test_matrices_of_experts_become_columns_piece_by_piece(loader, tmp_path, monkeypatch, piece_bytes):
    monkeypatch.setattr(loading, "TRANSPOSED_BYTES", piece_bytes)
    gate, up = torch.randn(3, 10, 64), torch.randn(3, 10, 64)
    blocks = torch.randint(0, 256, (3, 20, 2, 16), dtype=torch.uint8)
    scales = torch.randint(120, 130, (3, 20, 2), dtype=torch.uint8)
    save_file({"gate": gate, "up": up, "blocks": blocks, "scales": scales}, tmp_path / "x.safetensors")
    stored = read_header(tmp_path / "x.safetensors")
    recipes = (
        TransposedCopy((stored["gate"],), "turns", 0, 2),
        TransposedCopy((stored["up"],), "turns", 1, 2),
        TransposedCopy((stored["blocks"], stored["scales"]), "packed"),
    )
    shape = (3, 64, 20)
    tensors = tuple(BlockTensor(name, (name,), shape, torch.float32, at) for name, at in (("turns", 0), ("packed", 15360)))
    loaded = load(loader, Block("x", 0, tensors, recipes))
    assert torch.equal(loaded["turns"], torch.stack([gate, up], 2).flatten(1, 2).transpose(1, 2))
    assert torch.equal(loaded["packed"], convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))


@pytest.mark.parametrize("spoil", ["truncated", "gone"])
def test_an_error_in_a_reader_reaches_who_waits(loader, tmp_path, spoil):
    path = tmp_path / "x.safetensors"
    save_file({"m": torch.randn(500, 100)}, path)
    block = block_of(path, torch.bfloat16)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10]) if spoil == "truncated" else path.unlink()
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        load(loader, block)
    if spoil == "gone":
        path.write_bytes(whole)
        assert load(loader, block)


class Gate(FileReader):
    """Lets nobody read before it is opened."""

    def __init__(self):
        super().__init__()
        self.opened, self.arrived = threading.Event(), threading.Semaphore(0)

    def read_into(self, path, offset, target):
        self.arrived.release()
        assert self.opened.wait(10)
        super().read_into(path, offset, target)


def test_an_abandoned_load_reads_no_more_and_leaves_the_buffer_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "READ_BYTES", PAGE_BYTES)
    monkeypatch.setattr(blocks, "LEAST_READ_BYTES", PAGE_BYTES)
    save_file({"m": torch.randn(4000, 25)}, tmp_path / "x.safetensors")
    block = block_of(tmp_path / "x.safetensors", torch.float32)
    files = Gate()
    loader = BlockLoader(files)
    under_way = loader.start(block, Buffer(block.loaded_bytes))
    for _ in range(loading.NUM_READERS):
        assert files.arrived.acquire(timeout=10)
    abandoning = threading.Thread(target=under_way.abandon)
    abandoning.start()
    wait_until(lambda: all(part.running() or part.cancelled() for part in under_way._parts))
    files.opened.set()
    abandoning.join(10)
    assert files.num_bytes <= loading.NUM_READERS * PAGE_BYTES
    loader.close()
    files.close()


def test_closing_ends_the_threads():
    loader = BlockLoader(FileReader())
    loader._readers.submit(int).result()
    assert any(thread.name.startswith("layermesh-reader") for thread in threading.enumerate())
    loader.close()
    loader.close()
    assert not any(thread.name.startswith("layermesh-reader") for thread in threading.enumerate())


class Busy(Buffer):
    """A buffer that something is still copied from."""

    def __init__(self, num_bytes):
        super().__init__(num_bytes)
        self.free = threading.Event()

    def wait_until_free(self):
        assert self.free.wait(10)


@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16], ids=["read in place", "converted"])
def test_nothing_is_written_to_a_buffer_that_is_in_use(loader, tmp_path, computed):
    save_file({"matrix": torch.ones(300, 70)}, tmp_path / "x.safetensors")
    block = block_of(tmp_path / "x.safetensors", computed)
    buffer = Busy(block.loaded_bytes)
    loading_block = loader.start(block, buffer)
    with pytest.raises(TimeoutError):
        loading_block._parts[0].result(0.1)
    assert not loading_block.is_done
    assert not buffer.bytes.any()
    buffer.free.set()
    loading_block.wait()
    assert loading_block.is_done
    assert torch.equal(buffer.tensors(block)["matrix"], torch.ones(300, 70, dtype=computed))
