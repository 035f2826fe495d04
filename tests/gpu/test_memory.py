import gc

import pytest
import torch

from layermesh import LayerMesh
from layermesh.shared.errors import BudgetError, ResourceError
from layermesh.shared.frames import SessionId
from layermesh.shared.units import parse_bytes
from layermesh.worker.card import CudaCard
from layermesh.worker.card_memory import CardMemory
from layermesh.worker.cuda import CardBuffer
from tests.architectures.tiny import PROMPT, reference
from tests.benchmarks.models import build_llama, build_mixtral
from tests.gpu.cards import CARD, answers, needs_card, on_card
from tests.running import first_frame, next_frame

pytestmark = needs_card

NUM_SWEEPS = 20


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return build_llama(folder, hidden=1024, layers=16, vocab=32000, dtype=torch.float16)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return build_mixtral(tmp_path_factory.mktemp("mixtral"), hidden=512, layers=8, vocab=16000, dtype=torch.float16)


@pytest.fixture(autouse=True)
def swept():
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("num_prompt", [12, 700], ids=["short prompt", "long prompt"])
@pytest.mark.parametrize("budget", ["220MB", "320MB", "480MB", "2GB"])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_a_run_takes_no_more_of_the_card_than_its_budget(request, name, budget, num_prompt):
    before = torch.cuda.memory_reserved(CARD)
    num_bytes = parse_bytes(budget)
    with LayerMesh(str(request.getfixturevalue(name)), device="cuda", device_memory=budget) as mesh:
        prompt = [5 + i % 100 for i in range(num_prompt)]
        answer = mesh.generate(prompt, max_new_tokens=8, temperature=0, ignore_eos=True)
        statistics = torch.cuda.memory_stats(CARD)
        assert torch.cuda.max_memory_allocated(CARD) - before <= num_bytes
        assert torch.cuda.max_memory_reserved(CARD) - before <= num_bytes
        assert answer.memory.device_peak_bytes <= num_bytes
        assert answer.memory.device_peak_bytes >= sum(stage.resident_bytes for stage in answer.plan.stages)
        assert statistics["num_ooms"] == 0
        planned = mesh.local.stage.residency.total_bytes
        print(f"{budget}: {planned / 1e6:.0f} MB planned, {answer.memory.device_peak_bytes / 1e6:.0f} MB reserved")


def test_a_budget_below_the_least_is_refused_with_one_that_does(llama):
    with pytest.raises(BudgetError) as refusal, LayerMesh(str(llama), device="cuda", device_memory="80MB") as mesh:
        mesh.generate(PROMPT, max_new_tokens=4)
    least = refusal.value.needed_bytes
    with LayerMesh(str(llama), device="cuda", device_memory=least) as mesh:
        answer = mesh.generate(PROMPT, max_new_tokens=4, ignore_eos=True)
    assert answer.memory.device_peak_bytes <= least


@pytest.mark.parametrize("host_bytes", [1 << 30, 100 << 20], ids=["on the host", "from disk"])
def test_nothing_is_taken_from_the_card_in_the_steady_state(llama, host_bytes):
    with on_card(llama, dtype=torch.float16, host_bytes=host_bytes) as stage:
        frame = first_frame("session 0", PROMPT)
        for _ in range(4):
            stage.forward([frame])
            frame = next_frame(frame, 7)
        before = torch.cuda.memory_stats(CARD)
        for _ in range(NUM_SWEEPS):
            stage.forward([frame])
            frame = next_frame(frame, 7)
        after = torch.cuda.memory_stats(CARD)
        for name in ("num_device_alloc", "num_device_free", "num_alloc_retries", "num_ooms"):
            assert after[name] == before[name], name
        assert after["num_alloc_retries"] == 0


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()], ids=["closed", "interrupted"])
def test_a_closed_stage_gives_the_card_its_memory_back(llama, error):
    before = torch.cuda.memory_reserved(CARD), torch.cuda.memory_allocated(CARD)
    with on_card(llama, spare_bytes=100 << 20, dtype=torch.float16) as stage:
        answers(stage, [PROMPT], 2)
        if error is not None:
            stage.watcher = raise_at("layer 9", error)
            with pytest.raises(KeyboardInterrupt):
                stage.forward([first_frame("session 0", PROMPT)])
            stage.watcher = None
            answers(stage, [PROMPT], 2)
            stage.watcher = raise_at("layer 3", error)
            with pytest.raises(KeyboardInterrupt):
                stage.forward([first_frame("session 0", PROMPT)])
    del stage
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated(CARD) <= before[1] + (1 << 20)
    assert torch.cuda.memory_reserved(CARD) <= before[0] + (4 << 20)


