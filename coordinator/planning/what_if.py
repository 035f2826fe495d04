"""A machine that is not there, to see what it would bring."""

from dataclasses import replace

from layermesh.coordinator.planning.machines import HANDLING_SECONDS, Link, Machine
from layermesh.shared.errors import UsageError
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.units import parse_bytes

GIGABIT = Link(0.3e-3 + HANDLING_SECONDS, 110e6)
_FORM = "8GB,disk=3GB/s,weights=30GB/s,link=100MB/s"


def imagine(text: str, number: int, like: Machine) -> tuple[Machine, Link]:
    """Read a machine from "8GB,disk=3GB/s,weights=30GB/s,link=100MB/s"; what is not said is as with `like`.

    `name=` names it, else it is "what-if" with its `number`. Its link is a gigabit's unless said. Raises UsageError.
    """
    memory, *others = [part.strip() for part in text.split(",")]
    profile, name, link = like.profile, f"what-if {number}", GIGABIT
    profile = replace(profile, device_bytes=_bytes(memory, text), host_bytes=0, bus_rate=0.0)
    for other in others:
        key, _, value = other.partition("=")
        if key == "disk":
            profile = replace(profile, disk_rate=_rate(value, text))
        elif key == "weights":
            profile = _with_weights(profile, _rate(value, text))
        elif key == "link":
            link = Link(link.seconds, _rate(value, text))
        elif key == "name" and value.isprintable() and 0 < len(value) < 64:
            name = value
        else:
            raise _nonsense(text)
    return replace(like, name=name, profile=profile, is_coordinator=False), link


def _with_weights(profile: MachineProfile, rate: float) -> MachineProfile:
    """Scale all weight rates so that the fastest is `rate`."""
    fastest = max(profile.weight_rates.values(), default=rate)
    rates = {form: each * rate / fastest for form, each in profile.weight_rates.items()}
    return replace(profile, weight_rates=rates)


def _rate(value: str, text: str) -> float:
    rate = float(_bytes(value.removesuffix("/s"), text))
    if rate <= 0:
        raise _nonsense(text)
    return rate


def _bytes(value: str, text: str) -> int:
    try:
        return parse_bytes(value)
    except (ValueError, ArithmeticError) as error:
        raise _nonsense(text) from error


def _nonsense(text: str) -> UsageError:
    return UsageError(f"--what-if takes a machine like {_FORM}, of which only the memory must be said, not {text!r}.")
