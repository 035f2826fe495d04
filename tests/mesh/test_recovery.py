"""Workers that come to grief in the middle of an answer, which goes on as if nothing had been."""

import threading
import time

import pytest

from layermesh.coordinator.pipeline import Pipeline
from layermesh.shared import apart
from layermesh.shared.errors import BudgetError, MeshError, WorkerLostError
from layermesh.shared.spans import LayerSpan
from layermesh.worker.decode_step import DecodeStep
from layermesh.worker.stage import Stage
from tests.mesh.meshes import PROMPT, answer_alone, ask, machines, num_sessions, open_mesh, stages
from tests.mesh.waiting import wait_until

pytestmark = pytest.mark.usefixtures("one_thread", "no_models_there")

NUM_TOKENS = 24


class Interrupted:
    """An answer that something happens to after `num_tokens`."""

    def __init__(self, mesh, prompt=PROMPT, num_tokens=NUM_TOKENS):
        self.stream = mesh.stream(prompt, max_new_tokens=num_tokens, temperature=0, ignore_eos=True)

    def after(self, num_tokens, happen):
        for _ in range(num_tokens):
            next(self.stream)
        happen()
        return self.finish()

    def finish(self):
        for _ in self.stream:
            pass
        return self.stream.answer


@pytest.fixture(scope="module")
def expected(tiny):
    return answer_alone(tiny("llama"), num_tokens=NUM_TOKENS)


@pytest.mark.parametrize("number", range(3))
def test_an_answer_survives_any_worker(tiny, loopback, expected, number):
    workers, said = loopback.add(3), []
    with open_mesh(tiny("llama"), workers, tell=said.append) as mesh:
        answer = Interrupted(mesh).after(5, workers[number].stop)
        assert answer.token_ids == expected
        (failover,) = answer.failovers
        assert (failover.worker, failover.reason, failover.token) == (f"w{number}", "lost", len(PROMPT) + 4)
        assert failover.replayed_tokens == len(PROMPT) + 4
        assert failover.moved_to
        assert failover.seconds < 2
        assert any(f"w{number} went away at token 11; its layers moved to w" in sentence for sentence in said), said
        assert {*machines(answer)} == {*(worker.name for worker in workers if worker.server), "local"}
        wait_until(lambda: num_sessions(*workers) == 0)
        assert ask(mesh, num_tokens=NUM_TOKENS).token_ids == expected


def test_an_answer_survives_all_workers_and_uses_one_that_returns(tiny, loopback, expected):
    workers = loopback.add(2)
    with open_mesh(tiny("llama"), workers) as mesh:
        answering = Interrupted(mesh)
        for _ in range(4):
            next(answering.stream)
        for worker in workers:
            worker.stop()
        for _ in range(4):
            next(answering.stream)
        assert mesh.local.mesh_line is None
        workers[1].start()
        wait_until(lambda: mesh.workers.returned() == {workers[1].id})
        answer = answering.finish()
        assert answer.token_ids == expected
        assert sorted(failover.worker for failover in answer.failovers if failover.reason == "lost") == ["w0", "w1"]
        assert answer.failovers[-1].reason == "returned"
        assert answer.failovers[-1].moved_to == ("this machine",)
        assert machines(answer) == ["w1", "local"]


def test_a_worker_that_says_goodbye_hands_over_before_it_goes(tiny, loopback, expected):
    workers = loopback.add(2)
    with open_mesh(tiny("llama"), workers) as mesh:
        answering = Interrupted(mesh)
        for _ in range(3):
            next(answering.stream)
        leaving = threading.Thread(target=workers[0].stop, kwargs={"drain_seconds": 10.0})
        leaving.start()
        wait_until(lambda: mesh.local.mesh_line.leaving)
        answer = answering.finish()
        leaving.join(5)
        assert not leaving.is_alive()
        assert answer.token_ids == expected
        assert [(failover.worker, failover.reason) for failover in answer.failovers] == [("w0", "left")]


