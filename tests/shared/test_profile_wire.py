import math

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermesh.protos import mesh_pb2
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.profile_wire import profile_from_proto, profile_to_proto

PROFILE = MachineProfile(
    4_000_000_000, 12_000_000_000, 12e9, 2.1e9, {"bfloat16": 3e10, "int4": 2e10}, 4e11, "torch 2.13.0; cpu", 1e9
)


def test_a_profile_travels() -> None:
    sent = profile_to_proto(PROFILE).SerializeToString(deterministic=True)
    received = profile_from_proto(mesh_pb2.Profile.FromString(sent))
    assert received == MachineProfile.parse({**PROFILE.to_dict(), "measured_at": 0.0})


def test_a_profile_is_stored() -> None:
    assert MachineProfile.parse(msgpack.unpackb(msgpack.packb(PROFILE.to_dict()))) == PROFILE
    assert PROFILE.age(1e9 + 60) == 60


@pytest.mark.parametrize(
    "change",
    [
        {"device_bytes": 1 << 60}, {"host_bytes": (1 << 64) - 1}, {"disk_bytes_per_second": 0.0},
        {"disk_bytes_per_second": -1.0},
        {"disk_bytes_per_second": math.nan}, {"disk_bytes_per_second": math.inf}, {"bus_bytes_per_second": math.nan},
        {"bus_bytes_per_second": -1.0}, {"flops_per_second": math.inf}, {"flops_per_second": 1e300}, {"flops_per_second": -1.0},
        {"weight_bytes_per_second": {"int4": 0.0}}, {"weight_bytes_per_second": {"int4": math.nan}},
        {"weight_bytes_per_second": {"\x1b[2J": 1.0}}, {"weight_bytes_per_second": {"": 1.0}},
        {"weight_bytes_per_second": {f"form{number}": 1.0 for number in range(33)}},
        {"compute_fingerprint": "x" * 401}, {"compute_fingerprint": "a\nb"},
    ],
    ids=str,
)  # fmt: skip
def test_messages_that_no_machine_sends_are_refused(change: dict[str, object]) -> None:
    message = profile_to_proto(PROFILE)
    if isinstance(change.get("weight_bytes_per_second"), dict):
        message.weight_bytes_per_second.clear()
    message.MergeFrom(mesh_pb2.Profile(**change))  # type: ignore[arg-type]
    for name, value in change.items():
        if value == 0.0:
            setattr(message, name, value)
    with pytest.raises(ValueError):
        profile_from_proto(message)


def test_an_empty_message_is_refused() -> None:
    with pytest.raises(ValueError):
        profile_from_proto(mesh_pb2.Profile())


NUMBERS = st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.none())


FIELDS = {**dict.fromkeys(PROFILE.to_dict(), NUMBERS), "weight_rates": st.dictionaries(st.text(), NUMBERS)}


@given(st.fixed_dictionaries(FIELDS))
def test_whatever_is_stored_is_read_or_refused(raw: dict[str, object]) -> None:
    try:
        profile = MachineProfile.parse(raw)
    except ValueError:
        return
    assert MachineProfile.parse(profile.to_dict()) == profile


@pytest.mark.parametrize("raw", [None, 1, [], {}, {"weight_rates": {}}, {**PROFILE.to_dict(), "weight_rates": []}], ids=str)
def test_something_else_is_refused(raw: object) -> None:
    with pytest.raises(ValueError):
        MachineProfile.parse(raw)
