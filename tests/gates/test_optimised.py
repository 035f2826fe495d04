"""Under `python -O` the interpreter forgets every assert: no check may be one, and tests have to fail all the same."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_imports import ROOT, SOURCES

# Asserts that are more than a word to the type checker, and why they may be: own invariants that no input reaches.
REASONED = {
    "shared/packing/block_file.py": "what was written has the size that was computed; its hash is checked when it is read",
}


def says_a_type(test: ast.expr) -> bool:
    """Whether a condition only tells a type checker what is known: `x is not None`, or `isinstance(x, C)`."""
    if isinstance(test, ast.Compare):
        (operator, *more), (other, *_) = test.ops, test.comparators
        return isinstance(operator, ast.IsNot) and not more and isinstance(other, ast.Constant) and other.value is None
    return isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "isinstance"


def checking_asserts(source: str) -> list[str]:
    """The asserts in `source` that check something, as they are written."""
    asserts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
    return [ast.unparse(node.test) for node in asserts if not says_a_type(node.test)]


@pytest.mark.parametrize("name", SOURCES)
def test_no_input_is_checked_by_an_assert(name):
    found = checking_asserts(SOURCES[name].read_text())
    assert found == [] if name not in REASONED else found != []


@pytest.mark.parametrize(
    ("source", "num_found"),
    [
        ("assert x > 0", 1),
        ("def f(x):\n    assert len(x) < 9, 'too long'", 1),
        ("assert x is not None and x.fits", 1),
        ("assert x is None", 1),
        ("assert check(x)", 1),
        ("assert x is not None", 0),
        ("assert isinstance(x, int)", 0),
    ],
)
def test_the_gate_tells_checks_from_types(source, num_found):
    assert len(checking_asserts(source)) == num_found


FAILING = "def test_it():\n    assert 1 + 1 == 3\n"
FAILING_IN_A_HELPER = "from tests.mesh.waiting import wait_until\ndef test_it():\n    wait_until(lambda: False, 0.1)\n"
PASSING = "import sys\ndef test_it():\n    assert sys.flags.optimize == 1\n"


WITHOUT_ASSERTS = ("-W", "ignore::pytest.PytestConfigWarning")  # of which pytest warns, and Makefile knows


@pytest.mark.parametrize(
    ("source", "outcome"),
    [(FAILING, "1 failed"), (FAILING_IN_A_HELPER, "1 failed"), (PASSING, "1 passed")],
    ids=["failing", "in a helper", "passing"],
)
def test_a_check_that_fails_fails_without_asserts_too(source, outcome, tmp_path):
    """pytest writes the asserts of test files anew, as conditions that raise; those of other files are gone."""
    test = tmp_path / "test_it.py"
    test.write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *WITHOUT_ASSERTS]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), str(test)]
    environment = os.environ | {"PYTHONOPTIMIZE": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert outcome in ran.stdout, ran.stdout + ran.stderr


def helpers() -> list[Path]:
    """Files that tests import, in which pytest leaves asserts as they are."""
    return [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("test_") and path.name != "conftest.py"]


@pytest.mark.parametrize("name", ["mesh/waiting.py", "mesh/worker_process.py", "mesh/hammer.py", "hostile/child.py"])
def test_helpers_of_the_security_tests_assert_nothing(name):
    path = ROOT / "tests" / name
    assert path in helpers()
    assert [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)] == []
