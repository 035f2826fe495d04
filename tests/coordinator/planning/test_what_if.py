import pytest

from layermesh.coordinator.planning.machines import Link
from layermesh.coordinator.planning.what_if import GIGABIT, imagine
from layermesh.shared.errors import UsageError
from tests.coordinator.planning.meshes import machine

LIKE = machine("desk", 4, disk=2.0, compute=20, is_coordinator=True)


def test_what_is_not_said_is_as_here_and_it_is_no_coordinator():
    made, link = imagine("8GB", 2, LIKE)
    assert (made.name, made.is_coordinator, link) == ("what-if 2", False, GIGABIT)
    assert made.profile.device_bytes == 8_000_000_000
    assert (made.profile.disk_rate, made.profile.weight_rates) == (LIKE.profile.disk_rate, LIKE.profile.weight_rates)


def test_everything_can_be_said():
    made, link = imagine("16GB, disk=3GB/s,weights=40GB/s,link=100MB/s,name=attic", 1, LIKE)
    assert made.name == "attic"
    assert made.profile.disk_rate == 3e9
    assert made.profile.weight_rates == {"int4": pytest.approx(40e9)}
    assert link == Link(GIGABIT.seconds, 100e6)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "-8GB", "nanGB", "8GB,disk", "8GB,disk=", "8GB,disk=0", "8GB,disk=-1GB/s", "8GB,disk=fast", "8GB,cores=4"),
        *("8GB,name=", "8GB,name=\n", f"8GB,name={'x' * 100}", "8GB,,", "disk=3GB/s"),
    ],
    ids=repr,
)
def test_machines_that_nobody_can_imagine_are_refused(text):
    with pytest.raises(UsageError, match=r"--what-if takes a machine like 8GB,disk"):
        imagine(text, 1, LIKE)
