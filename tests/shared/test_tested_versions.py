import pytest

from layermesh.shared import tested_versions
from layermesh.shared.tested_versions import installed, newer_than_tested, supported_range
from tests.versions import oldest, pinned, requirements

METADATA = ["transformers>=5.20,<5.25", "torch>=2.10,<2.16", "pip>=23.0", 'bandit>=1.9; extra == "dev"']


@pytest.fixture
def versions(monkeypatch):
    """Say what is installed, where layermesh requires METADATA."""
    given = {"transformers": "5.24.0", "torch": "2.13.0+cpu", "pip": "99.0", "bandit": "99.0"}
    monkeypatch.setattr(tested_versions, "requires", lambda _: METADATA)
    monkeypatch.setattr(tested_versions, "version", given.__getitem__)
    return given


@pytest.mark.parametrize("version", ["5.20.0", "5.24.0", "5.24.9", "5.23.1.dev0"])
def test_versions_that_were_tested_are_not_named(versions, version):
    versions["transformers"] = version
    assert newer_than_tested() == []


@pytest.mark.parametrize("version", ["5.25.0", "5.25.1.dev0", "6.0"])
def test_a_newer_version_is_named(versions, version):
    versions["transformers"] = version
    (notice,) = newer_than_tested()
    assert notice.startswith(f"transformers {version} is newer than what layermesh was tested with (<5.25,>=5.20)")
    assert "pip install 'transformers<5.25,>=5.20'" in notice


def test_a_version_that_is_older_than_it_may_be_is_not_called_newer(versions):
    versions["transformers"] = "5.3.0"
    assert newer_than_tested() == []


def test_ranges_are_those_of_the_package():
    assert supported_range("transformers") in {f"transformers{spec}" for spec in ("<5.25,>=5.20", ">=5.20,<5.25")}
    assert installed("transformers").startswith("transformers 5.")


def test_what_is_installed_was_tested():
    assert newer_than_tested() == []


def test_the_oldest_versions_are_exact_and_complete():
    names = {line.partition("==")[0] for line in oldest()}
    assert {"transformers", "torch", "gguf", "numpy"} <= names
    assert all("<" not in line and ">" not in line for line in oldest())
    assert len(names) == len(requirements()) - 2  # pip and packaging, of which any does


def test_every_requirement_is_pinned():
    assert [line for line in requirements() if not line.startswith("pip>") and not pinned(line.partition(">")[0])] == []
