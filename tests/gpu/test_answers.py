import pytest
import torch

from layermesh import LayerMesh
from layermesh.shared.frames import Failure
from layermesh.worker.host_layers import NUM_TRIALS
from tests.architectures.tiny import PROMPT, reference
from tests.benchmarks.models import build_llama
from tests.gpu.cards import CARD, answers, furthest, needs_card, on_card
from tests.running import PLENTY, first_frame

pytestmark = needs_card

MODEL_TYPES = ["llama", "mixtral", "gemma3_text", "falcon_mamba"]
PROMPTS = [PROMPT, PROMPT[:3], [99]]
LENGTH = 8
CLOSE = 1e-3  # of logits, in float32: a card adds up in another order
LAYOUTS = {
    "everything resident": {"spare_bytes": PLENTY},
    "some resident, the others on the host": {"spare_bytes": 150_000},
    "everything on the host": {},
    "some on the host": {"host_bytes": 700_000},
    "from disk": {"host_bytes": 0},
}


def least_host_bytes(folder) -> int:
    with on_card(folder) as stage:
        plan = stage.residency
        assert plan is not None
        return (
            plan.host_bytes
            - plan.host_working_bytes
            - sum(block.loaded_bytes for block in plan.blocks if block.name in plan.on_host)
        )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_card_answers_as_the_processor_does(tiny, model_type, layout):
    folder = tiny(model_type)
    options = dict(layout)
    if "host_bytes" in options:
        options["host_bytes"] = max(options["host_bytes"], least_host_bytes(folder))
    expected = reference(folder, PROMPT, LENGTH)
    with on_card(folder, **options) as stage:
        for _ in range(2):
            (ours,) = answers(stage, [PROMPT], LENGTH)
            assert ours.token_ids == expected.token_ids
            assert furthest(ours, expected) < CLOSE


@pytest.mark.parametrize("host_rate", [1.0, 1e6, 1e18], ids=["never", "half of them", "all of them"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_layers_computed_beside_the_card_give_the_same(tiny, model_type, host_rate):
    expected = reference(tiny(model_type), PROMPT, LENGTH)
    with on_card(tiny(model_type)) as stage:
        stage.host_layers.bus_rate = 1e6
        stage.host_layers._rates = [host_rate] * NUM_TRIALS
        (ours,) = answers(stage, [PROMPT], LENGTH)
    assert ours.token_ids == expected.token_ids
    assert furthest(ours, expected) < CLOSE


def test_a_cache_follows_its_layer_to_and_fro(tiny):
    expected = reference(tiny("gemma3_text"), PROMPT, LENGTH)
    with on_card(tiny("gemma3_text")) as stage:
        stage.host_layers.bus_rate = 1e6
        names = sorted(stage.residency.on_host & stage.host_layers._able)
        choices = iter([frozenset(names[::step]) for step in (1, 2, 3, 1, 2, 3, 1, 2)])
        stage.host_layers.choose = lambda *_: next(choices)
        (ours,) = answers(stage, [PROMPT], LENGTH)
    assert ours.token_ids == expected.token_ids


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_sessions_that_share_sweeps_equal_themselves_alone(tiny, layout):
    options = dict(layout)
    if "host_bytes" in options:
        options["host_bytes"] = max(options["host_bytes"], least_host_bytes(tiny("llama")))
    with on_card(tiny("llama"), **options) as stage:
        together = answers(stage, PROMPTS, LENGTH)
        alone = [answers(stage, [prompt], LENGTH)[0] for prompt in PROMPTS]
    for ours, own in zip(together, alone, strict=True):
        assert ours.token_ids == own.token_ids


def test_sessions_end_where_the_card_says_that_something_is_wrong(tiny):
    with on_card(tiny("llama")) as stage:
        (failure,) = stage.forward([first_frame("session 0", [1, 4000])])
        assert isinstance(failure, Failure)
        assert answers(stage, [PROMPT], 2)[0].token_ids == reference(tiny("llama"), PROMPT, 2).token_ids


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_checkpoints_compute_in_what_the_card_does_well(tmp_path, stored):
    model = build_llama(tmp_path / "model", hidden=256, layers=4, vocab=1000, dtype=stored)
    ampere = torch.cuda.get_device_capability(CARD) >= (8, 0)
    expected = stored if stored is not torch.bfloat16 or ampere else torch.float16
    with LayerMesh(str(model), device="cuda") as mesh:
        assert mesh.local.dtype is expected
        answer = mesh.generate(PROMPT, max_new_tokens=4, temperature=0, ignore_eos=True)
        assert len(answer.token_ids) == 4


@pytest.mark.parametrize("device_memory", [None, "100MB"], ids=["most of the card", "a small budget"])
def test_the_python_api_answers_as_on_the_processor(tiny, device_memory):
    found = []
    for device, budget in (("cpu", None), ("cuda", device_memory)):
        with LayerMesh(str(tiny("llama")), device=device, device_memory=budget, dtype="float32") as mesh:
            found.append(mesh.generate(PROMPT, max_new_tokens=6, temperature=0, ignore_eos=True).token_ids)
    assert found[0] == found[1]
