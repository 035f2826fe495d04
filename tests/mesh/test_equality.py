"""Answers of a mesh are those of one machine, to the bit, whatever the architecture and the number of workers."""

import pytest

from layermesh import LayerMesh
from tests.mesh.loopback import Loopback

PROMPT = [5, 6, 7, 8, 9, 10, 11]
GREEDY = {"max_new_tokens": 6, "temperature": 0, "ignore_eos": True}
DENSE = ("llama", "qwen2", "qwen3", "phi3", "gpt2", "gpt_neox", "opt", "bloom", "falcon", "stablelm", "olmo2", "starcoder2")
SLIDING = ("mistral", "gemma2", "gemma3_text", "cohere2", "exaone4")
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "gpt_oss", "dbrx")
LATENT = ("deepseek_v2", "deepseek_v3")
LINEAR = ("mamba", "mamba2", "falcon_mamba", "qwen3_next", "jamba", "zamba2", "bamba", "recurrent_gemma")
FAMILIES = (*DENSE, *SLIDING, *EXPERTS, *LATENT, *LINEAR)
PER_LAYER_EMBEDDINGS = "gemma3n_text"


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    with Loopback(tmp_path_factory.mktemp("stores")) as loopback:
        yield [worker.address for worker in loopback.add(4)]


def answer(folder, **options):
    with LayerMesh(str(folder), device="cpu", **options) as mesh:
        return mesh.generate(PROMPT, **GREEDY)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("model_type", "num_workers"),
    [*((family, 1 + number % 4) for number, family in enumerate(FAMILIES)), *(("llama", number) for number in (2, 3, 4))],
)
def test_workers_give_the_answer_of_one_machine(tiny, addresses, model_type, num_workers):
    alone = answer(tiny(model_type), alone=True)
    together = answer(tiny(model_type), workers=addresses[:num_workers], discover=False, spread=True, alone=False)
    assert together.token_ids == alone.token_ids
    assert {stage.worker for stage in together.plan.stages} >= {f"w{number}" for number in range(min(num_workers, 2))}


def test_a_family_that_cannot_be_divided_runs_alone(tiny, addresses):
    said = []
    together = answer(tiny(PER_LAYER_EMBEDDINGS), workers=addresses, discover=False, spread=True, alone=False, tell=said.append)
    assert together.token_ids == answer(tiny(PER_LAYER_EMBEDDINGS), alone=True).token_ids
    assert [stage.worker for stage in together.plan.stages] == ["local"]
    assert "cannot be divided" in said[0]