def raise_at(name, error):
    def watch(block):
        if block.name == name:
            raise error

    return watch


def test_running_out_of_memory_is_a_matter_of_resources(tiny, monkeypatch):
    with on_card(tiny("llama")) as stage:
        monkeypatch.setattr(stage._doors, "_forwards", [lambda *_, **__: torch.empty(1 << 46, device=CARD)] * 4)
        (failure,) = stage.forward([first_frame("session 0", PROMPT)])
        assert isinstance(failure.error, ResourceError)


def test_a_stage_that_the_bound_leaves_no_room_is_a_matter_of_resources(llama):
    bound = CardMemory(CARD, 8 << 20)
    try:
        with pytest.raises(ResourceError, match="ran out of memory"), on_card(llama, dtype=torch.float16):
            pass
    finally:
        bound.close()
    with on_card(llama, dtype=torch.float16) as stage:
        answers(stage, [PROMPT], 1)


def test_a_bound_holds_and_is_lifted():
    fraction = torch.cuda.get_per_process_memory_fraction(CARD)
    bound = CardMemory(CARD, 64 << 20)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(80 << 20, dtype=torch.uint8, device=CARD)
    memory = torch.empty(40 << 20, dtype=torch.uint8, device=CARD)
    assert 40 << 20 <= bound.peak_bytes <= 64 << 20
    del memory
    bound.close()
    assert torch.cuda.get_per_process_memory_fraction(CARD) == fraction
    torch.empty(80 << 20, dtype=torch.uint8, device=CARD)


def test_buffers_are_pinned_and_unpinned():
    buffer = CardBuffer(32 << 20, CudaCard(CARD))
    memory = buffer.bytes
    assert not buffer.is_slow
    assert memory.is_pinned()
    del buffer
    assert not memory.is_pinned()


def test_a_refusal_to_pin_is_not_put_down_to_the_next_kernel():
    card = CudaCard(CARD)
    memory = torch.zeros(1 << 20, dtype=torch.uint8)
    assert card.pin(memory)
    assert not card.pin(memory)  # it is already
    assert float(torch.ones(4, device=CARD).sum()) == 4
    card.unpin(memory)
    card.unpin(memory)
    assert float(torch.ones(4, device=CARD).sum()) == 4


def test_without_pinned_memory_the_answer_is_the_same(tiny, monkeypatch):
    monkeypatch.setattr(CudaCard, "pin", lambda *_: False)
    with on_card(tiny("llama")) as stage:
        (ours,) = answers(stage, [PROMPT], 6)
        assert stage.notices
    assert ours.token_ids == reference(tiny("llama"), PROMPT, 6).token_ids


def test_another_layout_does_not_take_more(llama):
    with on_card(llama, spare_bytes=200 << 20, dtype=torch.float16) as stage:
        answers(stage, [PROMPT], 2)
        torch.cuda.reset_peak_memory_stats(CARD)
        for number in range(8):
            stage.reserve(SessionId(f"more {number}"), next(iter(stage._reserved.values())))
        answers(stage, [PROMPT], 2)
        assert torch.cuda.max_memory_allocated(CARD) <= stage._budget_bytes
