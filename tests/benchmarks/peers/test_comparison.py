"""Ratios of neighbouring runs, medians and what is printed."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.peers import comparison
from tests.benchmarks.peers.comparison import Bar, describe, judge, medians, table, take_turns, write
from tests.benchmarks.peers.contestants import Contestant
from tests.benchmarks.peers.running import Conditions, Run

BAR = Bar("ours", "theirs", "decode", least=2)


def make_run(name: str, seconds: float = 0.5, problem: str | None = None) -> Run:
    figures = {
        "load_seconds": 1.0,
        "prefill_seconds": 2.0,
        "decode_seconds_per_token": [seconds] * 4,
        "peak_rss_bytes": 5_000_000,
    }
    return Run(name, {"num_prompt": 12} | ({} if problem else figures), problem, None, "warm", 1.0, None, None)


def make_contestant(name: str) -> Contestant:
    return Contestant(name, "none", None, Path("nowhere"), num_new=5)


def test_rates_leave_the_first_token_to_the_prompt() -> None:
    run = make_run("ours", seconds=0.25)
    assert run.decode_rate == 4
    assert run.prefill_rate == 6


def test_ratio_is_the_median_of_neighbouring_runs() -> None:
    history = [[make_run("ours", 0.5), make_run("theirs", theirs)] for theirs in (1.0, 9.0, 2.0)]
    verdict = judge(BAR, history)
    assert verdict.ratios == (2, 18, 4)
    assert verdict.ratio == 4
    assert verdict.met
    assert str(verdict) == "decode: ours / theirs = 4.00 (2.00-18.00), bar 2: met"


def test_missed_bar_says_so() -> None:
    verdict = judge(BAR, [[make_run("ours", 1.0), make_run("theirs", 1.0)]])
    assert verdict.met is False
    assert str(verdict).endswith("MISSED")


def test_round_without_one_side_has_no_ratio() -> None:
    verdict = judge(BAR, [[make_run("ours"), make_run("theirs", problem="killed")], [make_run("ours")]])
    assert verdict.ratio is None
    assert verdict.met is None
    assert str(verdict) == "decode: ours / theirs: not measured (bar 2)"


def test_medians_of_some_runs_and_of_none() -> None:
    assert medians([make_run("ours", seconds) for seconds in (0.1, 0.5, 1.0)])["decode"] == pytest.approx(2)
    assert medians([]) == {"decode": None, "prefill": None, "peak_rss_bytes": None}


def test_contestants_take_turns_and_the_failed_ones_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake_run(contestant: Contestant, conditions: Conditions) -> Run:
        asked.append(contestant.name)
        return make_run(contestant.name, problem="no such option" if contestant.name == "b" else None)

    monkeypatch.setattr(comparison, "run", fake_run)
    history = take_turns([make_contestant(name) for name in "abc"], Conditions(), rounds=2)
    assert asked == ["a", "b", "c", "a", "c"]
    assert [len(runs) for runs in history] == [3, 2]


def test_table_has_a_line_for_each_contestant() -> None:
    lines = table(
        [make_contestant("ours"), make_contestant("theirs")], [[make_run("ours"), make_run("theirs", problem="killed")]]
    )
    assert [line.split() for line in lines[1:]] == [["ours", "2.00", "6.00", "5", "1"], ["theirs", "-", "-", "-", "0"]]
    assert len({len(line) for line in lines}) == 1


def test_lines_about_runs() -> None:
    assert describe(make_run("ours")) == "  ours: 2.000 tok/s, prompt 2.00 s"
    assert describe(make_run("ours", problem="exit code 1")) == "  ours: exit code 1"


def test_everything_is_written_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(comparison, "RESULTS", tmp_path)
    history = [[make_run("ours", 0.5), make_run("theirs", 1.0)]]
    write("example", Conditions(cap_bytes=7), history, [judge(BAR, history)])
    written = json.loads((tmp_path / "peers_example.json").read_text())
    assert written["conditions"]["cap_bytes"] == 7
    assert written["verdicts"][0]["ratio"] == 2
    assert written["verdicts"][0]["met"] is True
    assert written["rounds"][0][1]["decode_tokens_per_second"] == 1
    assert written["machine"]["cores"] >= 1
