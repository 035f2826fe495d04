import threading
from pathlib import Path

import pytest

from layermesh.shared.machine_profile import MachineProfile
from layermesh.worker.profile_cache import MOST_FILE_BYTES, MOST_PROFILES, MOST_RUNS, ProfileCache, _load

PROFILE = MachineProfile(0, 0, 0.0, 1e9, {"int4": 2e10}, 1e11, "cpu", 5.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "profile.msgpack"


@pytest.fixture
def cache(path: Path) -> ProfileCache:
    return ProfileCache(path)


def test_a_profile_is_found_again(cache: ProfileCache, path: Path) -> None:
    assert cache.find("here") is None
    cache.keep("here", PROFILE)
    assert ProfileCache(path).find("here") == PROFILE
    assert cache.find("there") is None


def test_it_lies_in_the_home_of_layermesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path))
    ProfileCache().keep("here", PROFILE)
    assert (tmp_path / "profile.msgpack").is_file()


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"\xc1", b"\x80", b"\x93\x01\x02\x03", bytes(MOST_FILE_BYTES + 1),
        b"\x83\xa7version\x01\xa8profiles\x81\xa1k\x80\xa4runs\x90", b"\x83\xa7version\x02\xa8profiles\x80\xa4runs\x90",
        b"\x83\xa7version\x01\xa8profiles\x80\xa4runs\x91\x93\xa1m\xa1f\x01",
    ],
    ids=["empty", "no msgpack", "no fields", "a list", "large", "no profile", "later version", "no seconds"],
)  # fmt: skip
def test_a_damaged_file_counts_as_empty(cache: ProfileCache, path: Path, damage: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(damage)
    assert cache.find("here") is None
    assert cache.slowdown("model", "int4", PROFILE) == 1
    cache.keep("here", PROFILE)
    assert cache.find("here") == PROFILE


def test_a_home_that_cannot_be_written_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = ProfileCache(tmp_path / "file" / "profile.msgpack")
    cache.keep("here", PROFILE)
    cache.note_run("model", "int4", 1e-9)
    assert cache.find("here") is None


def test_runs_correct_what_was_measured(cache: ProfileCache) -> None:
    assert cache.slowdown("model", "int4", PROFILE) == 1
    cache.note_run("model", "int4", 1e-10)
    assert cache.slowdown("model", "int4", PROFILE) == pytest.approx(2)
    assert cache.slowdown("model", "float32", PROFILE) == 1
    assert cache.slowdown("other", "int4", PROFILE) == 1
    for _ in range(30):
        cache.note_run("model", "int4", 5e-11)
    assert cache.slowdown("model", "int4", PROFILE) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "slowdown"), [(0.9, 64), (1e-15, 1 / 16), (0.0, 1), (-1.0, 1), (float("nan"), 1), (2.0, 1)]
)
def test_odd_runs_do_little(cache: ProfileCache, seconds: float, slowdown: float) -> None:
    cache.note_run("model", "int4", seconds)
    assert cache.slowdown("model", "int4", PROFILE) == slowdown


def test_it_keeps_the_last_used_ones_only(cache: ProfileCache, path: Path) -> None:
    for number in range(MOST_RUNS + 5):
        cache.note_run("first", "int4", 1e-10)
        cache.note_run(f"model {number}", "int4", 1e-10)
    for number in range(MOST_PROFILES + 5):
        cache.keep(f"machine {number}", PROFILE)
    contents = _load(path)
    assert len(contents.runs) == MOST_RUNS
    assert ("first", "int4") in contents.runs
    assert ("model 0", "int4") not in contents.runs
    assert list(contents.profiles) == [f"machine {number}" for number in range(5, MOST_PROFILES + 5)]


def test_several_may_write_at_a_time(path: Path) -> None:
    def note(number: int) -> None:
        for _ in range(10):
            ProfileCache(path).note_run(f"model {number}", "int4", 1e-10)

    threads = [threading.Thread(target=note, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(_load(path).runs) == 4


def test_models_are_known_by_the_form_in_which_they_ran_last(cache: ProfileCache) -> None:
    assert cache.slowdowns(PROFILE) == {}
    cache.note_run("model", "int4", 1e-10)
    cache.note_run("unmeasured", "float64", 1e-10)
    assert cache.slowdowns(PROFILE) == pytest.approx({"model": 2})
