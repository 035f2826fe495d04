"""R1: kill -9 of any worker at any moment, and the answer is the same to the bit."""

from contextlib import ExitStack

import pytest

from tests.architectures.tiny import build
from tests.chaos.kills import Kill, at_call, at_load
from tests.chaos.meshes import NUM_TOKENS, PROMPT, Heard, answers, ask, ask_alone, open_mesh, wait_for_all
from tests.chaos.report import percentile
from tests.chaos.trials import NUM_WORKERS, Trial, plan
from tests.shared.packing.packs import build_llama

RECOVERY_SECONDS = 2.0
LONG_PROMPT = [5 + number % 40 for number in range(192)]
SECONDS = {"decode": 0.01, "prefill": 0.01, "load": 0.2, "again": 0.2, "transfer": 0.05}  # about what a step takes


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Models, prompts, and what one machine says of each; the weights of the second are several chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("layermesh.local.CHUNK_TOKENS", 16)
        small = build("llama", tmp_path_factory.mktemp("small") / "model")
        large = build_llama(tmp_path_factory.mktemp("large") / "model", layers=4, vocab=4000, hidden=1024)
        yield {
            "small": (small, PROMPT, ask_alone(small)),
            "prompt": (small, LONG_PROMPT, ask_alone(small, LONG_PROMPT)),
            "large": (large, PROMPT, ask_alone(large)),
        }


@pytest.fixture(scope="module")
def run(cases, three):
    """Run one trial; return what came, how long the answer stood still, and whether the moment was missed."""
    addresses = [worker.address for worker in three]
    small, large = cases["small"][0], cases["large"][0]
    with open_mesh(small, addresses) as on_small, open_mesh(large, addresses) as on_large:

        def run(trial: Trial) -> tuple[Heard, float, bool]:
            for worker in three:
                if not worker.is_running:
                    worker.end()
                    worker.start()
            case = {"transfer": "large", "prefill": "prompt"}.get(trial.moment, "small")
            mesh, (_, prompt, _) = (on_large if case == "large" else on_small), cases[case]
            victim = three[trial.victim]
            get_ready(trial, mesh, victim)
            return carry_out(trial, mesh, three, prompt)

        yield run


def get_ready(trial, mesh, victim):
    """Have everybody there, with what this trial needs not to be there yet."""
    wait_for_all(mesh, NUM_WORKERS)
    if trial.moment in ("load", "transfer"):
        ask(mesh, PROMPT, 2)
        victim.end()
        if trial.moment == "transfer":
            victim.forget()
        victim.start()
        wait_for_all(mesh, NUM_WORKERS)


def carry_out(trial, mesh, workers, prompt):
    victim, heard = workers[trial.victim], Heard()
    kill = Kill(victim, trial.share * SECONDS[trial.moment])
    first, third = (Kill(workers[(trial.victim + step) % NUM_WORKERS], 0.0) for step in (1, 2))
    with ExitStack() as moment:
        if trial.moment == "prefill":
            moment.enter_context(at_call(trial.at, kill.pull))
        if trial.moment in ("load", "transfer"):
            moment.enter_context(at_load(victim, kill, trial.at))
        for num_tokens in answers(mesh, heard, prompt):
            if num_tokens == trial.at and trial.moment == "decode":
                kill.pull()
            if num_tokens == trial.at and trial.moment == "again":
                moment.enter_context(at_load(victim, kill))
                if trial.at % 2:  # whoever is given more; there may be nobody left then
                    moment.enter_context(at_load(workers[(trial.victim + 2) % NUM_WORKERS], third))
                first.pull()
    kill.settle()
    third.settle()
    struck = kill.at if first.at is None else first.at
    assert struck is not None, "nothing was killed"
    return heard, heard.gap_after(struck), kill.is_late or (kill.at is None and third.at is None)


def test_every_answer_survives_kill_minus_nine(run, cases, report, capsys):
    trials = plan(report.seed, full=report.full)
    everything = report.series("R1 kill -9")
    bad = []
    for trial in trials:
        case = {"transfer": "large", "prefill": "prompt"}.get(trial.moment, "small")
        try:
            heard, seconds, is_late = run(trial)
            outcome = "identical" if heard.is_equal(cases[case][2]) else "different"
        except Exception as error:
            outcome, seconds, is_late = f"failed ({type(error).__name__}: {error})"[:200], None, False
        everything.add(outcome, seconds)
        report.series(f"R1 {trial.moment}").add(outcome + " (after it)" * is_late, seconds)
        if outcome != "identical":
            bad.append(f"{trial}: {outcome}")
        with capsys.disabled():
            print(f"{trial}: {outcome}" + ("" if seconds is None else f", stood still for {seconds:.2f} s"), flush=True)
    assert not bad, f"seed {report.seed}: {bad}"
    assert len(trials) >= (200 if report.full else 10)
    assert percentile(everything.seconds, 0.95) <= RECOVERY_SECONDS
    assert all(len(known.token_ids) == NUM_TOKENS for _, _, known in cases.values())
