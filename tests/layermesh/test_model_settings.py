"""What the files of a model say about its answers: settings, templates, lengths."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_checkpoints import CONTEXT, add_tokenizer, change_config
from click.testing import Result
from transformers import AutoModelForCausalLM

from layermesh import LayerMesh
from layermesh.shared.errors import CheckpointError, UsageError

Run = Callable[..., Result]
PROMPT = [5, 200, 31, 7, 7, 31]
NUM_TOKENS = 16
ENDS = [300, 301]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def says(folder: Path, **settings: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def theirs(folder: Path, prompt: list[int] = PROMPT, **settings: Any) -> list[int]:
    model, ids = AutoModelForCausalLM.from_pretrained(folder).eval(), torch.tensor([prompt])
    with torch.inference_mode():
        return model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **settings)[0, len(prompt) :].tolist()


SETTINGS: dict[str, Any] = {
    "greedy": {
        "suppress_tokens": list(range(1, 320, 3)), "no_repeat_ngram_size": 2, "min_new_tokens": 12, "eos_token_id": ENDS,
        "forced_eos_token_id": 300,
    },
    "sampled": {
        "do_sample": True, "top_h": 0.8, "typical_p": 0.9, "suppress_tokens": list(range(0, 320, 3)), "eos_token_id": ENDS,
        "watermarking_config": {"bias": 2.0}, "repetition_penalty": 1.3,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_hold_alone_among_others_and_when_an_answer_goes_on(spoilt: Path, tmp_path: Path, name: str) -> None:
    says(spoilt, **SETTINGS[name])
    torch.manual_seed(7)
    expected = theirs(spoilt, max_new_tokens=NUM_TOKENS)
    settings: Any = {"max_new_tokens": NUM_TOKENS, "seed": 7}
    with LayerMesh(str(spoilt), device="cpu", fast_path=False) as mesh:
        assert mesh.generate(PROMPT, **settings).token_ids == expected
        assert [answer.token_ids for answer in mesh.generate_many([PROMPT, [9], PROMPT], **settings)][::2] == [expected] * 2
        with mesh.stream(PROMPT, journal=tmp_path / "answer.journal", **settings) as stream:
            begun = [next(stream).id for _ in range(5)]
    says(spoilt)
    with LayerMesh(str(spoilt), device="cpu", fast_path=False) as mesh:
        assert [token.id for token in mesh.resume(tmp_path / "answer.journal")] == expected
        assert mesh.generate(PROMPT, **settings).token_ids != expected
    assert begun == expected[:5]


def test_older_models_say_it_in_config_json(spoilt: Path) -> None:
    change_config(spoilt, suppress_tokens=list(range(0, 320, 3)), no_repeat_ngram_size=2, min_length=3)
    (spoilt / "generation_config.json").unlink()
    expected = theirs(spoilt, max_new_tokens=NUM_TOKENS)
    with LayerMesh(str(spoilt), device="cpu", fast_path=False) as mesh:
        assert mesh.generate(PROMPT, max_new_tokens=NUM_TOKENS, ignore_eos=True).token_ids == expected
    assert not any(id_ % 3 == 0 for id_ in expected)


@pytest.mark.parametrize(
    ("said", "asked", "length"),
    [
        ({"max_new_tokens": 6}, None, 6),
        ({"max_length": 10}, None, 4),
        ({"max_new_tokens": 6, "max_length": 10}, None, 6),
        ({"max_new_tokens": 6}, 8, 8),
        ({"max_length": 10}, 8, 8),
    ],
    ids=["new", "in all", "both", "a caller's before new", "a caller's before all"],
)
def test_the_length_of_an_answer(spoilt: Path, said: dict[str, int], asked: int | None, length: int) -> None:
    with LayerMesh(str(says(spoilt, **said)), device="cpu") as mesh:
        assert len(mesh.generate(PROMPT, max_new_tokens=asked, ignore_eos=True).token_ids) == length


def test_a_prompt_as_long_as_the_file_allows_says_what_to_set(spoilt: Path) -> None:
    with (
        LayerMesh(str(says(spoilt, max_length=6)), device="cpu") as mesh,
        pytest.raises(UsageError, match=r"allows 6.*--max-new-tokens"),
    ):
        mesh.generate(PROMPT)


def test_stop_strings_of_the_model(spoilt: Path) -> None:
    add_tokenizer(spoilt)
    with LayerMesh(str(spoilt), device="cpu") as mesh:
        whole = mesh.generate("Hello", max_new_tokens=20, ignore_eos=True)
    stop = whole.text[5:7]
    says(spoilt, stop_strings=[stop])
    with LayerMesh(str(spoilt), device="cpu") as mesh:
        assert mesh.generate("Hello", max_new_tokens=20).text == whole.text[: whole.text.index(stop)]
        assert mesh.generate("Hello", max_new_tokens=20, ignore_eos=True).text == whole.text
        assert mesh.generate("Hello", max_new_tokens=20, stop="never said").text == whole.text


def test_a_special_token_is_a_stop_string_too(spoilt: Path) -> None:
    add_tokenizer(spoilt)
    with LayerMesh(str(spoilt), device="cpu") as mesh:
        end = mesh.local.tokenizer.token_id("<|user|>")
        says(spoilt, forced_eos_token_id=end)
    with LayerMesh(str(spoilt), device="cpu") as mesh:
        answers = [mesh.generate("Hello", max_new_tokens=4, stop=stop, ignore_eos=True) for stop in ("never", "<|user|>")]
    assert [answer.finish_reason for answer in answers] == ["length", "stop"]


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"suppress_tokens": 5}, "suppress_tokens must be a list of token ids, not 5"),
        ({"bad_words_ids": [[320]]}, "bad_words_ids has token id 320"),
        ({"max_new_tokens": "many"}, "max_new_tokens must be"),
        ({"eos_token_id": "2"}, "eos_token_id must be"),
        ({"stop_strings": 5}, "stop_strings must be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_meant_names_file_and_setting(spoilt: Path, said: dict[str, Any], named: str) -> None:
    with LayerMesh(str(says(spoilt, **said)), device="cpu") as mesh, pytest.raises(CheckpointError, match=named) as caught:
        mesh.generate(PROMPT)
    assert "generation_config.json" in str(caught.value)


def test_what_is_not_applied_is_named_once(layermesh: Run, spoilt: Path, tmp_path: Path) -> None:
    says(spoilt, num_beams=4, chat_format="raw")
    command = ("generate", "-m", spoilt, "--prompt-ids", "5,6", "-n", 2)
    result = layermesh(*command)
    assert result.stderr.count("num_beams 4 of generation_config.json is not applied") == 1
    assert result.stderr.count("chat_format") == 1
    assert "num_beams" not in layermesh(*command, "-q").stderr
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"prompt_ids": [5]}\n{"prompt_ids": [6]}\n')
    assert layermesh("generate", "-m", spoilt, "--input", lines, "-n", 2).stderr.count("num_beams") == 1


def test_python_logs_what_is_not_applied(spoilt: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    with LayerMesh(str(says(spoilt, num_beams=4)), device="cpu", tell=told.append) as mesh:
        mesh.generate(PROMPT, max_new_tokens=1)
        mesh.generate(PROMPT, max_new_tokens=1)
    assert len(told) == 1
    assert "num_beams" in told[0]
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "layermesh"), LayerMesh(str(spoilt), device="cpu") as mesh:
        mesh.generate(PROMPT, max_new_tokens=1)
    assert ["num_beams" in record.getMessage() for record in caplog.records] == [True]


NAMED = [
    {"name": "rag", "template": "{{ messages[0].content }}{{ mood }}"},
    {"name": "tool_use", "template": "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}"},
]


@pytest.fixture
def named(spoilt: Path) -> Path:
    """A model with two chat templates, neither of them the default."""
    add_tokenizer(spoilt, chat_template=None)
    path = spoilt / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": NAMED}))
    return spoilt


def num_prompt(result: Result) -> int:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["prompt_tokens"]


def test_a_template_is_chosen_on_the_command_line(layermesh: Run, named: Path, tmp_path: Path) -> None:
    command = ("generate", "-m", named, "Hello", "-n", 1, "--json")
    refused = layermesh(*command)
    assert refused.exit_code == 2
    assert "rag, tool_use" in refused.stderr
    assert "--chat-template rag" in refused.stderr
    assert num_prompt(layermesh(*command, "--raw")) == 5
    assert num_prompt(layermesh("generate", "-m", named, "--prompt-ids", "5", "-n", 1, "--json")) == 1
    assert num_prompt(layermesh(*command, "--chat-template", "rag", "--template-arg", "mood=good")) == 9
    file = tmp_path / "own.jinja"
    file.write_bytes(b"\xef\xbb\xbf{{ messages[0].content }}\r\n!")
    assert num_prompt(layermesh(*command, "--chat-template", file)) == 7
    for wrong in ("rga", tmp_path / "none.jinja", "--template-arg=mood", "--template-arg=mood=True"):
        flags = [wrong] if str(wrong).startswith("--") else ["--chat-template", wrong]
        assert layermesh(*command, *flags).exit_code == 2


def test_lines_of_a_file_choose_for_themselves(layermesh: Run, named: Path, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": "Hello", "chat_template": "rag"},
        {"prompt": "Hello", "chat_template": "rag", "chat_template_kwargs": {"mood": 12}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], "tools": [{}]},
        {"messages": [{"role": "user", "content": "Hello", "name": "bob"}], "chat_template": "rag"},
        {"prompt": "Hello", "raw": True, "chat_template_kwargs": None},
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = layermesh("generate", "-m", named, "--input", path, "-n", 1, "--template-arg", "mood=good")
    assert result.exit_code == 0, result.stderr
    answers = {answer["index"]: answer["prompt_tokens"] for answer in map(json.loads, result.stdout.splitlines())}
    assert [answers[index] for index in range(5)] == [9, 7, 9, 9, 5]
    assert result.stderr.count("does not read mood") == 1
    for line in (
        '{"prompt": "a", "raw": true}',
        '{"prompt_ids": [5]}',
        '{"prompt": "a", "tools": 5}',
        '{"prompt": "a", "tool": []}',
    ):
        path.write_text(line + "\n")
        assert layermesh("generate", "-m", named, "--input", path, "--template-arg", "mood=good").exit_code == 2


def test_python_gives_the_template_its_variables(spoilt: Path) -> None:
    add_tokenizer(spoilt, chat_template="{{ messages[0].content }}{% if not enable_thinking | default(true) %}<no>{% endif %}")
    with LayerMesh(str(spoilt), device="cpu") as mesh:
        lengths = [
            mesh.generate("Hi", max_new_tokens=1, chat_template_kwargs=given).prompt_tokens
            for given in (None, {"enable_thinking": True}, {"enable_thinking": False})
        ]
    assert lengths == [2, 2, 6]


PLAIN = "one\ntwo é\n"
FORMS = {
    "a mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "returns": PLAIN.replace("\n", "\r\n").encode(),
    "returns alone": PLAIN.replace("\n", "\r").encode(),
    "a mark and returns": b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode(),
    "UTF-16, little end first": b"\xff\xfe" + PLAIN.replace("\n", "\r\n").encode("utf-16-le"),
    "UTF-16, big end first": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "UTF-32": PLAIN.encode("utf-32"),
}


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS)
def test_a_text_of_any_editor_is_the_same_prompt(layermesh: Run, text_model: Path, tmp_path: Path, content: bytes) -> None:
    command = ("generate", "-m", text_model, "-n", 1, "--json")
    assert num_prompt(layermesh(*command, stdin=content)) == num_prompt(layermesh(*command, stdin=PLAIN.encode()))
    path = tmp_path / "lines.jsonl"
    lines = content.decode("utf-8-sig") if content[:1] in b"\xefo" else None
    if lines is not None:  # the same as a file of lines, each of which is a JSON text
        path.write_bytes(content.replace(b"one", b'"one"').replace("two é".encode(), b'"two"'))
        result = layermesh("generate", "-m", text_model, "-n", 1, "--input", path)
        assert len(result.stdout.splitlines()) == 2, result.stderr


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"a\nb\0c", "line 2: a NUL"), ("a\r\n".encode("utf-16-le"), "a NUL"), (b"a\nb\xff", "line 2: not UTF-8"),
     (b"\xff\xfea", "not UTF-16"), (b"\xef\xbb\xbf", "the prompt is empty")],
    ids=["a NUL", "UTF-16 without a mark", "another code", "half a character", "only a mark"],
)  # fmt: skip
def test_a_file_that_is_no_text_is_refused(layermesh: Run, text_model: Path, content: bytes, why: str) -> None:
    result = layermesh("generate", "-m", text_model, stdin=content)
    assert result.exit_code == 2
    assert why in result.stderr


def test_an_argument_stays_as_it_is(layermesh: Run, text_model: Path) -> None:
    command = ("generate", "-m", text_model, "-n", 1, "--raw", "--json")
    assert num_prompt(layermesh(*command, "a\r\nb")) == 4
    assert num_prompt(layermesh(*command, "\ufeffa")) == 4


def test_yarn_makes_the_context_longer(spoilt: Path) -> None:
    change_config(spoilt, max_position_embeddings=64, rope_scaling=YARN, rope_parameters=None)
    prompt = [(7 * i) % 300 + 3 for i in range(100)]
    with LayerMesh(str(spoilt), device="cpu", fast_path=False) as mesh:
        assert mesh.local.context_length == 256
        assert mesh.generate(prompt, max_new_tokens=8, ignore_eos=True).token_ids == theirs(spoilt, prompt, max_new_tokens=8)
        with pytest.raises(UsageError, match=r"at most 256.*--context"):
            mesh.generate([5] * 256)


def test_a_context_of_the_users_own(layermesh: Run, text_model: Path) -> None:
    command = ("generate", "-m", text_model, "--prompt-ids", ",".join(["5"] * 40), "-n", 300, "--ignore-eos", "--json")
    assert len(json.loads(layermesh(*command).stdout)["token_ids"]) == CONTEXT - 40
    result = layermesh(*command, "--context", 60)
    assert len(json.loads(result.stdout)["token_ids"]) == 20
    assert "the model's context of 60" in result.stderr
    result = layermesh(*command, LAYERMESH_CONTEXT="300")
    assert len(json.loads(result.stdout)["token_ids"]) == 260
    assert f"made for {CONTEXT} tokens" in result.stderr
    assert "takes at most 30" in layermesh(*command, "--context", 30).stderr
    assert layermesh(*command, "--context", 0).exit_code == 2
