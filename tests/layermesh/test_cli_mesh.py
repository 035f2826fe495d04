import json
import signal
import subprocess
import sys

import pytest
from terminals import child_environ

from layermesh.shared.errors import UsageError
from tests.mesh.loopback import Loopback
from tests.mesh.waiting import wait_until
from tests.mesh.worker_process import WorkerProcess

FOUND = ("--no-discovery", "--spread")
PROMPT = ("--prompt-ids", "5,6,7", "-n", "4", "--temperature", "0", "--ignore-eos")


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    with Loopback(tmp_path_factory.mktemp("stores")) as loopback:
        yield [option for worker in loopback.add(2) for option in ("--worker", worker.address)]


@pytest.fixture
def meshed(layermesh, monkeypatch):
    monkeypatch.delenv("LAYERMESH_ALONE")
    return layermesh


def test_generate_says_who_runs_what_and_answers_as_one_machine(meshed, text_model, workers):
    alone = meshed("generate", "-m", text_model, *PROMPT, "--json", "--alone", "-q")
    together = meshed("generate", "-m", text_model, *PROMPT, "--json", *FOUND, *workers)
    assert (together.exit_code, alone.exit_code) == (0, 0), together.stderr + alone.stderr
    answer = json.loads(together.stdout)
    assert answer["token_ids"] == json.loads(alone.stdout)["token_ids"]
    assert [stage["worker"] for stage in answer["plan"]["stages"]] == ["w0", "w1", "local"]
    assert [hop["worker"] for hop in answer["timings"]["hops"]] == ["w0", "w1"]
    assert answer["timings"]["network_seconds"] > 0
    assert answer["plan"]["predicted_seconds_per_token"] > 0
    assert together.stderr.startswith("2 workers: w0 0–1, w1 2–3, local the head; predicted ")


def test_many_prompts_are_answered_through_the_workers(meshed, text_model, workers, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt_ids": [5 + number, 6]}) + "\n" for number in range(5)))
    command = ("generate", "-m", text_model, "--input", prompts, "-n", "4", "--temperature", "0")
    alone, together = meshed(*command, "--alone"), meshed(*command, *FOUND, *workers)
    assert (together.exit_code, alone.exit_code) == (0, 0), together.stderr + alone.stderr
    assert answers(together.stdout) == answers(alone.stdout)
    assert len(answers(together.stdout)) == 5


def answers(lines):
    return {line["index"]: line["token_ids"] for line in map(json.loads, lines.splitlines())}


def test_plan_shows_the_machines_and_those_that_are_imagined(meshed, text_model, workers):
    plan = ("plan", "-m", text_model, *FOUND, *workers, "--what-if", "4GB,disk=2GB/s,name=attic")
    shown = meshed(*plan)
    assert shown.exit_code == 0, shown.stderr
    assert [line.split()[0] for line in shown.stdout.splitlines()[3:7]] == ["attic", "w0", "w1", "local"]
    told = json.loads(meshed(*plan, "--json").stdout)
    assert [stage["worker"] for stage in told["stages"]] == ["attic", "w0", "w1", "local"]
    assert told["workers"] == ["w0", "w1"]
    assert told["predicted_seconds_per_token"] > 0


def test_status_lists_the_workers_and_those_that_do_not_answer(meshed, workers):
    told = json.loads(meshed("status", "--no-discovery", "--json", *workers, "--worker", "127.0.0.1:1").stdout)
    by_name = {worker["name"]: worker for worker in told["workers"]}
    assert by_name.keys() == {"w0", "w1", "127.0.0.1:1"}
    assert "does not answer" in by_name["127.0.0.1:1"]["problem"]
    assert by_name["w0"]["problem"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--worker", "127.0.0.1:1"), 4, "worker 127.0.0.1:1 does not answer"),
        (("--worker", "no/address"), 2, "'no/address' is no address of a worker"),
        (("--worker", "127.0.0.1:1", "--alone"), 2, "--alone looks for no other machines"),
    ],
    ids=["nobody there", "no address", "alone with others"],
)
def test_what_cannot_be_is_said(meshed, text_model, arguments, code, said):
    result = meshed("generate", "-m", text_model, *PROMPT, "--no-discovery", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr


def test_workers_are_reached_whatever_proxy_the_environment_names(text_model, tmp_path):
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:9")
    environment = {**proxies, "LAYERMESH_ALONE": "", "LAYERMESH_HOME": str(tmp_path / "home")}
    with WorkerProcess(tmp_path) as worker:
        command = [sys.executable, "-m", "layermesh", "generate", "-m", str(text_model), *PROMPT, *FOUND]
        done = subprocess.run(
            [*command, "--worker", worker.address], env=child_environ(**environment), capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("1 worker: w0 0–")


@pytest.mark.parametrize("text", ["", "much", "8GB,disk=fast", "8GB,colour=red", "8GB,disk=0GB/s"])
def test_a_machine_that_nobody_can_imagine_is_refused(text):
    from layermesh.coordinator.planning.machines import Machine
    from layermesh.coordinator.planning.what_if import imagine
    from tests.mesh.loopback import PROFILE

    with pytest.raises(UsageError, match="--what-if takes a machine like"):
        imagine(text, 1, Machine("local", PROFILE))


def test_a_worker_serves_until_it_is_told_to_end(tmp_path):
    command = [sys.executable, "-m", "layermesh", "worker", "--port", "0", "--host", "127.0.0.1", "--no-discovery"]
    more = ["--host-memory", "200MB", "--name", "den-pc", "--store", str(tmp_path / "store")]
    said = []
    with subprocess.Popen([*command, *more], env=child_environ(), stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: said.append(process.stderr.readline()) or "Ctrl-C ends it" in said[-1] or not said[-1], 60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
            said.append(process.stderr.read())
    assert "worker den-pc at 127.0.0.1:" in "".join(said)
    assert said[-1] == "leaving …\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--host-memory", "1MB"), "of memory hold no layer of any model"),
        (("--name", "two\nlines"), "a worker's name is a short line of text"),
        (("--store-limit", "lots"), "--store-limit: "),
    ],
    ids=["memory", "name", "limit"],
)
def test_a_worker_that_cannot_be_is_refused(layermesh, arguments, said):
    result = layermesh("worker", "--port", "0", "--no-discovery", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
