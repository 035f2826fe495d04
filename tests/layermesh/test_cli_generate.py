import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_checkpoints import CONTEXT, change_config
from click.testing import Result
from terminals import child_environ

from layermesh import __version__

Run = Callable[..., Result]
ANSWER_KEYS = {
    "text", "token_ids", "prompt_tokens", "finish_reason", "seed", "model", "plan", "memory", "stream", "timings",
    "failovers",
}  # fmt: skip


def answer(result: Result) -> dict:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_text_is_all_there_is_on_stdout(layermesh: Run, text_model: Path) -> None:
    as_text = layermesh("generate", "-m", text_model, "Hello", "-n", 12)
    as_json = answer(layermesh("generate", "-m", text_model, "Hello", "-n", 12, "--json"))
    assert as_text.exit_code == 0
    assert as_text.stdout == as_json["text"] + "\n" * (not as_json["text"].endswith("\n"))
    assert as_text.stderr.count("\n") == 1
    assert "12 tokens" in as_text.stderr
    assert "\x1b" not in as_text.stderr


def test_json_is_one_object_with_everything(layermesh: Run, text_model: Path) -> None:
    given = answer(layermesh("generate", "-m", text_model, "Hello", "-n", 6, "--json", "--host-memory", "2GB"))
    assert set(given) == ANSWER_KEYS
    assert len(given["token_ids"]) == 6
    assert given["finish_reason"] == "length"
    assert given["model"] == str(text_model)
    assert given["memory"]["host_budget_bytes"] == 2 * 10**9
    assert set(given["memory"]) == {
        "device_peak_bytes", "host_peak_bytes", "device_budget_bytes", "host_budget_bytes",
    }  # fmt: skip
    (stage,) = given["plan"]["stages"]
    assert {"worker", "start", "end", "resident_bytes", "streamed_bytes"} <= set(stage)
    assert (stage["start"], stage["end"]) == (0, 4)
    assert {"bytes_per_token", "disk_bytes", "disk_seconds"} <= set(given["stream"])
    assert {"load_seconds", "time_to_first_token_seconds", "decode_tokens_per_second"} <= set(given["timings"])


def test_a_small_budget_streams_and_answers_the_same(layermesh: Run, text_model: Path) -> None:
    command = ("generate", "-m", text_model, "Hello", "-n", 6, "--json")
    refused = layermesh(*command, "--host-memory", "1MB")
    assert refused.exit_code == 6
    enough = refused.stderr.split("--host-memory ")[1].strip().rstrip(".")
    tight, roomy = answer(layermesh(*command, "--host-memory", enough)), answer(layermesh(*command))
    assert tight["token_ids"] == roomy["token_ids"]
    assert tight["plan"]["stages"][0]["streamed_bytes"] > 0
    assert tight["stream"]["bytes_per_token"] > roomy["stream"]["bytes_per_token"]


def test_token_ids_need_no_tokenizer(layermesh: Run, bare_model: Path) -> None:
    given = answer(layermesh("generate", "-m", bare_model, "--prompt-ids", "5, 6,7", "-n", 4, "--json"))
    assert (given["text"], given["prompt_tokens"], len(given["token_ids"])) == ("", 3, 4)
    assert layermesh("generate", "-m", bare_model, "--prompt-ids", "5,6,7", "-n", 4).stdout == ""


@pytest.mark.parametrize("arguments", [(), ("-",)], ids=["left-out", "dash"])
def test_the_prompt_may_come_from_stdin(arguments: tuple[str, ...], layermesh: Run, text_model: Path) -> None:
    command = ("generate", "-m", text_model, "-n", 4, "--json")
    given = layermesh(*command, "Grüße", "-q")
    piped = layermesh(*command, *arguments, "-q", stdin="Grüße\n".encode())
    assert answer(piped)["token_ids"] == answer(given)["token_ids"]


def test_the_same_seed_gives_the_same_text(layermesh: Run, text_model: Path) -> None:
    def text(*arguments: str) -> str:
        command = ("generate", "-m", text_model, "Hello", "-n", 20, "--temperature", "1", "--ignore-eos")
        return layermesh(*command, *arguments).stdout

    assert text("--seed", "7") == text("--seed", "7") != text("--seed", "8")