def test_only_the_lost_part_is_computed_again(tiny, loopback, expected, monkeypatch):
    """Those before and behind the one that is lost keep their layers, and what they have made."""
    workers = loopback.add(3)
    ran = []
    forward = Stage.forward
    monkeypatch.setattr(Stage, "forward", lambda stage, frames, **how: ran.append(stage.span) or forward(stage, frames, **how))
    with open_mesh(tiny("llama"), workers) as mesh:
        answering = Interrupted(mesh)
        for _ in range(5):
            next(answering.stream)
        kept = [stages(workers[number])[0].key.span for number in (0, 2)]
        before = [ran.count(span) for span in kept]
        workers[1].stop()
        next(answering.stream)
        assert [ran.count(span) for span in kept] == [count + 1 for count in before]
        answer = answering.finish()
        assert answer.token_ids == expected
        assert answer.failovers[0].replayed_tokens > 0
        assert {(stage.start, stage.end) for stage in answer.plan.stages} > {(span.start, span.end) for span in kept}


def test_a_prompt_under_way_in_several_calls_survives(tiny, loopback, monkeypatch):
    """Some of its calls have come back, some are on one machine, some on another."""
    monkeypatch.setattr("layermesh.local.CHUNK_TOKENS", 16)
    monkeypatch.setattr("layermesh.local.SMALLEST_CHUNK", 16)
    prompt = [5 + number % 40 for number in range(200)]
    expected = answer_alone(tiny("llama"), prompt)
    workers = loopback.add(3)
    killed = threading.Event()
    with open_mesh(tiny("llama"), workers) as mesh:
        forward = Stage.forward

        def failing(stage, frames, **how):
            if frames[0].step == 7 and stage.span.start and not killed.is_set():
                killed.set()
                threading.Thread(target=workers[1].stop).start()
            return forward(stage, frames, **how)

        monkeypatch.setattr(Stage, "forward", failing)
        answer = ask(mesh, prompt)
        assert killed.is_set()
        assert answer.token_ids == expected


def test_a_stage_that_hangs_is_given_up_after_its_deadline(tiny, loopback, expected, monkeypatch):
    monkeypatch.setattr("layermesh.coordinator.mesh_pipeline.LEAST_DEADLINE", 1.0)
    workers = loopback.add(2)
    going_on, hung = threading.Event(), threading.Event()
    forward = Stage.forward

    def hanging(stage, frames, **how):
        if stage.span.start and frames[0].step == 6 and not hung.is_set():
            hung.set()
            going_on.wait(30)
        return forward(stage, frames, **how)

    monkeypatch.setattr(Stage, "forward", hanging)
    with open_mesh(tiny("llama"), workers) as mesh:
        began = time.monotonic()
        answer = Interrupted(mesh).finish()
        assert time.monotonic() - began < 10
        assert answer.token_ids == expected
        (failover,) = answer.failovers
        assert (failover.worker, failover.reason) == ("w1", "lost")
        assert "have not come to an end for 1 s" in failover.why
        going_on.set()


def test_a_worker_that_runs_out_of_memory_gets_less_and_never_the_same_again(tiny, loopback, expected, monkeypatch):
    workers = loopback.add(2)
    given = []
    run = DecodeStep.run

    def starving(step, session, frame, *others):
        if step._span == LayerSpan(0, 2) and frame.step > 2:
            given.append(step)
            raise MemoryError
        return run(step, session, frame, *others)

    monkeypatch.setattr(DecodeStep, "run", starving)
    with open_mesh(tiny("llama"), workers) as mesh:
        answer = Interrupted(mesh).finish()
        assert answer.token_ids == expected
        assert {failover.reason for failover in answer.failovers} == {"starved"}
        assert len(given) == 1
        assert machines(answer) == ["w1", "local"]  # what is left of the other one holds no layer


