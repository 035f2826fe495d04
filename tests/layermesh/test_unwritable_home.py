"""A home that cannot be written, in every way that there is: it costs what needs it, and no answer."""

import os
import shutil
import subprocess
import sys

import pytest
from terminals import child_environ

IS_ROOT = sys.platform == "linux" and os.geteuid() == 0
LAYERMESH = (sys.executable, "-m", "layermesh")
GENERATE = ("generate", "--prompt-ids", "5,6,7", "-n", "3", "--temperature", "0", "--ignore-eos", "--alone")
MOUNT = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o "$0" tmpfs "$1" && shift && exec "$@"')
WITHOUT_ROOTS_POWERS = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner", "--")
OTHERS = 54321


def read_only(home):
    home.mkdir()
    return [*MOUNT, "ro", str(home)]


def full(home):
    """Room for folders and empty files, and not for a byte."""
    home.mkdir()
    (home / "filler").touch()
    fill = 'mount -t tmpfs -o size=4k tmpfs "$0" && head -c 4096 /dev/zero > "$0/filler"; exec "$@"'
    return ["unshare", "-m", "sh", "-c", fill, str(home)]


def locked(home):
    home.mkdir(0o500)
    if not IS_ROOT:
        return []
    os.chown(home, OTHERS, OTHERS)
    home.chmod(0o700)
    return list(WITHOUT_ROOTS_POWERS)


def a_file(home):
    home.touch()
    return []


HOMES = {
    "read-only": (read_only, "Read-only file system", {"mount", "unshare"}),
    "full": (full, "no room in", {"mount", "unshare"}),
    "locked": (locked, "Permission denied", {"setpriv"} if IS_ROOT else set()),
    "a file": (a_file, "Not a directory", set()),
}


@pytest.fixture(params=HOMES)
def home(request, tmp_path):
    """A folder, what to put before a command so that the folder cannot be written there, and what the system says of it."""
    make, said, tools = HOMES[request.param]
    if tools and not IS_ROOT:
        pytest.skip("mounts need root")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"needs {missing}")
    folder = tmp_path / "home"
    return folder, make(folder), said


def run(home, before, *arguments, **environment):
    environment = child_environ(LAYERMESH_HOME=str(home), LAYERMESH_ALONE="", **environment)
    return subprocess.run(
        [*before, *LAYERMESH, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def expected(text_model, tmp_path_factory):
    done = run(tmp_path_factory.mktemp("home"), [], *GENERATE, "-m", text_model)
    assert done.returncode == 0, done.stderr
    assert "cannot be resumed" not in done.stderr
    return done.stdout


def test_an_answer_comes_and_says_once_that_it_cannot_be_resumed(home, text_model, expected):
    folder, before, said = home
    done = run(folder, before, *GENERATE, "-m", text_model)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    assert done.stderr.count("note: this answer cannot be resumed: ") == 1
    assert said in done.stderr
    assert "LAYERMESH_HOME" in done.stderr
    assert str(folder) in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("invite",), ("generate", "--quantize", "int8", "--prompt-ids", "5"), ("worker", "--host", "127.0.0.1", "--port", "0")],
    ids=["invite", "quantize", "worker"],
)
@pytest.mark.parametrize("home", ["read-only", "a file"], indirect=True)
def test_what_needs_the_home_names_it(home, text_model, arguments):
    folder, before, said = home
    model = ("-m", text_model) if arguments[0] == "generate" else ()
    done = run(folder, before, *arguments, *model)
    assert (done.returncode, done.stdout) == (6, ""), done.stderr
    assert said in done.stderr
    assert "LAYERMESH_HOME" in done.stderr
    assert str(folder) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("home", ["locked", "a file"], indirect=True)
def test_what_only_reads_finds_nothing(home):
    folder, before, _ = home
    for command in (("ls",), ("nodes",), ("status", "--no-discovery")):
        done = run(folder, before, *command)
        assert done.returncode == 0, done.stderr
    done = run(folder, before, "generate", "--resume")
    assert done.returncode == 2
    assert "no answer was interrupted" in done.stderr


def test_a_user_without_a_home_has_one_that_cannot_be_written():
    """As in a container with a bare user id: there is no HOME, and the system knows no user by that id."""
    if not IS_ROOT:
        pytest.skip("only root can be somebody else")
    script = "import os\nos.environ.pop('HOME')\nfrom layermesh.shared.library.home import data_home, home\n"
    become = "os.setuid(54321)\nprint(home(), data_home())"
    environment = {name: value for name, value in child_environ().items() if not name.startswith(("LAYERMESH", "XDG"))}
    done = subprocess.run([sys.executable, "-c", script + become], env=environment, capture_output=True, text=True)
    assert done.stdout == "/nonexistent/.cache/layermesh /nonexistent/.local/share/layermesh\n", done.stderr
