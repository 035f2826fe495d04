import gc
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_checkpoints import change_config
from transformers import AutoModelForCausalLM

import layermesh
from layermesh import Answer, LayerMesh, Token
from layermesh.settings import GenerationSettings
from layermesh.shared.errors import BudgetError, CheckpointError, ModelNotFoundError, TokenizerError, UsageError


@pytest.fixture(scope="module")
def mesh(text_model: Path) -> Iterator[LayerMesh]:
    with LayerMesh(str(text_model), device="cpu", device_memory=None, host_memory="64MB", dtype=None) as mesh:
        yield mesh


def test_as_in_the_readme(mesh: LayerMesh, text_model: Path) -> None:
    answer = mesh.generate("Hello", max_new_tokens=20, temperature=0, ignore_eos=False)
    assert isinstance(answer, Answer)
    assert answer.text
    assert answer.finish_reason == "length"
    assert (answer.prompt_tokens, len(answer.token_ids)) == (8, 20)
    assert answer.model == str(text_model)
    assert answer.timings.decode_tokens_per_second > 0
    assert answer.memory.host_budget_bytes == 64_000_000
    assert 0 < answer.memory.host_peak_bytes <= 64_000_000
    tokens = list(mesh.stream([5, 6, 7], max_new_tokens=8))
    assert all(isinstance(token, Token) for token in tokens)
    assert [token.id for token in tokens] == mesh.generate([5, 6, 7], max_new_tokens=8).token_ids


def test_records_are_read_by_attribute_and_by_key(mesh: LayerMesh) -> None:
    answer = mesh.generate("Hello", max_new_tokens=3)
    for record in (answer.timings, answer.stream, answer.memory):
        assert list(record) == list(record.keys())
        for name, value in dict(record).items():
            assert record[name] == getattr(record, name) == value
        with pytest.raises(KeyError):
            record["nonsense"]
    assert answer.to_dict()["stream"] == dict(answer.stream)
    assert answer["plan"]["stages"][0]["start"] == answer.plan.stages[0].start == 0


def test_tokens_are_those_of_transformers(mesh: LayerMesh, text_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(text_model).eval()
    prompt = [5, 200, 31, 7]
    with torch.inference_mode():
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=30)[0, len(prompt) :]
    assert mesh.generate(prompt, max_new_tokens=30, ignore_eos=True).token_ids == expected.tolist()


