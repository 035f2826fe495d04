import pytest

from layermesh.coordinator.planning.mesh_plan import Part
from layermesh.coordinator.planning.running import Running, running_parts, spread_evenly
from layermesh.shared.spans import LayerSpan
from tests.coordinator.planning.meshes import machine

ATTIC, DEN, HALL = (machine(name, 5) for name in ("attic", "den-pc", "hall"))
DESK = machine("desk", 1, is_coordinator=True)
MACHINES = [HALL, ATTIC, DEN]


def parts(running, num_layers=10):
    return running_parts(running, MACHINES, DESK, num_layers)


def span(start, end, *, has_head=False):
    return Running(LayerSpan(start, end), has_head)


def test_what_others_use_is_joined_in_the_order_of_its_layers_and_the_rest_is_ones_own():
    assert parts({"hall": span(0, 4), "attic": span(4, 8)}) == [
        Part(HALL, LayerSpan(0, 4)),
        Part(ATTIC, LayerSpan(4, 8)),
        Part(DESK, LayerSpan(8, 10)),
    ]


def test_the_head_at_least_is_ones_own_unless_it_is_theirs():
    assert parts({"hall": span(0, 10)})[-1] == Part(DESK, LayerSpan(10, 10))
    assert parts({"hall": span(0, 10, has_head=True)}) == [Part(HALL, LayerSpan(0, 10))]


@pytest.mark.parametrize(
    "running",
    [
        {},
        {"hall": span(2, 6)},
        {"hall": span(0, 4), "attic": span(5, 10)},
        {"hall": span(0, 6), "attic": span(4, 10)},
        {"hall": span(0, 10), "attic": span(0, 10)},
        {"hall": span(0, 4), "somebody": span(4, 10)},
    ],
    ids=["nobody", "no beginning", "a gap", "an overlap", "twice", "a stranger"],
)
def test_what_makes_no_route_is_not_joined(running):
    assert parts(running) == []


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [
        (10, [("attic", 0, 4), ("den-pc", 4, 7), ("hall", 7, 10), ("desk", 10, 10)]),
        (2, [("attic", 0, 1), ("den-pc", 1, 2), ("desk", 2, 2)]),
    ],
    ids=["more layers", "fewer layers than machines"],
)
def test_everybody_gets_about_as_much(num_layers, expected):
    found = [(part.machine.name, part.span.start, part.span.end) for part in spread_evenly(MACHINES, DESK, num_layers)]
    sizes = [end - start for _, start, end in found[:-1]]
    assert [name for name, _, _ in found] == [name for name, _, _ in expected]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == num_layers
    assert found[-1] == expected[-1]
