import pytest
import torch

from layermesh import LayerMesh
from tests.architectures.tiny import PROMPT, build

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@pytest.mark.parametrize("device_memory", [None, "16MB"], ids=["most of the card", "a small budget"])
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gemma3_text", "falcon_mamba"])
def test_cuda_answers_as_the_cpu_does(tmp_path, model_type, device_memory):
    model = str(build(model_type, tmp_path / "model"))
    answers = []
    for device, budget in (("cpu", None), ("cuda", device_memory)):
        with LayerMesh(model, device=device, device_memory=budget, dtype="float32") as mesh:
            answers.append(mesh.generate(PROMPT, max_new_tokens=6, temperature=0, ignore_eos=True).token_ids)
    assert answers[0] == answers[1]
