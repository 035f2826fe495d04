import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_checkpoints import copied
from click.testing import Result
from terminals import Screen, child_environ, in_terminal

from layermesh import LayerMesh
from tests.running import wait_until

Run = Callable[..., Result]
KEYS = {"id", "index", "request", "text", "token_ids", "prompt_tokens", "finish_reason", "seed", "model"}
LINES: list[Any] = [
    {"id": "a", "prompt": "Hello", "max_new_tokens": 9},
    "Hello",
    {"id": 7, "messages": [{"role": "user", "content": "Grüße"}], "stop": ["never said", "nor this"]},
    {"prompt_ids": [5, 6, 7], "temperature": 1, "seed": 3, "top_k": 40, "ignore_eos": True},
    {"prompt": "Hello", "raw": True, "system": None, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1},
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", LINES)


def write(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    content = path.read_text()
    assert content == "" or content.endswith("\n")
    return sorted(map(json.loads, content.splitlines()), key=lambda line: line["index"])


def command(model: Path, prompts: Path, *more: str | Path | int) -> tuple[str | Path | int, ...]:
    return ("generate", "-m", model, "--input", prompts, "-n", 6, "--temperature", 0, "--seed", 11, *more)


def test_each_line_is_answered_as_alone(layermesh: Run, text_model: Path, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    result = layermesh(*command(text_model, prompts, "--output", output))
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert result.stderr.startswith("[5 of 5 prompts, 33 tokens, ")
    answers = read(output)
    assert [set(answer) for answer in answers] == [KEYS] * 5
    assert [(answer["id"], answer["index"]) for answer in answers] == [("a", 0), (None, 1), (7, 2), (None, 3), (None, 4)]
    with LayerMesh(str(text_model)) as mesh:
        for line, answer in zip(LINES, answers, strict=True):
            given = {"prompt": line} if isinstance(line, str) else dict(line)
            given.pop("id", None)
            prompt = next(given.pop(name) for name in ("prompt", "messages", "prompt_ids") if name in given)
            alone = mesh.generate(prompt, **({"max_new_tokens": 6, "temperature": 0} | given))
            assert {
                name: alone[name] for name in ("text", "token_ids", "prompt_tokens", "finish_reason")
            }.items() <= answer.items()
    assert answers[3]["seed"] == 3


@pytest.mark.parametrize("arguments", [(), ("--output", "-")], ids=["left out", "dash"])
def test_answers_go_to_stdout(arguments: tuple[str, ...], layermesh: Run, text_model: Path, prompts: Path) -> None:
    result = layermesh(*command(text_model, prompts, *arguments, "-q"))
    assert (result.exit_code, result.stderr) == (0, "")
    assert sorted(json.loads(line)["index"] for line in result.stdout.splitlines()) == [0, 1, 2, 3, 4]


def test_prompts_come_from_stdin(layermesh: Run, text_model: Path) -> None:
    result = layermesh(*command(text_model, Path("-"), "-q"), stdin="\ufeff\n" + json.dumps("Grüße") + "\r\n\n[not")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "standard input, line 4: not JSON" in result.stderr
    result = layermesh(*command(text_model, Path("-"), "-q"), stdin="\ufeff\n" + json.dumps("Grüße") + "\r\n\n")
    assert json.loads(result.stdout)["prompt_tokens"] == 3 + len("Grüße".encode())


def test_sessions_bound_how_many_share_a_sweep(layermesh: Run, text_model: Path, prompts: Path) -> None:
    one = layermesh(*command(text_model, prompts, "--sessions", 1, "-q")).stdout.splitlines()
    assert [json.loads(line)["index"] for line in one] == [0, 1, 2, 3, 4]
    many = layermesh(*command(text_model, prompts, "-q")).stdout.splitlines()
    assert sorted(many) == sorted(one)
    assert json.loads(many[-1])["index"] == 0  # the longest


BAD_LINES = {
    "not JSON": ("{", "not JSON"),
    "a key twice": ('{"prompt": "a", "prompt": "b"}', "'prompt' stands there twice"),
    "a stop that is no Unicode": (r'{"prompt": "a", "stop": "\ud800"}', "stop is a text"),
    "a number": ("5", 'an object with a "prompt"'),
    "a list": ("[1]", 'an object with a "prompt"'),
    "deep": ("[" * 100_000, "not JSON"),
    "NaN": ('{"prompt": "x", "temperature": NaN}', "NaN is no number"),
    "no prompt": ('{"id": 1}', "one of prompt, messages and prompt_ids, not none of them"),
    "two prompts": ('{"prompt": "x", "prompt_ids": [1]}', "not prompt and prompt_ids"),
    "a prompt that is none": ('{"prompt": 5}', "a prompt is a text, not 5"),
    "an empty prompt": ('{"prompt": " "}', "the prompt is empty"),
    "an empty text": ('""', "the prompt is empty"),
    "no messages": ('{"messages": []}', "a conversation is a list"),
    "half a message": ('{"messages": [{"role": "user"}]}', "message 0 must be"),
    "no ids": ('{"prompt_ids": []}', "prompt_ids is a list of token ids"),
    "ids of text": ('{"prompt_ids": ["5"]}', "prompt_ids is a list of token ids"),
    "negative ids": ('{"prompt_ids": [-5]}', "prompt_ids is a list of token ids"),
    "unknown key": ('{"prompt": "x", "max_tokens": 5}', "a line has no max_tokens; it has id, prompt,"),
    "an id that is none": ('{"prompt": "x", "id": [1]}', "an id is a text or a whole number"),
    "an id of truth": ('{"prompt": "x", "id": true}', "an id is a text or a whole number"),
    "the same id": ('{"prompt": "x", "id": "first"}', "the id 'first' is that of line 1 too"),
    "no length": ('{"prompt": "x", "max_new_tokens": 0}', "at least one"),
    "a length of text": ('{"prompt": "x", "max_new_tokens": "5"}', "whole number of tokens"),
    "hot": ('{"prompt": "x", "temperature": "hot"}', "temperature must be"),
    "negative top_k": ('{"prompt": "x", "top_k": -1}', "top_k must be a whole number"),
    "half a seed": ('{"prompt": "x", "seed": 0.5}', "seed must be a whole number"),
    "an empty stop": ('{"prompt": "x", "stop": ""}', "stop is a text or a list of texts"),
    "stop of numbers": ('{"prompt": "x", "stop": [5]}', "stop is a text or a list of texts"),
    "system of numbers": ('{"prompt": "x", "system": 5}', "system is a text"),
    "raw of numbers": ('{"prompt": "x", "raw": 1}', "raw is true or false"),
    "ignore_eos of text": ('{"prompt": "x", "ignore_eos": "yes"}', "ignore_eos is true or false"),
    "system with ids": ('{"prompt_ids": [5], "system": "Be kind"}', "not with prompt_ids"),
    "system with raw text": ('{"prompt": "x", "system": "Be kind", "raw": true}', "not with raw text"),
}


@pytest.mark.parametrize(("line", "said"), BAD_LINES.values(), ids=BAD_LINES)
def test_lines_that_cannot_be_meant(line: str, said: str, layermesh: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hi", "id": "first"}\n\n' + line + "\n")
    result = layermesh("generate", "-m", "./nowhere", "--input", path)  # it is said before the model is looked for
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {path}, line 3: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_system_flag_needs_texts(layermesh: Run, prompts: Path) -> None:
    result = layermesh("generate", "-m", "./nowhere", "--input", prompts, "--system", "Be kind")
    assert result.exit_code == 2
    assert "line 3: a system message goes with a text in a chat template, not with messages" in result.stderr


FLAGS = {
    "prompt": (("Hi", "--input", "{prompts}"), "a prompt or --input, not both"),
    "ids": (("--prompt-ids", "5", "--input", "{prompts}"), "a prompt or --input, not both"),
    "output alone": (("Hi", "--output", "x.jsonl"), "--output and --sessions are for many prompts"),
    "sessions alone": (("Hi", "--sessions", "2"), "--output and --sessions are for many prompts"),
    "no session": (("--input", "{prompts}", "--sessions", "0"), "at least one session"),
    "no input": (("--input", "{folder}/nowhere.jsonl"), "nowhere.jsonl cannot be read: No such file"),
    "a folder": (("--input", "{folder}"), "cannot be read: Is a directory"),
    "output in no folder": (("--input", "{prompts}", "--output", "{folder}/no/where"), "cannot be written: No such file"),
    "output is a folder": (("--input", "{prompts}", "--output", "{folder}"), "cannot be written: Is a directory"),
    "output is the input": (("--input", "{prompts}", "--output", "{prompts}"), "was not written by layermesh: see its line 1"),
    "nul": (("--input", "a\0b"), "cannot be read"),
}


@pytest.mark.parametrize(("arguments", "said"), FLAGS.values(), ids=FLAGS)
def test_flags_that_cannot_be_meant(arguments: tuple[str, ...], said: str, layermesh: Run, prompts: Path) -> None:
    before = prompts.read_bytes()
    given = [argument.format(prompts=prompts, folder=prompts.parent) for argument in arguments]
    result = layermesh("generate", "-m", "./nowhere", *given)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert prompts.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b" \n\n", b"caf\xe9\n"], ids=["empty", "blank", "no UTF-8"])
def test_files_without_prompts(content: bytes, layermesh: Run, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    result = layermesh("generate", "-m", "./nowhere", "--input", path)
    assert result.exit_code == 2
    assert ("has no prompts" if content.isascii() else "line 1: not UTF-8 text at byte 3") in result.stderr


def test_a_prompt_without_an_answer_has_a_line_that_says_why(layermesh: Run, text_model: Path, tmp_path: Path) -> None:
    lines: list[Any] = ["Hello", {"id": "long", "prompt": "x" * 400}, {"prompt_ids": [999]}, "you"]
    output = tmp_path / "answers.jsonl"
    run = command(text_model, write(tmp_path / "prompts.jsonl", lines), "--output", output)
    result = layermesh(*run)
    assert result.exit_code == 1
    assert "2 of 4 prompts got no answer; their lines say why. The same command tries them again." in result.stderr
    first = read(output)
    assert [set(line) == KEYS for line in first] == [True, False, False, True]
    assert set(first[1]) == {"id", "index", "request", "error"}
    assert "takes at most 256" in first[1]["error"]
    assert "token ids run from 0 to 319" in first[2]["error"]
    assert layermesh(*run).exit_code == 1
    assert read(output) == first
    assert layermesh(*command(text_model, tmp_path / "prompts.jsonl")).exit_code == 1


def test_a_prompt_that_never_fits_takes_no_other_with_it(layermesh: Run, text_model: Path, tmp_path: Path) -> None:
    refused = layermesh("generate", "-m", text_model, "Hello", "-n", 6, "--host-memory", "10kB").stderr
    enough = refused.split("--host-memory ")[1].strip().rstrip(".")
    lines = ["Hello", {"prompt": "Hello", "max_new_tokens": 240}, "Hello"]
    path = write(tmp_path / "prompts.jsonl", lines)
    result = layermesh(*command(text_model, path, "--host-memory", enough))
    answers = sorted(map(json.loads, result.stdout.splitlines()), key=lambda line: line["index"])
    assert result.exit_code == 1
    assert ["error" in answer for answer in answers] == [False, True, False]
    assert "--host-memory" in answers[1]["error"]
    # What it says would do does.
    enough = answers[1]["error"].split("--host-memory ")[1].rstrip(".")
    assert layermesh(*command(text_model, path, "--host-memory", enough)).exit_code == 0


def test_finished_answers_are_not_made_again(layermesh: Run, text_model: Path, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    run = command(text_model, prompts, "--output", output)
    assert layermesh(*run).exit_code == 0
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (
        b"",
        lines[0],
        lines[0] + lines[1][:40],
        lines[0] + lines[1][:3],
        lines[0] + lines[1][:-1],
        b"".join(lines[:4]),
    ):
        output.write_bytes(kept)
        result = layermesh(*run)
        assert result.exit_code == 0
        assert sorted(output.read_bytes().splitlines()) == sorted(whole.splitlines())
        assert output.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert "4 were done before" in result.stderr
    done = layermesh("generate", "-m", "./nowhere", *run[3:])  # not even the model is opened
    assert (done.exit_code, done.stderr) == (0, f"[all 5 prompts have their answer in {output}]\n")
    assert list(tmp_path.glob("*.part")) == []


def test_errors_are_tried_again_with_more_memory(layermesh: Run, text_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    output.touch(mode=0o600)
    run = command(text_model, write(tmp_path / "prompts.jsonl", ["Hello", "you"]), "--output", output)
    assert layermesh(*run, "--host-memory", "10kB").exit_code == 1
    assert ["error" in line for line in read(output)] == [True, True]
    assert layermesh(*run).exit_code == 0
    assert ["error" in line for line in read(output)] == [False, False]
    assert output.stat().st_mode & 0o777 == 0o600


CHANGES: dict[str, tuple[Callable[[list[Any]], Any], tuple[str, ...], str]] = {
    "another prompt": (lambda lines: lines.__setitem__(0, "Bye"), (), "line 1 is not for prompt 0 as it is now"),
    "fewer prompts": (lambda lines: lines.pop(), (), "is not for prompt 1 as it is now"),
    "an id": (lambda lines: lines.__setitem__(0, {"prompt": "Hello", "id": 1}), (), "is not for prompt 0 as it is now"),
    "a setting": (lambda _: None, ("--top-k", "3"), "is not for prompt 0 as it is now"),
    "nothing": (lambda _: None, (), ""),
}


@pytest.mark.parametrize(("change", "more", "said"), CHANGES.values(), ids=CHANGES)
def test_answers_to_something_else_are_left_alone(
    change: Callable[[list[Any]], Any], more: tuple[str, ...], said: str, layermesh: Run, text_model: Path, tmp_path: Path
) -> None:
    path, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    lines: list[Any] = ["Hello", "you"]
    layermesh(*command(text_model, write(path, lines), "--output", output))
    before = output.read_bytes()
    change(lines)
    result = layermesh(*command(text_model, write(path, lines), "--output", output, *more))
    assert result.exit_code == (2 if said else 0)
    assert said in result.stderr
    assert output.read_bytes() == before


def test_answers_of_another_model_are_left_alone(layermesh: Run, text_model: Path, tmp_path: Path) -> None:
    path, output = write(tmp_path / "prompts.jsonl", ["Hello", "x" * 400]), tmp_path / "answers.jsonl"
    layermesh(*command(text_model, path, "--output", output))
    before = output.read_bytes()
    result = layermesh(*command(copied(text_model, tmp_path / "other"), path, "--output", output))
    assert result.exit_code == 2
    assert f"has answers of {text_model}, and this is {tmp_path / 'other'}. Give another --output" in result.stderr
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"notes", b"{}\n", b'{"id": 1}\n', b'{"id": 1', b'{"index": 0, "request": 5}\n', b"\xff\n"]
)
def test_what_layermesh_did_not_write_is_left_alone(content: bytes, layermesh: Run, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    output.write_bytes(content)
    result = layermesh("generate", "-m", "./nowhere", "--input", prompts, "--output", output)
    assert result.exit_code == (3 if content == b'{"id": 1' else 2)  # that may be one of ours, cut off
    assert ("was not written by layermesh" in result.stderr) == (result.exit_code == 2)
    assert output.read_bytes() == content


def test_two_do_not_write_the_same_file(layermesh: Run, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    with output.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = layermesh("generate", "-m", "./nowhere", "--input", prompts, "--output", output)
    assert result.exit_code == 2
    assert f"another layermesh is writing {output}" in result.stderr


def test_a_full_disk_is_said(layermesh: Run, text_model: Path, prompts: Path) -> None:
    result = layermesh(*command(text_model, prompts, "--output", "/dev/full"))
    assert result.exit_code == 6
    assert "No space left on device" in result.stderr
    assert layermesh(*command(text_model, prompts, "--output", "/dev/null")).exit_code == 0


@pytest.fixture
def long_prompts(tmp_path: Path) -> Path:
    lines = [{"id": index, "prompt": "Hello"[: 1 + index % 5], "max_new_tokens": 10 + 5 * (index % 7)} for index in range(40)]
    return write(tmp_path / "prompts.jsonl", lines)


def long_command(model: Path, prompts: Path, output: Path) -> tuple[str | Path | int, ...]:
    return command(model, prompts, "--output", output, "--ignore-eos", "--sessions", 4)


def stop_in_the_middle(arguments: tuple[str | Path | int, ...], output: Path, number: int, signal_: int) -> tuple[int, str]:
    """Run layermesh until there are `number` lines in `output`, end it, and return its exit status and what it said."""
    line = [sys.executable, "-m", "layermesh", *map(str, arguments)]
    process = subprocess.Popen(line, env=child_environ(), stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: num_lines(output) >= number, 60)
        process.send_signal(signal_)
        said = process.communicate(timeout=10)[1]
        return process.returncode, said
    finally:
        process.kill()
        process.communicate()


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_in_the_middle_it_goes_on_with_the_same_answers(
    layermesh: Run, text_model: Path, long_prompts: Path, tmp_path: Path, one_thread: None
) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    run = long_command(text_model, long_prompts, output)
    for number in (5, 15):
        code, _ = stop_in_the_middle(run, output, number, signal.SIGKILL)
        assert code == -signal.SIGKILL
        with output.open("ab") as file:  # what a kill in the middle of a write leaves
            file.write(b'{"id": 39, "ind')
    num_done = num_lines(output)
    assert 15 <= num_done < 40
    result = layermesh(*run)
    assert result.exit_code == 0
    assert f"{num_done} were done before" in result.stderr
    assert layermesh(*long_command(text_model, long_prompts, whole)).exit_code == 0
    assert read(output) == read(whole)


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_it_says_how_far_it_came(signal_: int, text_model: Path, long_prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    code, said = stop_in_the_middle(long_command(text_model, long_prompts, output), output, 3, signal_)
    assert code == 130
    done = len(read(output))
    assert 3 <= done < 40
    tail = "of 40 done; the same command goes on from there]\nerror: interrupted\n"
    assert said in (f"[{done} {tail}", f"[{done - 1} {tail}")  # the last line may have just been written


def test_a_terminal_shows_a_bar_and_keeps_only_the_summary(text_model: Path, long_prompts: Path, tmp_path: Path) -> None:
    arguments = [*command(text_model, long_prompts, "--output", tmp_path / "answers.jsonl"), "--ignore-eos"]
    with in_terminal(*map(str, arguments)) as terminal:
        terminal.read_until(lambda: "aboard" in terminal.output)
        assert terminal.end(60) == 0
    assert "/40, " in terminal.output
    screen = Screen()
    screen.feed(terminal.output)
    assert screen.text.startswith("[40 of 40 prompts, ")
    assert "aboard" not in screen.text
