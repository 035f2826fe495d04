"""No decision depends on the wall clock, which anybody may set, but how old files and measurements are."""

import ast
from pathlib import Path

from tests.test_imports import SOURCES

WALL = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.localtime"}
ALLOWED = {
    "coordinator/chat_sandbox.py",  # templates may ask for today's date
    "shared/security/authority.py",  # certificates begin and end at a date
    "shared/unpacked.py",  # how long a folder was not used
    "worker/disk_rate.py",  # what an earlier run left behind
    "worker/measuring.py",  # how old a measurement is, over restarts
}


def wall_clocks(path: Path) -> list[str]:
    names = (ast.unparse(node) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute))
    return [name for name in names if name in WALL]


def test_the_wall_clock_is_asked_in_a_few_places_only():
    assert {name for name, path in SOURCES.items() if wall_clocks(path)} == ALLOWED


def test_nobody_imports_a_clock_by_another_name():
    for name, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert {alias.name for alias in node.names} <= {"monotonic", "perf_counter", "sleep"}, name
