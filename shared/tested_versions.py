"""The versions of libraries that layermesh was tested with, from its own package metadata, and those that are installed."""

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version


def installed(package: str) -> str:
    """Return the name and the installed version of `package`, such as "torch 2.13.0"."""
    return f"{package} {version(package)}"


def supported_range(package: str) -> str:
    """Return what layermesh requires of `package`, as pip takes it, such as "torch>=2.10,<2.16"."""
    return next((str(each) for each in _requirements() if each.name == package), package)


def newer_than_tested() -> list[str]:
    """Return a sentence for each library that is installed in a newer version than layermesh was tested with."""
    return [_newer(each) for each in _requirements() if _is_newer(each)]


def _requirements() -> list[Requirement]:
    """Return what layermesh needs at run time; nothing where it runs without having been installed."""
    try:
        stated = [Requirement(line) for line in requires("layermesh") or ()]
    except PackageNotFoundError:
        return []
    return [each for each in stated if each.marker is None or each.marker.evaluate({"extra": ""})]


def _is_newer(requirement: Requirement) -> bool:
    limits = [Version(each.version) for each in requirement.specifier if each.operator in ("<", "<=", "==")]
    try:
        return (
            bool(limits)
            and Version(version(requirement.name)) >= min(limits)
            and not requirement.specifier.contains(version(requirement.name), prereleases=True)
        )
    except PackageNotFoundError:
        return False


def _newer(requirement: Requirement) -> str:
    return (
        f"{installed(requirement.name)} is newer than what layermesh was tested with ({requirement.specifier}). If answers "
        f"look wrong: pip install '{requirement}'."
    )
