"""T12: two coordinators on the same workers at the same time."""

import threading

import pytest

from layermesh.shared.errors import MeshError
from layermesh.shared.frames import Failure, Frame
from tests.architectures.tiny import build
from tests.chaos.interrupted import Interrupted
from tests.chaos.meshes import PROMPT, ask_alone, open_mesh, wait_for_all

OTHER_PROMPT = [number + 30 for number in PROMPT]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("two") / "model")


def tokens_of(mesh, prompt, num_answers):
    """Only tokens: scores are heard for one answer of a process at a time."""
    settings = {"max_new_tokens": 33, "temperature": 0, "ignore_eos": True}
    return [mesh.generate(list(prompt), **settings).token_ids for _ in range(num_answers)]


def test_each_gets_its_own_answers(model, all_there, report):
    prompts = [PROMPT, OTHER_PROMPT]
    expected = [ask_alone(model, prompt).token_ids for prompt in prompts]
    assert expected[0] != expected[1]
    num_answers = 20 if report.full else 4
    addresses = [worker.address for worker in all_there]
    got = [[], []]
    with open_mesh(model, addresses) as one, open_mesh(model, addresses) as other:
        for mesh in (one, other):
            wait_for_all(mesh, 3)

        def run(number, mesh):
            got[number] = tokens_of(mesh, prompts[number], num_answers)

        threads = [threading.Thread(target=run, args=pair) for pair in enumerate((one, other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads)
    for number in range(2):
        assert got[number] == [expected[number]] * num_answers
        report.series("T12 two coordinators").outcomes += ["own answer"] * num_answers


def test_a_frame_of_one_does_not_reach_the_session_of_the_other(model, all_there, series):
    addresses = [worker.address for worker in all_there]
    expected = ask_alone(model)
    with open_mesh(model, addresses) as one, open_mesh(model, addresses) as other:
        for mesh in (one, other):
            wait_for_all(mesh, 3)
        stranger, answering = Interrupted(other, OTHER_PROMPT), Interrupted(one)
        next_of_other = stranger.until(3)
        answering.until(3)
        assert next_of_other is None
        (session,) = one.local.line.sessions
        route = other.workers._route
        step = 3
        position = len(PROMPT) + 2
        route.send([Frame(session, 0, step, position, (7,))], sweep=10_000)
        arrivals = [route.receive(lambda: None) for _ in range(2)]  # one is of its own token, which was under way
        (arrival,) = [one for one in arrivals if isinstance(one, Failure)]
        assert isinstance(arrival.error, MeshError)
        assert "is not known on layers" in str(arrival.error)
        assert answering.finish().is_equal(expected)
    series("T12 a frame for another's session").add("refused, answer identical")