PROMPTS: dict[str, Any] = {
    "text": "Hello",
    "chat": [{"role": "user", "content": "Hello"}],
    "ids": [5, 6, 7],
    "tuple": (5, 6, 7),
    "range": range(5, 8),
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_stream_is_the_answer_in_pieces(prompt: Any, mesh: LayerMesh) -> None:
    stream = mesh.stream(prompt, max_new_tokens=12, temperature=1, seed=4)
    tokens = list(stream)
    answer = mesh.generate(prompt, max_new_tokens=12, temperature=1, seed=4)
    assert stream.answer is not None
    assert [token.id for token in tokens] == answer.token_ids == stream.answer.token_ids
    assert "".join(token.text for token in tokens) == answer.text == stream.answer.text


def test_a_text_is_what_the_user_says(mesh: LayerMesh) -> None:
    def tokens(prompt: Any, **settings: Any) -> list[int]:
        return mesh.generate(prompt, max_new_tokens=6, **settings).token_ids

    said = {"role": "user", "content": "Hello"}
    assert tokens("Hello") == tokens([said])
    assert tokens("Hello", system="Be kind") == tokens([{"role": "system", "content": "Be kind"}, said])
    assert tokens("<|user|>Hello<|end|><|assistant|>", raw=True) == tokens("Hello")


def test_requests_one_after_another_use_what_was_read(text_model: Path) -> None:
    with LayerMesh(str(text_model)) as mesh:
        first, second = (mesh.generate([5, 6, 7], max_new_tokens=4) for _ in range(2))
        assert second.token_ids == first.token_ids
        assert first.stream.disk_bytes > 500_000
        assert second.stream.disk_bytes < 10_000  # rows of the embedding
        longer = mesh.generate([5, 6, 7], max_new_tokens=100, ignore_eos=True)
        assert longer.token_ids[:4] == first.token_ids


def test_two_streams_by_turns(mesh: LayerMesh) -> None:
    prompts = ([5, 6, 7], [8, 9])
    expected = [mesh.generate(prompt, max_new_tokens=10, ignore_eos=True).token_ids for prompt in prompts]
    streams = [mesh.stream(prompt, max_new_tokens=10, ignore_eos=True) for prompt in prompts]
    got = [[token.id for token in pair] for pair in zip(*streams, strict=True)]
    assert [list(ids) for ids in zip(*got, strict=True)] == expected


def test_streams_that_are_dropped_give_their_memory_back(text_model: Path) -> None:
    settings: GenerationSettings = {"max_new_tokens": 200, "ignore_eos": True}
    with LayerMesh(str(text_model), host_memory="100kB") as mesh, pytest.raises(BudgetError) as refused:
        next(mesh.stream([5, 6, 7], **settings))
    assert mesh.local.stage._reserved == {}
    with LayerMesh(str(text_model), host_memory=refused.value.needed_bytes) as mesh:  # no room for two
        for index in range(100):
            stream = mesh.stream([5, 6, 7], **settings)
            if index % 10 == 0:
                next(stream)
            del stream
            assert mesh.local.stage._reserved == {}
        assert len(mesh.generate([5, 6, 7], **settings).token_ids) == 200


def test_a_stream_of_a_closed_mesh_says_so(text_model: Path) -> None:
    with LayerMesh(str(text_model)) as mesh:
        begun, unbegun = (mesh.stream([5, 6, 7], max_new_tokens=20, ignore_eos=True) for _ in range(2))
        next(begun)
    for stream in (begun, unbegun):
        with pytest.raises(UsageError, match="is closed"):
            next(stream)


def test_sweeps_count_the_chunks_of_a_prompt(spoilt: Path) -> None:
    with LayerMesh(str(change_config(spoilt, max_position_embeddings=1000))) as mesh:
        load_seconds = mesh.local.load_seconds
        answers = [mesh.generate([5] * num_prompt, max_new_tokens=3, ignore_eos=True) for num_prompt in (600, 5)]
        assert [answer.stream.sweeps for answer in answers] == [4, 3]
        assert {answer.timings.load_seconds for answer in answers} == {load_seconds}


@pytest.mark.parametrize("call", ["LayerMesh", "generate", "stream"])
def test_unknown_settings_are_named(call: str, mesh: LayerMesh, text_model: Path) -> None:
    calls: dict[str, Any] = {"generate": mesh.generate, "stream": mesh.stream, "LayerMesh": LayerMesh}
    with pytest.raises(TypeError, match="temprature"):
        calls[call](str(text_model), temprature=1)


@pytest.mark.parametrize("how", ["close", "leave", "forget", "never-begun"])
def test_a_stream_that_ends_early_leaves_nothing(how: str, mesh: LayerMesh) -> None:
    stream = mesh.stream([5, 6, 7], max_new_tokens=50, ignore_eos=True)
    if how != "never-begun":
        next(stream)
        assert len(mesh.local.stage._sessions) == 1
    if how in ("close", "leave"):
        if how == "close":
            stream.close()
        else:
            with stream:
                pass
        with pytest.raises(StopIteration):
            next(stream)
        assert stream.answer is None
    del stream
    gc.collect()
    assert len(mesh.local.stage._sessions) == 0
    assert len(mesh.generate([5], max_new_tokens=2).token_ids) == 2


def test_an_error_in_the_middle_leaves_the_mesh_usable(mesh: LayerMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = mesh.stream([5, 6, 7], max_new_tokens=5)
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(mesh.local.line, "outcomes", fail)
        with pytest.raises(CheckpointError, match="disk"):
            next(stream)
    assert len(mesh.local.stage._sessions) == 0
    assert len(mesh.generate([5, 6, 7], max_new_tokens=5).token_ids) == 5


def fail(_: object) -> None:
    raise CheckpointError("the disk is gone")


@pytest.mark.parametrize(
    ("prompt", "settings"),
    [
        ("", {}),
        ([], {}),
        (None, {}),
        (5, {}),
        (b"abc", {}),
        ([5, "x"], {}),
        ([True, False], {}),
        ([{"role": "user"}], {}),
        ([-1], {}),
        ([320], {}),
        ("Hi", {"max_new_tokens": 0}),
        ("Hi", {"max_new_tokens": 2.5}),
        ("Hi", {"max_new_tokens": "3"}),
        ("Hi", {"max_new_tokens": True}),
        ("Hi", {"temperature": "hot"}),
        ("Hi", {"temperature": float("inf")}),
        ("Hi", {"top_k": 1.5}),
        ("Hi", {"seed": "seven"}),
        ("Hi", {"seed": -1}),
        ("Hi", {"stop": ""}),
        ("Hi", {"stop": ["a", ""]}),
        ("Hi", {"stop": [5]}),
        ([5], {"system": "Be kind"}),
        ([{"role": "user", "content": "Hi"}], {"system": "Be kind"}),
    ],
    ids=str,
)
def test_requests_that_cannot_be_meant(prompt: Any, settings: dict[str, Any], mesh: LayerMesh) -> None:
    with pytest.raises(UsageError):
        mesh.stream(prompt, **settings)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"model": "./nowhere"}, ModelNotFoundError),
        ({"model": ""}, ModelNotFoundError),
        ({"host_memory": 0}, UsageError),
        ({"host_memory": -1}, UsageError),
        ({"host_memory": "much"}, UsageError),
        ({"host_memory": 10**400}, UsageError),
        ({"dtype": "int3"}, UsageError),
    ],
    ids=str,
)
def test_models_that_do_not_open(settings: dict[str, Any], error: type[Exception], text_model: Path) -> None:
    with pytest.raises(error):
        LayerMesh(**({"model": str(text_model), "offline": True} | settings))


