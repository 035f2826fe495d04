from pathlib import Path

import pytest

from layermesh.protos import mesh_pb2 as pb
from layermesh.shared.errors import (
    AuthenticationError,
    BudgetError,
    BusyError,
    CheckpointError,
    DiskFullError,
    MeshError,
    ModelNotFoundError,
    ResourceError,
    TokenizerError,
    UnsupportedModelError,
    UsageError,
)
from layermesh.shared.problems import MAX_MESSAGE, to_error, to_problem

KINDS = (
    *(AuthenticationError, CheckpointError, MeshError, ModelNotFoundError, ResourceError, TokenizerError),
    *(UnsupportedModelError, UsageError),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_our_errors_arrive_as_they_left_with_the_workers_name(kind):
    arrived = to_error(to_problem(kind("it went wrong. Do this.")), "attic")
    assert type(arrived) is kind
    assert str(arrived) == "worker attic: it went wrong. Do this."


def test_a_budget_arrives_with_its_bytes():
    arrived = to_error(to_problem(BudgetError("the stage", 100_000_000, 900_000_000)), "attic")
    assert isinstance(arrived, BudgetError)
    assert (arrived.budget_bytes, arrived.needed_bytes) == (100_000_000, 900_000_000)
    assert "worker attic needs at least 900MB" in str(arrived)


def test_a_budget_that_is_overdrawn_travels_all_the_same():
    assert to_problem(BudgetError("it", -5, 10)).budget_bytes == 0


@pytest.mark.parametrize("error", [BusyError("no room."), BudgetError("it", 1, 2)], ids=["busy", "budget"])
def test_what_may_be_well_later_says_so(error):
    arrived = to_error(to_problem(error, busy=True), "attic")
    assert isinstance(arrived, BusyError)
    assert "worker attic is busy" in str(arrived)


def test_a_kind_that_does_not_travel_arrives_as_the_next_one_up():
    arrived = to_error(to_problem(DiskFullError(Path("/store"), 5_000_000, 1_000_000)), "attic")
    assert type(arrived) is ResourceError
    assert "worker attic: no room in /store: 5.00MB needed, 1.00MB free" in str(arrived)


def test_errors_of_others_arrive_as_the_meshs_in_one_line():
    arrived = to_error(to_problem(RuntimeError("first\n  second")), "attic")
    assert type(arrived) is MeshError
    assert str(arrived) == "worker attic: RuntimeError: first second"


@pytest.mark.parametrize("kind", ["", "KeyboardInterrupt", "LayermeshError", "x" * 1000])
def test_kinds_that_nobody_knows_are_the_meshs(kind):
    assert type(to_error(pb.Problem(kind=kind, message="it"), "attic")) is MeshError


def test_long_messages_are_cut():
    assert len(to_problem(MeshError("x" * 100_000)).message) == MAX_MESSAGE
    assert len(str(to_error(pb.Problem(kind="MeshError", message="x" * 100_000), "attic"))) < MAX_MESSAGE + 100
