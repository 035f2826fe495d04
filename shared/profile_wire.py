"""A machine's profile as the message that travels."""

from layermesh.protos import mesh_pb2
from layermesh.shared.machine_profile import MachineProfile


def profile_to_proto(profile: MachineProfile) -> mesh_pb2.Profile:
    """Return the message that says what `profile` says; when that was measured does not travel, as clocks differ."""
    return mesh_pb2.Profile(
        device_bytes=profile.device_bytes,
        host_bytes=profile.host_bytes,
        bus_bytes_per_second=profile.bus_rate,
        disk_bytes_per_second=profile.disk_rate,
        weight_bytes_per_second=dict(profile.weight_rates),
        flops_per_second=profile.flops,
        compute_fingerprint=profile.compute_fingerprint,
    )


def profile_from_proto(message: mesh_pb2.Profile) -> MachineProfile:
    """Return the profile that `message` carries.

    Raises ValueError for one that cannot be true of a machine: missing, infinite, negative or absurd numbers, odd names.
    """
    return MachineProfile(
        device_bytes=message.device_bytes,
        host_bytes=message.host_bytes,
        bus_rate=message.bus_bytes_per_second,
        disk_rate=message.disk_bytes_per_second,
        weight_rates=dict(message.weight_bytes_per_second),
        flops=message.flops_per_second,
        compute_fingerprint=message.compute_fingerprint,
    ).checked()
