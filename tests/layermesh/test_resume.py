"""Answers that are interrupted, and go on."""

import os
import signal
import subprocess
import sys

import pytest

from layermesh import LayerMesh
from layermesh.coordinator.journal import Journal
from layermesh.journals import MOST_JOURNALS, journals_folder, new_journal, old_journal
from layermesh.shared.errors import BudgetError, UsageError
from tests.running import wait_until

SETTINGS = {"max_new_tokens": 20, "ignore_eos": True, "seed": 7}
SAMPLED = {**SETTINGS, "temperature": 1.0, "repetition_penalty": 1.2}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("settings", [SETTINGS, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("num_tokens", [1, 9])
def test_an_answer_goes_on_with_the_same_tokens(tiny, tmp_path, settings, num_tokens):
    path = tmp_path / "answer.journal"
    with LayerMesh(str(tiny("llama")), device="cpu", alone=True) as mesh:
        expected = mesh.generate([5, 6, 7], **settings)
        with mesh.stream([5, 6, 7], journal=path, **settings) as stream:
            for _ in range(num_tokens):
                next(stream)
        assert path.is_file()
    with LayerMesh(str(tiny("llama")), device="cpu", alone=True) as mesh:
        stream = mesh.resume(path)
        assert [token.id for token in stream] == expected.token_ids
        assert not stream.differs
        assert stream.answer.seed == expected.seed
    assert not path.exists()


def test_an_answer_that_was_whole_already_gets_no_token_more(tiny, tmp_path):
    """The process ended after the last token was written, before the journal was removed."""
    path = tmp_path / "answer.journal"
    with LayerMesh(str(tiny("llama")), device="cpu", alone=True) as mesh:
        stream = mesh.stream([5, 6, 7], journal=path, **SETTINGS)
        tokens = [next(stream).id for _ in range(19)]
        expected = mesh.generate([5, 6, 7], **SETTINGS).token_ids
        stream.close()
        with Journal(path) as journal:
            journal.add(expected[-1])
        resumed = mesh.resume(path)
        assert [token.id for token in resumed] == [*tokens, expected[-1]] == expected
        assert resumed.answer.finish_reason == "length"


def test_a_prompt_for_which_there_is_no_memory_leaves_no_journal(tiny, tmp_path):
    path = tmp_path / "answer.journal"
    with LayerMesh(str(tiny("llama")), device="cpu", alone=True) as mesh:
        mesh.local.stage.allow(1000)
        with pytest.raises(BudgetError):
            next(mesh.stream([5, 6, 7], journal=path, **SETTINGS))
        assert not mesh.local.line.sessions
    assert not path.exists()


def test_an_answer_of_another_model_does_not_go_on(tiny, tmp_path):
    path = tmp_path / "answer.journal"
    with LayerMesh(str(tiny("llama")), device="cpu", alone=True) as mesh:
        next(mesh.stream([5, 6, 7], journal=path, **SETTINGS))
    with LayerMesh(str(tiny("mistral")), device="cpu", alone=True) as mesh, pytest.raises(UsageError, match="has an answer of"):
        mesh.resume(path)
    assert path.is_file()


def layermesh(*arguments):
    command = [sys.executable, "-m", "layermesh", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def generate(*arguments):
    return layermesh("generate", *arguments, "--device", "cpu", "--alone", "--json")


def test_a_killed_process_is_taken_up_where_it_was(tiny):
    asked = ["-m", str(tiny("llama")), "--prompt-ids", "5,6,7", "-n", "200", "--ignore-eos", "--temperature", "0"]
    expected = generate(*asked).communicate(timeout=60)[0]
    process = generate(*asked)
    wait_until(lambda: any(path.stat().st_size > 400 for path in journals_folder().glob("*.journal")), 60)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (journal,) = journals_folder().glob("*.journal")
    stdout, stderr = generate("--resume", journal.stem).communicate(timeout=60)
    assert token_ids(stdout) == token_ids(expected), stderr
    assert not journal.exists()
    process = generate("--resume")
    assert "no answer was interrupted" in process.communicate(timeout=60)[1]
    assert process.returncode == 2


def token_ids(stdout):
    return stdout.partition('"token_ids": ')[2].partition("]")[0]


def test_an_interrupt_says_how_to_go_on(tiny):
    asked = ["-m", str(tiny("llama")), "--prompt-ids", "5,6,7", "-n", "240", "--ignore-eos"]
    process = layermesh("generate", *asked, "--device", "cpu", "--alone")
    wait_until(lambda: any(path.stat().st_size > 300 for path in journals_folder().glob("*.journal")), 60)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    (journal,) = journals_folder().glob("*.journal")
    assert f"`layermesh generate --resume {journal.stem}` goes on from there" in stderr
    assert process.returncode == 130


def test_settings_do_not_go_with_an_answer_that_has_begun():
    process = generate("--resume", "--temperature", "0.5")
    assert "goes on with the prompt and the settings that it began with" in process.communicate(timeout=60)[1]
    assert process.returncode == 2


def raise_it(error):
    raise error


def test_old_journals_make_room_and_those_in_use_stay():
    held = []
    for _ in range(MOST_JOURNALS + 3):
        with new_journal(raise_it) as path:
            path.write_bytes(b"x")
            held.append(path)
    assert sum(path.exists() for path in held) == MOST_JOURNALS
    with old_journal(None) as newest, pytest.raises(UsageError, match="by another process"), old_journal(newest.stem):
        pass
    with pytest.raises(UsageError, match="eight letters and digits"), old_journal("../../etc/passwd"):
        pass
