"""The random checkpoints are what transformers and the gguf package take them for."""

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from layermesh import LayerMesh
from tests.benchmarks.peers.gguf_file import gguf_name, write_qwen2
from tests.benchmarks.peers.models import weight_files, write_random
from tests.benchmarks.peers.runners.job import Job


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Qwen2Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("qwen2")
    write_random(folder, config, torch.bfloat16, shard_bytes=50_000)
    return folder


def test_checkpoint_is_sharded_and_loads(checkpoint: Path) -> None:
    assert len(weight_files(checkpoint)) > 1
    model, loading = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(checkpoint).vocab_size == 300


def test_gguf_has_the_same_weights(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_qwen2(checkpoint, path)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert tensors.keys() == {gguf_name(name) for name in state} | {"output.weight"}
    for name, tensor in state.items():
        stored = torch.from_numpy(tensors[gguf_name(name)].data.copy())
        assert torch.equal(stored if tensor.dim() == 1 else stored.view(torch.bfloat16).float(), tensor.float())


def test_layermesh_answers_alike_from_both(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_qwen2(checkpoint, path)
    answers = []
    for model in (checkpoint, path):
        with LayerMesh(str(model), device="cpu", dtype="float32") as mesh:
            answers.append(mesh.generate([5, 6, 7], max_new_tokens=6, temperature=0, ignore_eos=True).token_ids)
    assert answers[0] == answers[1]


def test_job_knows_its_prompt_and_its_rounds() -> None:
    job = Job("model", num_prompt=3, num_new=8, num_threads=2)
    assert (job.prompt_ids, job.rounds) == ([5, 6, 7], [8])
    assert Job("model", num_prompt=3, num_new=8, num_threads=2, num_warmup=2).rounds == [2, 8]