def test_the_seed_that_was_drawn_gives_the_same_again(layermesh: Run, text_model: Path) -> None:
    command = ("generate", "-m", text_model, "Hello", "-n", 10, "--temperature", "1", "--json")
    first = answer(layermesh(*command))
    assert answer(layermesh(*command, "--seed", first["seed"]))["token_ids"] == first["token_ids"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--top-k", "1"), ("--top-p", "0"), ("--min-p", "1"), ("--temperature", "0"), ("--temperature", "0.00001")],
)
def test_each_way_to_take_the_likeliest_token(flag: str, value: str, layermesh: Run, text_model: Path) -> None:
    command = ("generate", "-m", text_model, "Hello", "-n", 8, "--json", "--seed", 3)
    drawn = answer(layermesh(*command, "--temperature", "1", flag, value))
    assert drawn["token_ids"] == answer(layermesh(*command))["token_ids"]


def test_a_repetition_penalty_changes_what_is_said(layermesh: Run, text_model: Path) -> None:
    command = ("generate", "-m", text_model, "Hello", "-n", 40, "--json", "--ignore-eos")
    plain, varied = answer(layermesh(*command)), answer(layermesh(*command, "--repetition-penalty", "50"))
    assert len(set(varied["token_ids"])) > len(set(plain["token_ids"]))


def test_an_answer_ends_before_a_stop_string(layermesh: Run, text_model: Path) -> None:
    command = ("generate", "-m", text_model, "Hello", "-n", 30, "--json", "--ignore-eos")
    whole = answer(layermesh(*command))["text"]
    stop = whole[5:7]
    stopped = answer(layermesh(*command, "--stop", "never said", "--stop", stop))
    assert stopped["text"] == whole[: whole.index(stop)]
    assert stopped["finish_reason"] == "stop"


def test_ignore_eos_goes_on_to_the_limit(layermesh: Run, spoilt: Path) -> None:
    command = ("generate", "-m", spoilt, "--prompt-ids", "5,6", "-n", 20, "--json")
    third = answer(layermesh(*command))["token_ids"][2]
    change_config(spoilt, eos_token_id=third)
    ended, whole = answer(layermesh(*command)), answer(layermesh(*command, "--ignore-eos"))
    assert ended["finish_reason"] == "stop"
    assert ended["token_ids"] == whole["token_ids"][: whole["token_ids"].index(third) + 1]
    assert (whole["finish_reason"], len(whole["token_ids"])) == ("length", 20)


def test_raw_leaves_the_chat_template_out(layermesh: Run, text_model: Path) -> None:
    command = ("generate", "-m", text_model, "Hello", "-n", 1, "--json")
    assert answer(layermesh(*command, "--raw"))["prompt_tokens"] == len("Hello")
    assert answer(layermesh(*command))["prompt_tokens"] == len("Hello") + 3
    assert answer(layermesh(*command, "--system", "Be kind"))["prompt_tokens"] == len("HelloBe kind") + 5


def test_the_summary_says_only_what_is_so(layermesh: Run, text_model: Path) -> None:
    command = ("generate", "-m", text_model, "Hello", "-n", 6)
    greedy = layermesh(*command, "--temperature", "0").stderr
    assert "from disk" not in greedy
    assert "seed" not in greedy
    assert "seed 7" in layermesh(*command, "--temperature", "1", "--seed", "7").stderr
    refused = layermesh(*command, "--host-memory", "1MB").stderr
    assert "from disk" in layermesh(*command, "--host-memory", refused.split("--host-memory ")[1].strip().rstrip(".")).stderr


def test_an_answer_that_memory_cuts_says_so(layermesh: Run, spoilt: Path) -> None:
    change_config(spoilt, max_position_embeddings=4096)
    command = ("generate", "-m", spoilt, "--prompt-ids", "5,6", "--ignore-eos")
    refused = layermesh(*command, "-n", 128, "--host-memory", "10kB").stderr
    enough = refused.split("--host-memory ")[1].strip().rstrip(".")
    result = layermesh(*command, "--host-memory", enough)
    assert result.exit_code == 0
    assert "128 tokens, cut to 128 tokens by the memory allowed" in result.stderr


