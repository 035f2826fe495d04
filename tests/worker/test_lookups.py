import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from layermesh.shared.checkpoints.safetensors_header import read_header
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader
from layermesh.worker.lookups import RowLookup

NUM_ROWS, COLUMNS = 100, 24
IDS = {
    "prompt": torch.tensor([[5, 6, 7, 5, 99, 0]]),
    "token": torch.tensor([[42]]),
    "flat": torch.tensor([3, 1, 2]),
    "scalar": torch.tensor(9),
    "cube": torch.arange(24).view(2, 3, 4),
    "none": torch.empty(1, 0, dtype=torch.long),
}
MODULES = {
    "plain": lambda: nn.Embedding(NUM_ROWS, COLUMNS),
    "padded": lambda: nn.Embedding(NUM_ROWS, COLUMNS, padding_idx=5),
    "scaled": lambda: Gemma3TextScaledWordEmbedding(NUM_ROWS, COLUMNS, padding_idx=0, embed_scale=COLUMNS**0.5),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def look_up(tmp_path):
    """Return a module and the same one without its table, which is stored in a dtype of its own."""
    files = FileReader()
    loader = BlockLoader(files)

    def make(kind, stored, computed):
        whole, reduced = MODULES[kind](), MODULES[kind]()
        table = torch.randn(NUM_ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).to(stored)
        save_file({"other": torch.ones(7), "table": table}, tmp_path / "x.safetensors")
        whole.weight = nn.Parameter(table.to(computed), requires_grad=False)
        reduced.to(computed)
        lookup = RowLookup(reduced, read_header(tmp_path / "x.safetensors")["table"], loader, torch.device("cpu"))
        return whole.to(computed), reduced, lookup, files

    yield make
    loader.close()
    files.close()


@pytest.mark.parametrize("token_ids", IDS.values(), ids=IDS)
@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("computed", DTYPES[:2], ids=str)
@torch.inference_mode()
def test_rows_equal_those_of_the_whole_table(look_up, kind, stored, computed, token_ids):
    whole, reduced, _, _ = look_up(kind, stored, computed)
    expected, found = whole(token_ids), reduced(token_ids)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


def test_only_the_rows_at_hand_are_read(look_up):
    _, reduced, _, files = look_up("plain", torch.bfloat16, torch.float32)
    reduced(torch.tensor([[7, 7, 7, 8]]))
    assert files.num_bytes == 2 * COLUMNS * 2


def test_the_module_keeps_its_shape_and_dtype_without_the_table(look_up):
    _, reduced, _, _ = look_up("padded", torch.float32, torch.bfloat16)
    reduced(torch.tensor([1]))
    assert (reduced.weight.shape, reduced.weight.dtype) == ((NUM_ROWS, COLUMNS), torch.bfloat16)
    assert reduced.weight.untyped_storage().nbytes() == 2
    assert reduced.weight[3].isnan().all()


@pytest.mark.parametrize("token_id", [-1, NUM_ROWS, 10**9])
def test_ids_that_the_table_has_no_row_for_are_refused(look_up, token_id):
    _, reduced, _, files = look_up("plain", torch.float32, torch.float32)
    with pytest.raises(IndexError, match=f"token id {token_id} .* {NUM_ROWS}"):
        reduced(torch.tensor([[1, token_id]]))
    assert files.num_bytes == 0
    assert reduced(torch.tensor([[1]])).shape == (1, 1, COLUMNS)