def test_a_request_that_takes_two_workers_down_is_failed_by_name_and_the_mesh_goes_on(tiny, loopback, expected, monkeypatch):
    workers = loopback.add(3)
    victims = []
    forward = Stage.forward

    def poisoned(stage, frames, **how):
        if frames[0].step == 5 and 99 in frames[0].token_ids + tuple(stage._sessions[frames[0].session]._token_ids[0].tolist()):
            victim = next(worker for worker in workers if worker.server and stage in holders(worker))
            victims.append(victim.name)
            ended = threading.Thread(target=victim.stop)
            ended.start()
            time.sleep(0.5)
        return forward(stage, frames, **how)

    def holders(worker):
        return [live.runner._stage for live in worker.server.stages]

    monkeypatch.setattr(Stage, "forward", poisoned)
    with open_mesh(tiny("llama"), workers) as mesh:
        with pytest.raises(MeshError, match="went down one after the other with this answer"):
            Interrupted(mesh, [99, *PROMPT]).finish()
        assert len(victims) == 2
        assert ask(mesh, num_tokens=NUM_TOKENS).token_ids == expected


def test_many_answers_survive_together(tiny, loopback):
    workers = loopback.add(3)
    prompts = [[5 + number, 6, 7] for number in range(5)]
    expected = [answer_alone(tiny("llama"), prompt, NUM_TOKENS) for prompt in prompts]
    settings = {"max_new_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    answers = {}
    with open_mesh(tiny("llama"), workers) as mesh, mesh.stream_many(prompts, **settings) as stream:

        def kill():
            wait_until(lambda: stream.progress.num_tokens > 20)
            workers[1].stop()

        killing = threading.Thread(target=kill)
        killing.start()
        for finished in stream:
            assert finished.error is None
            answers[finished.index] = finished.answer
        killing.join()
        assert [answers[index].token_ids for index in range(len(prompts))] == expected
        assert all(failover.worker == "w1" for answer in answers.values() for failover in answer.failovers)
        wait_until(lambda: num_sessions(*workers) == 0)


def test_losses_before_and_in_an_answer_follow_each_other(tiny, loopback, expected, monkeypatch):
    """Epochs go on where the making of the route left off."""
    workers, once = loopback.add(3), threading.Event()
    build = Stage.__init__

    def dying(stage, *arguments, **options):
        if threading.current_thread().name == apart.NAME and not once.is_set():
            once.set()
            ending = threading.Thread(target=workers[2].stop)
            ending.start()
            time.sleep(0.3)
        build(stage, *arguments, **options)

    monkeypatch.setattr(Stage, "__init__", dying)
    with open_mesh(tiny("llama"), workers) as mesh:
        answer = Interrupted(mesh).after(5, workers[1].stop)
        assert answer.token_ids == expected
        assert [(failover.worker, failover.reason) for failover in answer.failovers] == [("w1", "lost")]


def test_a_session_for_which_nobody_has_room_takes_no_other_with_it(tiny, loopback, monkeypatch):
    """Three answers on a worker; this machine, alone, has room for two."""
    prompts = [[5 + number, 6, 7] for number in range(3)]
    expected = [answer_alone(tiny("llama"), prompt, NUM_TOKENS) for prompt in prompts]
    settings = {"max_new_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    (worker,) = loopback.add(1)
    resume = Pipeline.resume

    def cramped(line, session, past):
        if len(line.sessions) == 2:
            raise BudgetError("this", 10, 20)
        return resume(line, session, past)

    monkeypatch.setattr(Pipeline, "resume", cramped)
    answers, failed = {}, []
    with open_mesh(tiny("llama"), [worker]) as mesh, mesh.stream_many(prompts, **settings) as stream:

        def kill():
            wait_until(lambda: stream.progress.num_tokens > 12)
            worker.stop()

        killing = threading.Thread(target=kill)
        killing.start()
        for finished in stream:
            if finished.error is None:
                answers[finished.index] = finished.answer.token_ids
            else:
                failed.append(finished.error)
        killing.join()
    assert [type(error) for error in failed] == [BudgetError]
    assert all(token_ids == expected[index] for index, token_ids in answers.items())
    assert len(answers) == 2


def test_errors_of_lost_workers_name_them():
    error = WorkerLostError("worker den-pc does not answer", "id", crashed=True)
    assert (error.exit_code, error.worker, error.crashed, error.returns) == (4, "id", True, True)
