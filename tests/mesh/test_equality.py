"""Answers of a mesh are those of one machine, to the bit, whatever the architecture and the number of workers."""

import pytest

from layermesh import LayerMesh
from layermesh.shared.footprint import SequenceSize
from layermesh.shared.frames import SessionId
from tests.architectures.runs import answer_greedily, difference
from tests.mesh.loopback import Loopback
from tests.storing import example

PROMPT = [5, 6, 7, 8, 9, 10, 11]
NUM_TOKENS = 6
DENSE = ("llama", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox", "opt", "bloom", "falcon", "stablelm", "olmo2", "starcoder2")
SLIDING = ("mistral", "gemma2", "gemma3_text", "cohere2", "exaone4")
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "gpt_oss", "dbrx")
LATENT = ("deepseek_v2", "deepseek_v3")
LINEAR = ("mamba", "mamba2", "falcon_mamba", "qwen3_next", "jamba", "zamba2", "bamba", "recurrent_gemma")
FAMILIES = (*DENSE, *SLIDING, *EXPERTS, *LATENT, *LINEAR)
PER_LAYER_EMBEDDINGS = "gemma3n_text"


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    with Loopback(tmp_path_factory.mktemp("stores")) as loopback:
        yield loopback.add(4)


@pytest.fixture
def addresses(workers):
    return [worker.address for worker in workers]


def answer(folder, **options):
    with LayerMesh(str(folder), device="cpu", **options) as mesh:
        return mesh.generate(PROMPT, max_new_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)


def run(folder, **options):
    """The greedy tokens and their logits, and who ran what."""
    with LayerMesh(str(folder), device="cpu", **options) as mesh:
        mesh.generate(PROMPT, max_new_tokens=1, temperature=0)
        session = SessionId("session 0")
        mesh.local.line.reserve(session, SequenceSize(len(PROMPT) + NUM_TOKENS, len(PROMPT)))
        (answer,) = answer_greedily(mesh.local.line, [PROMPT], NUM_TOKENS)
        mesh.local.line.release(session)
        return answer, [stage.worker for stage in mesh.local.plan(measured=False).stages]


@pytest.mark.usefixtures("one_thread", "no_models_there")
@pytest.mark.parametrize(
    ("model_type", "num_workers"),
    [*((family, 1 + number % 4) for number, family in enumerate(FAMILIES)), *(("llama", number) for number in (2, 3, 4))],
)
def test_workers_give_the_answer_of_one_machine(tiny, workers, addresses, model_type, num_workers):
    alone, _ = run(tiny(model_type), alone=True)
    together, stages = run(tiny(model_type), workers=addresses[:num_workers], discover=False, spread=True, alone=False)
    assert difference(together, alone) == ""
    assert stages[:-1] == [f"w{number}" for number in range(len(stages) - 1)]
    assert len(stages) >= 2
    for worker in workers[: len(stages) - 1]:
        assert str(tiny(model_type)) in [stored.name for stored in worker.store.models()]


@pytest.mark.usefixtures("one_thread", "no_models_there")
@pytest.mark.parametrize("kind", ["mxfp4", "gguf gpt-oss", "gguf pieces"])
def test_models_in_other_forms_give_the_answer_of_one_machine(addresses, kind):
    path = example(kind).checkpoint.path
    alone, _ = run(path, alone=True)
    together, stages = run(path, workers=addresses[:2], discover=False, spread=True, alone=False)
    assert difference(together, alone) == ""
    assert len(stages) >= 2


def test_a_family_that_cannot_be_divided_runs_alone(tiny, addresses):
    said = []
    together = answer(tiny(PER_LAYER_EMBEDDINGS), workers=addresses, discover=False, spread=True, alone=False, tell=said.append)
    assert together.token_ids == answer(tiny(PER_LAYER_EMBEDDINGS), alone=True).token_ids
    assert [stage.worker for stage in together.plan.stages] == ["local"]
    assert "cannot be divided" in said[0]
