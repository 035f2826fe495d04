from dataclasses import replace

import pytest

from layermesh.coordinator.planning.machines import Link, Links, Machine
from layermesh.coordinator.planning.model_cost import LayerCost, ModelCost
from tests.coordinator.planning.meshes import machine, uniform

NEAR = {"attic": Link(2e-3, 1e7), "den-pc": Link(1e-3, 1e8)}


def test_a_message_takes_its_time_and_that_of_its_bytes():
    assert Link(1e-3, 1e6).seconds_for(2000) == pytest.approx(3e-3)


def test_two_machines_are_as_far_apart_as_the_farther_is_unless_somebody_measured_it():
    measured = Link(5e-3, 1e9)
    links = Links(NEAR, {("attic", "den-pc"): measured})
    assert links.between("attic", "den-pc") == measured
    assert links.between("den-pc", "attic") == Link(2e-3, 1e7)


def test_a_link_that_nobody_knows_is_named():
    with pytest.raises(ValueError, match="'hall'"):
        Links(NEAR).between("attic", "hall")


@pytest.mark.parametrize(("seconds", "rate"), [(-1e-3, 1e6), (1e-3, 0.0)])
def test_links_that_are_none_are_refused(seconds, rate):
    with pytest.raises(ValueError, match=str(rate)):
        Link(seconds, rate)


@pytest.mark.parametrize("changes", [{"layer_seconds": -1.0}, {"slowdown": 0.0}], ids=str)
def test_machines_that_gain_time_are_refused(changes):
    with pytest.raises(ValueError, match="times of a machine"):
        replace(machine("attic", 1), **changes)


def test_a_slowed_machine_goes_through_fewer_weights():
    attic: Machine = replace(machine("attic", 1, compute=20), slowdown=4.0)
    assert attic.weight_rate("int4") == pytest.approx(5e9)


def test_models_without_layers_or_of_negative_size_are_refused():
    with pytest.raises(ValueError, match="a model has layers"):
        ModelCost((), LayerCost(1, 1), "int4", 0, 0, 0)
    with pytest.raises(ValueError, match="-1"):
        replace(uniform(), hidden_bytes=-1)
    with pytest.raises(ValueError, match="-5"):
        LayerCost(1, 1, -5)


@pytest.mark.parametrize(("piece", "largest"), [(None, 100), (30, 30)])
def test_a_layer_that_cannot_be_divided_is_its_largest_piece(piece, largest):
    assert LayerCost(100, 100, piece_bytes=piece).largest_piece == largest
