"""Several who use the same workers at once get what they would get alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from layermesh import LayerMesh, local
from layermesh.coordinator.mesh_pipeline import MeshPipeline
from layermesh.shared.errors import BudgetError
from tests.mesh.meshes import PROMPT, answer_alone, ask, num_sessions, open_mesh
from tests.mesh.waiting import wait_until

pytestmark = pytest.mark.usefixtures("one_thread", "no_models_there")

NUM_CLIENTS = 8
PROMPTS = [[5 + 3 * number + step for step in range(3 + 4 * number)] for number in range(NUM_CLIENTS)]
LENGTHS = [4 + 3 * number for number in range(NUM_CLIENTS)]


@pytest.fixture(scope="module")
def alone(tiny):
    with LayerMesh(str(tiny("llama")), device="cpu", alone=True) as mesh:
        return [ask(mesh, prompt, length).token_ids for prompt, length in zip(PROMPTS, LENGTHS, strict=True)]


def test_eight_clients_at_once_get_their_own_answers(tiny, loopback, alone):
    workers = loopback.add(3)
    together = threading.Barrier(NUM_CLIENTS)

    def client(prompt, length):
        with open_mesh(tiny("llama"), workers) as mesh:
            together.wait(30)
            return [ask(mesh, prompt, length).token_ids for _ in range(2)]

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        answers = list(pool.map(client, PROMPTS, LENGTHS))
    assert answers == [[expected, expected] for expected in alone]
    wait_until(lambda: num_sessions(*workers) == 0)


def test_many_prompts_in_the_same_sweeps(tiny, loopback, alone):
    with open_mesh(tiny("llama"), loopback.add(3)) as mesh:
        each = [{"max_new_tokens": length} for length in LENGTHS]
        answers = mesh.generate_many(PROMPTS, each=each, temperature=0, ignore_eos=True)
    assert [answer.token_ids for answer in answers] == alone


def test_many_prompts_wait_for_each_other_where_a_worker_has_little_room(tiny, loopback, monkeypatch):
    """One's own sessions end by themselves: nobody waits for them as for somebody else's."""
    monkeypatch.setattr("layermesh.coordinator.worker_client.BUSY_SECONDS", 0.0)
    refused = []
    reserve = MeshPipeline._reserve

    def watching(line, session, size):
        try:
            reserve(line, session, size)
        except BudgetError as error:
            refused.append(str(error))
            raise

    monkeypatch.setattr(MeshPipeline, "_reserve", watching)
    prompts = [[3 + (7 * number + step) % 90 for step in range(200)] for number in range(4)]
    with open_mesh(tiny("llama"), loopback.add(2, budget_bytes=12_000_000)) as mesh:
        answers = mesh.generate_many(prompts, max_new_tokens=5, temperature=0, ignore_eos=True)
    assert "worker w" in refused[0]
    assert [answer.token_ids for answer in answers] == [answer_alone(tiny("llama"), prompt, 5) for prompt in prompts]


def test_a_long_prompt_goes_in_chunks_that_follow_each_other(tiny, loopback, monkeypatch):
    monkeypatch.setattr(local, "CHUNK_TOKENS", 8)
    prompt = [3 + number % 90 for number in range(50)]
    expected = answer_alone(tiny("llama"), prompt)
    with open_mesh(tiny("llama"), loopback.add(3)) as mesh:
        assert ask(mesh, prompt, 1).token_ids == expected[:1]
        under_way, most = [], []
        send, receive = mesh.local.mesh_line.route.send, mesh.local.mesh_line.route.receive

        def sending(frames, sweep, *limits):
            under_way.append(sweep)
            most.append(len(under_way))
            send(frames, sweep, *limits)

        def receiving(*arguments):
            arrival = receive(*arguments)
            under_way.pop()
            return arrival

        monkeypatch.setattr(mesh.local.mesh_line.route, "send", sending)
        monkeypatch.setattr(mesh.local.mesh_line.route, "receive", receiving)
        assert ask(mesh, prompt).token_ids == expected
        assert max(most) > 3


@pytest.mark.parametrize("how", ["closed", "dropped", "left behind"])
def test_an_answer_that_is_broken_off_leaves_nothing_on_the_workers(tiny, loopback, how):
    workers = loopback.add(2)
    with open_mesh(tiny("llama"), workers) as mesh:
        stream = mesh.stream([5, 6, 7], max_new_tokens=100, temperature=0, ignore_eos=True)
        next(stream)
        assert num_sessions(*workers) > 0
        if how == "closed":
            stream.close()
        elif how == "dropped":
            del stream
        if how != "left behind":
            assert num_sessions(*workers) == 0
            assert ask(mesh).token_ids == answer_alone(tiny("llama"))
    wait_until(lambda: num_sessions(*workers) == 0)


def test_the_workers_compute_while_a_token_is_looked_at(tiny, loopback):
    workers, num_shown = loopback.add(2), 3
    expected = answer_alone(tiny("llama"))
    with open_mesh(tiny("llama"), workers) as mesh:
        for shown in (num_shown, len(expected)):  # broken off while the next is under way, then once more to the end
            stream = mesh.stream(PROMPT, max_new_tokens=len(expected), temperature=0, ignore_eos=True)
            tokens = [next(stream).id]
            while len(tokens) < shown:
                line = mesh.local.mesh_line
                wait_until(lambda line=line: not line.route._arrivals.empty())  # of the token after those that were taken
                tokens.append(next(stream).id)
            assert tokens == expected[:shown]
            stream.close()
        assert ask(mesh).token_ids == expected
