import os

import pytest
import torch
from transformers import AutoModelForCausalLM

from layermesh import LayerMesh
from layermesh.shared.errors import LayermeshError
from layermesh.shared.library import DEFAULT_MODEL, resolve

CAPITAL = "What is the capital of France?"
NUM_TOKENS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        if "LAYERMESH_HOME" not in os.environ:
            patch.setenv("LAYERMESH_HOME", str(tmp_path_factory.mktemp("home")))
        try:
            path = resolve(DEFAULT_MODEL).path
        except LayermeshError as error:
            pytest.skip(f"the default model cannot be fetched here: {error}")
        yield path


def test_the_default_model_knows_the_capital_of_france_in_a_small_budget(model):
    with LayerMesh(str(model), device="cpu", host_memory="64MB") as mesh:
        answer = mesh.generate(CAPITAL, max_new_tokens=20, temperature=0)
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
    assert answer.plan.stages[0].streamed_bytes > 0


def test_its_logits_are_those_of_transformers_own_gguf_loader(model, monkeypatch):
    # transformers asks for accelerate here and does not use it on a CPU
    monkeypatch.setattr("transformers.modeling_utils.is_accelerate_available", lambda *_: True)
    with LayerMesh(str(model), device="cpu", host_memory="64MB", dtype="float32", fast_path=False) as mesh:
        prompt_ids = mesh.local.tokenizer.encode(CAPITAL)
        seen = []
        outcomes = mesh.local.line.outcomes
        monkeypatch.setattr(mesh.local.line, "outcomes", lambda frames: (seen.append(one) or one for one in outcomes(frames)))
        answer = mesh.generate(prompt_ids, max_new_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)
    theirs = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32).eval()
    input_ids = torch.tensor([prompt_ids])
    expected = theirs.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        max_new_tokens=NUM_TOKENS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert answer.token_ids == expected.sequences[0, len(prompt_ids) :].tolist()
    assert max(float((ours.scores - want[0]).abs().max()) for ours, want in zip(seen, expected.logits, strict=True)) == 0


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_packed_it_still_knows_and_streams_through_less(model, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path))
    with LayerMesh(str(model), device="cpu", host_memory="45MB", quantize=kind) as mesh:
        answer = mesh.generate(CAPITAL, max_new_tokens=20, temperature=0)
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
    assert answer.plan.stages[0].streamed_bytes > 0