def test_text_without_a_tokenizer(bare_model: Path) -> None:
    with LayerMesh(str(bare_model)) as mesh, pytest.raises(TokenizerError):
        mesh.generate("Hello")


def test_a_tokenizer_that_could_not_be_made_says_why(bare_model: Path) -> None:
    with LayerMesh(str(bare_model)) as mesh:
        mesh.local.checkpoint = replace(mesh.local.checkpoint, tokenizer_error="its merges are of an unknown kind")
        with pytest.raises(TokenizerError, match="its merges are of an unknown kind"):
            mesh.generate("Hello")
        assert mesh.generate([5], max_new_tokens=1).token_ids


def test_too_little_memory_says_how_much_would_do(text_model: Path) -> None:
    with LayerMesh(str(text_model), host_memory=100_000) as mesh, pytest.raises(BudgetError) as refused:
        mesh.generate([5, 6, 7], max_new_tokens=4)
    needed = refused.value.needed_bytes
    with LayerMesh(str(text_model), host_memory=needed) as mesh:
        assert len(mesh.generate([5, 6, 7], max_new_tokens=4).token_ids) == 4
    with LayerMesh(str(text_model), host_memory=needed - 1) as mesh, pytest.raises(BudgetError):
        mesh.generate([5, 6, 7], max_new_tokens=4)


def test_a_closed_mesh_says_so_and_leaves_no_thread(text_model: Path) -> None:
    before = threading.active_count()
    with LayerMesh(str(text_model)) as mesh:
        mesh.generate([5], max_new_tokens=2)
    mesh.close()
    assert threading.active_count() == before
    with pytest.raises(UsageError, match="is closed"):
        mesh.generate([5], max_new_tokens=2)


def test_a_path_may_be_a_path(text_model: Path) -> None:
    with LayerMesh(text_model) as mesh:  # type: ignore[arg-type]
        assert mesh.generate([5], max_new_tokens=1).token_ids


def test_the_package_has_what_it_says() -> None:
    assert set(layermesh.__all__) == {"Answer", "Finished", "LayerMesh", "Token", "__version__"}
    with pytest.raises(AttributeError, match="nonsense"):
        layermesh.nonsense  # noqa: B018


def test_an_answer_has_the_plan_and_prints_nothing(mesh: LayerMesh, capsys: pytest.CaptureFixture[str]) -> None:
    answer = mesh.generate([5], max_new_tokens=1)
    assert answer.plan.to_dict()["stages"] == mesh.local.plan(measured=False).to_dict()["stages"]
    assert capsys.readouterr() == ("", "")
