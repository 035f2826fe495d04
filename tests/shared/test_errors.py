import inspect
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermesh.shared import errors
from layermesh.shared.errors import BudgetError, DiskFullError, LayermeshError
from layermesh.shared.units import parse_bytes

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, LayermeshError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_stands_in_the_tree_with_its_exit_code(kind):
    line = next(line for line in errors.__doc__.splitlines() if kind.__name__ in line)
    written = line.partition("(")[2].partition(")")[0]
    assert written == "" or int(written) == kind.exit_code
    assert kind is LayermeshError or kind.exit_code > 1


@given(st.integers(1, 10**15))
def test_the_budget_that_is_advised_suffices(needed_bytes):
    message = str(BudgetError("the model", 1, needed_bytes))
    assert parse_bytes(message.rpartition("--host-memory ")[2].removesuffix(".")) >= needed_bytes


def test_a_full_disk_names_path_need_and_room():
    message = str(DiskFullError(Path("/mnt/models"), 4_010_000_000, 1_000_000))
    assert all(part in message for part in ("/mnt/models", "4.01GB", "1.00MB"))
