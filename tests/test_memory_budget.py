import sys

import pytest
import torch

from tests.benchmarks.memory import measure
from tests.benchmarks.models import build_llama, build_mixtral

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the peak is read with wait4")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_llama(tmp_path_factory.mktemp("tiny") / "tiny", hidden=64, layers=2, vocab=512)


@pytest.mark.parametrize(
    ("build", "dtype", "budget", "num_prompt"),
    [
        (build_llama, torch.float32, "60MB", 12),
        (build_llama, torch.float32, "90MB", 300),
        (build_llama, torch.bfloat16, "60MB", 300),
        (build_mixtral, torch.bfloat16, "150MB", 300),  # which takes float32 where the processor does not multiply bfloat16
    ],
    ids=["float32, short prompt", "float32, long prompt", "bfloat16, long prompt", "bfloat16 experts, long prompt"],
)
def test_a_run_takes_no_more_than_its_budget_seen_from_outside(tmp_path, tiny, build, dtype, budget, num_prompt):
    model = build(tmp_path / "model", hidden=512, layers=12, vocab=16000, dtype=dtype)
    found = measure(model, tiny, budget, num_prompt)
    assert found.streamed_bytes > 0
    assert found.taken_bytes > found.budget_bytes / 4, "nothing like a model was measured"
    assert found.taken_bytes <= found.budget_bytes