def test_the_context_is_the_end(layermesh: Run, text_model: Path) -> None:
    result = layermesh("generate", "-m", text_model, "x" * 240, "--ignore-eos")
    assert result.exit_code == 0
    assert f"cut off at the model's context of {CONTEXT}" in result.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes(dtype: str, layermesh: Run, text_model: Path) -> None:
    result = layermesh("generate", "-m", text_model, "Hello", "-n", 3, "--dtype", dtype, "--device", "cpu", "--json")
    assert len(answer(result)["token_ids"]) == 3


def test_alone_and_quiet(layermesh: Run, text_model: Path) -> None:
    command = ("generate", "-m", text_model, "Hello", "-n", 3, "--alone", "--offline")
    result = layermesh(*command, "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == layermesh(*command).stdout


def test_settings_come_from_the_environment(layermesh: Run, text_model: Path) -> None:
    environ = {
        "MODEL": text_model, "HOST_MEMORY": "1GB", "DEVICE": "cpu", "DTYPE": "float32", "OFFLINE": "1",
        "TEMPERATURE": "1", "TOP_P": "0.9", "TOP_K": "20", "MIN_P": "0.01", "REPETITION_PENALTY": "1.1", "SEED": "5",
        "MAX_NEW_TOKENS": "7", "DEVICE_MEMORY": "3GB",
    }  # fmt: skip
    by_environ = layermesh("generate", "Hello", "--json", **{f"LAYERMESH_{k}": str(v) for k, v in environ.items()})
    flags = [text for k, v in environ.items() if k != "OFFLINE" for text in (f"--{k.lower().replace('_', '-')}", v)]
    by_flags = answer(layermesh("generate", "Hello", "--json", "--offline", *flags))
    assert answer(by_environ)["token_ids"] == by_flags["token_ids"]
    assert (len(by_flags["token_ids"]), by_flags["seed"]) == (7, 5)
    assert by_flags["memory"]["host_budget_bytes"] == 10**9


def test_a_flag_is_stronger_than_the_environment(layermesh: Run, text_model: Path) -> None:
    result = layermesh("generate", "-m", text_model, "Hi", "-n", 2, "--json", LAYERMESH_MAX_NEW_TOKENS="5")
    assert len(answer(result)["token_ids"]) == 2


def test_the_version_and_the_help(layermesh: Run) -> None:
    assert layermesh("--version").stdout == f"layermesh {__version__}\n"
    assert "generate" in layermesh("--help").stdout
    assert "--host-memory" in layermesh("generate", "-h").stdout


STREAMS = {
    "closed-stdout": ("{} >&-", 0, ""),
    "full-stdout": ("{} >/dev/full", 6, "No space left on device"),
    "closed-stderr": ("{} 2>&-", 0, ""),
    "no-reader": ("{} | true; exit ${{PIPESTATUS[0]}}", 1, ""),
    "ascii": ("PYTHONIOENCODING=ascii {} | cat", 0, ""),
}


@pytest.mark.parametrize(("line", "code", "said"), STREAMS.values(), ids=STREAMS)
def test_streams_that_are_not_what_they_should_be(line: str, code: int, said: str, tmp_path: Path) -> None:
    # `ls --json` is quick and writes to stdout as every command does.
    command = line.format(f"{sys.executable} -m layermesh ls --json")
    environ = child_environ(LAYERMESH_HOME=str(tmp_path), HF_HUB_CACHE=str(tmp_path / "hub"))
    done = subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_text_that_stdout_cannot_encode_and_a_closed_stdin(text_model: Path) -> None:
    command = [sys.executable, "-m", "layermesh", "generate", "-m", text_model, "-n", "8", "--ignore-eos", "--json"]
    environ = child_environ(PYTHONIOENCODING="ascii")
    done = subprocess.run([*command, "Hello"], env=environ, capture_output=True, check=True, stdin=None)
    assert json.loads(done.stdout.decode("ascii"))["text"] != ""
    refused = subprocess.run(
        ["bash", "-c", '"$@" <&-', "bash", *map(str, command)], env=environ, capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: the prompt is empty")
