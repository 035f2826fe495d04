"""What is to be done about workers that come to grief: examples, then thousands of histories."""

import os

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from layermesh.coordinator.recovery.decisions import (
    MOST_BARREN,
    MOST_LOSSES,
    Call,
    Condemn,
    GiveUp,
    Left,
    Lost,
    Passed,
    Rebuild,
    Returned,
    Standing,
    Starved,
    decide,
)
from layermesh.shared.frames import SessionId

NUM_HISTORIES = int(os.environ.get("LAYERMESH_HISTORIES", "150"))
ONE, OTHER = Call(SessionId("s"), 4), Call(SessionId("t"), 9)


def after(*events, standing=Standing()):  # noqa: B008 - it is frozen
    instructions = ()
    for event in events:
        standing, instructions = decide(standing, event)
    return standing, instructions


def test_a_worker_that_is_lost_is_planned_without_until_it_returns():
    standing, instructions = after(Lost("den", frozenset({ONE})))
    assert instructions == (Rebuild(1, frozenset({"den"})),)
    assert standing.awaited == {"den"}
    standing, instructions = after(Returned("den"), standing=standing)
    assert instructions == (Rebuild(2),)
    assert after(Returned("den"), standing=standing)[1] == ()


def test_one_that_is_lost_again_and_again_is_not_waited_for():
    standing, _ = after(*[Lost("den"), Passed(ONE), Returned("den")] * (MOST_LOSSES - 1), Lost("den"))
    assert standing.awaited == frozenset()
    assert after(Returned("den"), standing=standing)[1] == ()


def test_one_that_hangs_is_not_waited_for():
    assert after(Lost("den", returns=False))[0].awaited == frozenset()


def test_a_goodbye_is_no_loss_and_whoever_said_it_may_return():
    standing, instructions = after(Left("den"))
    assert instructions == (Rebuild(1, frozenset({"den"})),)
    assert standing.awaited == {"den"}


def test_a_worker_that_starves_is_given_less_each_time():
    standing, (order,) = after(Starved("den", 1000))
    assert order == Rebuild(1, frozenset(), {"den": 800})
    standing, (order,) = after(Starved("den", 900), standing=standing)  # it was given more than that all the same
    assert order.caps == {"den": 640}


def test_a_call_that_takes_two_workers_down_alone_is_condemned():
    _, instructions = after(Lost("den", frozenset({ONE, OTHER}), crashed=True), Lost("attic", frozenset({ONE}), crashed=True))
    assert instructions == (Condemn(ONE, frozenset({"den", "attic"})), Rebuild(2, frozenset({"den", "attic"})))


def test_of_several_calls_none_is_condemned_but_they_are_suspects():
    both = frozenset({ONE, OTHER})
    standing, instructions = after(Lost("den", both, crashed=True), Lost("attic", both, crashed=True))
    assert instructions == (Rebuild(2, frozenset({"den", "attic"})),)
    assert standing.suspects.keys() == both


def test_silence_and_calls_that_have_passed_since_condemn_nobody():
    silent, crashed = Lost("den", frozenset({ONE})), Lost("attic", frozenset({ONE}), crashed=True)
    assert not any(isinstance(instruction, Condemn) for instruction in after(silent, crashed)[1])
    again = Lost("den", frozenset({ONE}), crashed=True)
    assert not any(isinstance(instruction, Condemn) for instruction in after(crashed, Passed(ONE), again)[1])


def test_all_of_many_workers_may_go_away_at_once():
    _, (order,) = after(*[Lost(str(number)) for number in range(3 * MOST_BARREN)])
    assert len(order.without) == 3 * MOST_BARREN


def test_what_never_gets_anywhere_is_given_up():
    *before, last = [after(*[Lost("")] * number)[1] for number in range(1, MOST_BARREN + 2)]
    assert all(isinstance(instruction, Rebuild) for (instruction,) in before)
    assert last == (GiveUp(MOST_BARREN),)
    assert isinstance(after(*[Lost("")] * MOST_BARREN, Passed(ONE), Lost(""))[1][0], Rebuild)


WORKERS = st.sampled_from(["attic", "den", "desk", "hall"])
CALLS = st.builds(Call, st.sampled_from([SessionId("s"), SessionId("t")]), st.integers(0, 3))


class Histories(RuleBasedStateMachine):
    """Whatever happens in whatever order, what is decided makes sense."""

    def __init__(self):
        super().__init__()
        self.standing = Standing()
        self.last = Rebuild()
        self.crashed: dict[Call, set[str]] = {}
        self.num_barren = 0

    def happen(self, event, *, is_first=False):
        before = self.standing
        self.standing, instructions = decide(before, event)
        assert len([one for one in instructions if not isinstance(one, Condemn)]) <= 1
        for instruction in instructions:
            if isinstance(instruction, Rebuild):
                assert instruction.epoch > self.last.epoch
                assert instruction == self.standing.rebuild()
                self.last = instruction
            if isinstance(instruction, GiveUp):
                assert self.num_barren >= MOST_BARREN
        if instructions and not is_first:
            self.num_barren += 1
        return instructions

    @rule(worker=WORKERS, calls=st.frozensets(CALLS, max_size=3), crashed=st.booleans(), returns=st.booleans())
    def lose(self, worker, calls, crashed, returns):
        before = {call: set(workers) for call, workers in self.crashed.items()}
        if crashed:
            for call in calls:
                self.crashed.setdefault(call, set()).add(worker)
        is_first = worker not in self.standing.losses
        instructions = self.happen(Lost(worker, calls, crashed, returns), is_first=is_first)
        assert worker in self.last.without or isinstance(instructions[-1], GiveUp)
        for condemned in (one for one in instructions if isinstance(one, Condemn)):
            assert calls == {condemned.call}
            assert len(self.crashed[condemned.call]) > 1, before
            del self.crashed[condemned.call]
        assert not crashed or len(calls) != 1 or all(len(self.crashed.get(call, ())) < 2 for call in calls)

    @rule(calls=st.frozensets(CALLS, max_size=3))
    def lose_somebody(self, calls):
        self.happen(Lost("", calls))
        assert "" not in self.last.without

    @rule(worker=WORKERS, num_bytes=st.integers(1, 10**9))
    def starve(self, worker, num_bytes):
        known = self.standing.caps.get(worker, num_bytes)
        self.happen(Starved(worker, num_bytes))
        assert self.standing.caps[worker] < min(known, num_bytes) or known == 0

    @rule(worker=WORKERS)
    def leave(self, worker):
        self.happen(Left(worker), is_first=worker not in self.standing.away)
        assert worker in self.standing.away

    @precondition(lambda self: self.standing.away)
    @rule(data=st.data())
    def come_back(self, data):
        worker = data.draw(st.sampled_from(sorted(self.standing.away)))
        may = worker in self.standing.awaited
        instructions = self.happen(Returned(worker))
        assert bool(instructions) == may
        assert (worker in self.standing.away) != may

    @rule(call=CALLS)
    def pass_by(self, call):
        self.crashed.pop(call, None)
        assert self.happen(Passed(call)) == ()
        self.num_barren = 0

    @invariant()
    def whoever_is_waited_for_is_away(self):
        assert self.standing.awaited <= self.standing.away
        assert self.standing.suspects == {call: frozenset(workers) for call, workers in self.crashed.items()}


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=NUM_HISTORIES, stateful_step_count=20, deadline=None)
