"""A worker that is paired and faulty: what it sends is looked at where it arrives, and it is named."""

import math
import re

import pytest
import torch

from layermesh.shared.frames import LayerOutput
from layermesh.shared.hidden_states import check_hidden_states
from layermesh.worker import routes
from tests.mesh.meshes import answer_alone, ask, machines, num_sessions, open_mesh
from tests.mesh.waiting import wait_until

pytestmark = pytest.mark.usefixtures("one_thread", "no_models_there")


def nan(hidden):
    hidden.view(-1)[7] = math.nan


def infinite(hidden):
    hidden.view(-1)[-1] = -math.inf


SPOILT = {
    "NaN": (nan, "not numbers"),
    "infinite": (infinite, "not numbers"),
    "a token too many": (lambda hidden: torch.cat([hidden, hidden], 1), "of shape"),
    "half the width": (lambda hidden: hidden[..., ::2], "of shape"),
    "another dtype": (lambda hidden: hidden.double(), "float64 where hidden states belong"),
}


@pytest.fixture
def spoil(monkeypatch):
    """Have the worker behind hop `number` send something else than what it computed, from its second frame on."""

    def choose(number, change):
        pack = routes.envelope_parts

        def parts(envelope):
            if envelope.hop == number + 1 and envelope.frame.step > 0:
                hidden = envelope.frame.hidden.tensors[0].clone()
                changed = change(hidden)
                object.__setattr__(envelope.frame.hidden, "tensors", (hidden if changed is None else changed,))
            return pack(envelope)

        monkeypatch.setattr(routes, "envelope_parts", parts)

    return choose


@pytest.mark.parametrize(("change", "said"), SPOILT.values(), ids=SPOILT)
def test_what_a_worker_sends_to_the_next_is_put_down_to_it(tiny, loopback, spoil, change, said):
    workers = loopback.add(2)
    with open_mesh(tiny("llama"), workers) as mesh:
        assert ask(mesh).token_ids == answer_alone(tiny("llama"))
        spoil(0, change)
        answer = ask(mesh)
        assert answer.token_ids == answer_alone(tiny("llama"))
        failover = answer.failovers[0]
        assert failover.worker == "w0"
        assert re.search(rf"worker w1: worker w0 sent .*{said}", failover.why), failover.why
        assert "w0" not in machines(answer)
        wait_until(lambda: num_sessions(*workers) == 0)


@pytest.mark.parametrize("change", [nan, infinite], ids=["NaN", "infinite"])
def test_what_the_last_worker_sends_back_is_put_down_to_it(tiny, loopback, spoil, change):
    with open_mesh(tiny("llama"), loopback.add(2)) as mesh:
        ask(mesh)
        spoil(1, change)
        answer = ask(mesh)
        assert answer.token_ids == answer_alone(tiny("llama"))
        assert answer.failovers[0].worker == "w1"
        assert re.search(r"worker w1 sent hidden states .*not numbers", answer.failovers[0].why)


def test_where_everybody_sends_nonsense_this_machine_does_without(tiny, loopback, monkeypatch):
    pack = routes.envelope_parts

    def parts(envelope):
        if envelope.frame.step > 1:
            hidden = envelope.frame.hidden.tensors[0].clone()
            nan(hidden)
            object.__setattr__(envelope.frame.hidden, "tensors", (hidden,))
        return pack(envelope)

    monkeypatch.setattr(routes, "envelope_parts", parts)
    with open_mesh(tiny("llama"), loopback.add(3)) as mesh:
        answer = ask(mesh)
        assert (answer.token_ids, machines(answer)) == (answer_alone(tiny("llama")), ["local"])
        assert len(answer.failovers) == 3


def test_a_worker_that_cannot_pack_what_it_made_says_so_and_another_takes_over(tiny, loopback, monkeypatch):
    workers, broken = loopback.add(2), []
    pack = routes.envelope_parts

    def parts(envelope):
        if envelope.hop == 1 and envelope.frame.step == 2 and len(broken) < 2:
            broken.append(envelope)
            raise RuntimeError("made up")
        return pack(envelope)

    monkeypatch.setattr(routes, "envelope_parts", parts)
    with open_mesh(tiny("llama"), workers) as mesh:
        answer = ask(mesh)
        assert answer.token_ids == answer_alone(tiny("llama"))
        assert ["RuntimeError: made up" in failover.why for failover in answer.failovers] == [True, True]


def test_looking_costs_little():
    """How long it takes, tests.benchmarks.hidden_states says. Here: that nothing is copied for it."""
    output = LayerOutput((torch.zeros(1, 1, 4096),), bare=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        check_hidden_states(output, 1, 4096, "llama")
    assert sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages()) < 1024
