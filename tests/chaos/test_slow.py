"""R4: a worker that is slow, or the way to it, is not given up; the answer is the same, and the division follows."""

import signal
import threading
import time
from contextlib import contextmanager

import pytest

from tests.architectures.tiny import build
from tests.chaos.links import links
from tests.chaos.meshes import ask, ask_alone, open_mesh, wait_for_all
from tests.shared.packing.packs import build_llama

pytestmark = pytest.mark.slow
NUM_TOKENS, FEW_TOKENS = 33, 12
AWAKE_SECONDS, ASLEEP_SECONDS = 0.002, 0.008  # shorter than a sweep
MOST_REQUESTS = 3


@contextmanager
def fifth_of_a_processor(worker):
    """Let a process run a fifth of the time."""
    done = threading.Event()

    def pace():
        while not done.is_set():
            worker.command.send(signal.SIGSTOP)
            time.sleep(ASLEEP_SECONDS)  # this is what makes it slow
            worker.command.send(signal.SIGCONT)
            time.sleep(AWAKE_SECONDS)

    pacing = threading.Thread(target=pace)
    pacing.start()
    try:
        yield
    finally:
        done.set()
        pacing.join()
        worker.thaw()


def layers(mesh, name):
    """How many layers a worker has."""
    return sum(stage.end - stage.start for stage in mesh.local.remote_stages if stage.worker == name)


def test_a_worker_with_a_fifth_of_a_processor_gets_fewer_layers(tmp_path, all_there, series):
    model = build_llama(tmp_path / "model", layers=12, hidden=1024)
    expected = ask_alone(model, num_tokens=NUM_TOKENS)
    with open_mesh(model, [worker.address for worker in all_there], spread=False) as mesh:
        wait_for_all(mesh, 3)
        assert ask(mesh, num_tokens=NUM_TOKENS).is_equal(expected)
        (slow, *_) = sorted(all_there, key=lambda worker: -layers(mesh, worker.name))
        shares = [layers(mesh, slow.name)]
        with fifth_of_a_processor(slow):
            for _ in range(MOST_REQUESTS + 1):
                heard = ask(mesh, num_tokens=NUM_TOKENS)
                assert heard.is_equal(expected)
                assert heard.answer.failovers == ()
                shares.append(layers(mesh, slow.name))
    series("R4 a fifth of a processor").add(f"identical, not given up, layers {shares}")
    assert shares[-1] < shares[0], shares


@pytest.mark.parametrize(("rate", "delay"), [(10e6 / 8, 0.0), (0.0, 0.2)], ids=["10 Mbit", "200 ms"])
def test_a_slow_way_is_no_reason_to_give_a_worker_up(tmp_path, all_there, rate, delay, series):
    model = build("llama", tmp_path / "model")
    prompt = [5 + number % 40 for number in range(100)]
    expected = ask_alone(model, prompt, FEW_TOKENS)
    with links([worker.port for worker in all_there]) as ways:
        ways[1].rate, ways[1].delay = rate, delay
        with open_mesh(model, [way.address for way in ways]) as mesh:
            wait_for_all(mesh, 3)
            for _ in range(2):
                heard = ask(mesh, prompt, FEW_TOKENS)
                assert heard.is_equal(expected)
                assert heard.answer.failovers == ()
                assert [stage.worker for stage in mesh.local.remote_stages] == ["w0", "w1", "w2"]
    series("R4 a slow way").add(f"identical, not given up ({'10 Mbit' if rate else '200 ms'})")
