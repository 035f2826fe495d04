import json

import pytest

from layermesh.cli_status import format_workers, one_line, workers_to_dict
from layermesh.coordinator.worker_info import RunningInfo, StoredInfo, WorkerInfo
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.spans import LayerSpan

CPU = MachineProfile(8_000_000_000, 0, 0.0, 2.1e9, {"float32": 3e10, "int4": 2e10}, 4e11, "cpu")
CARD = MachineProfile(4_000_000_000, 12_000_000_000, 12e9, 5e8, {"float16": 2.5e11}, 1e13, "card")
DESK = WorkerInfo("a1", "desk", "192.168.1.5:50700", 1, "0.1.0", "cpu, 8 threads", CPU, last_seen_seconds=0.2)
DEN = WorkerInfo(
    "b2", "den-pc", "[fe80::1%eth0]:50701", 1, "0.1.0", "GTX 1650", CARD,
    running=(
        RunningInfo("llama-70b", LayerSpan(10, 48), 4_000_000_000, 8_000_000_000, 0.31, 2),
        RunningInfo("tiny", LayerSpan(0, 1), 1_000_000, 0),
    ),
    stored=(StoredInfo("llama-70b", 12_000_000_000),), last_seen_seconds=42.0,
)  # fmt: skip
LOST = WorkerInfo("", "10.0.0.9:50700", "10.0.0.9:50700", problem="it does not answer. Is `layermesh worker` running there?")

TABLE = """\
worker          address               device          memory                disk      weights          seen
desk            192.168.1.5:50700     cpu, 8 threads  8.00GB                2.10GB/s  20.0GB/s int4    now
den-pc          [fe80::1%eth0]:50701  GTX 1650        4.00GB + 12.0GB host  500MB/s   250GB/s float16  42 s ago
  runs     llama-70b layers 10–47: 4.00GB in memory, 8.00GB streamed, 310 ms per token, 2 sessions
  runs     tiny layer 0: 1.00MB in memory
  holds    llama-70b (12.0GB)
10.0.0.9:50700  10.0.0.9:50700        –               –                     –         –                –
  problem  it does not answer. Is `layermesh worker` running there?"""


def test_the_table_says_who_is_there_and_what_they_do() -> None:
    assert format_workers([DESK, DEN, LOST]) == TABLE


def test_without_workers_it_says_what_to_do() -> None:
    assert "layermesh worker" in format_workers([])


def test_what_workers_call_themselves_is_harmless() -> None:
    evil = "\x1b[2J\r\nroot  127.0.0.1\t\u202e" + "x" * 500
    worker = WorkerInfo(
        "e", evil, evil, 1, evil, evil, CPU, (RunningInfo(evil, LayerSpan(0, 2), 1, 1),),
        tuple(StoredInfo(evil, 1) for _ in range(9)), 1.0, evil,
    )  # fmt: skip
    text = format_workers([worker])
    assert all(char == "\n" or char.isprintable() for char in text)
    assert len(text.splitlines()) == 5
    assert max(map(len, text.splitlines())) < 500
    assert "and 5 more" in text


@pytest.mark.parametrize(("text", "line"), [("a\n b", "a b"), ("", ""), ("x" * 50, "x" * 39 + "…"), ("天", "天")])
def test_a_text_becomes_one_line(text: str, line: str) -> None:
    assert one_line(text) == line


def test_programs_get_everything() -> None:
    read = json.loads(json.dumps(workers_to_dict([DEN, LOST])))
    den, lost = read["workers"]
    assert den["running"][0] == {
        "model": "llama-70b", "start": 10, "end": 48, "resident_bytes": 4_000_000_000, "streamed_bytes": 8_000_000_000,
        "seconds_per_token": 0.31, "num_sessions": 2,
    }  # fmt: skip
    assert den["running"][1]["seconds_per_token"] is None
    assert den["stored"] == [{"model": "llama-70b", "bytes": 12_000_000_000}]
    assert den["profile"]["weight_rates"] == {"float16": 2.5e11}
    assert lost["profile"] is None
    assert "does not answer" in lost["problem"]
