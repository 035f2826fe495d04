import io
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_checkpoints import change_config, copied
from terminals import Screen, TerminalProcess, child_environ, in_terminal

from layermesh import terminal
from layermesh.terminal import DownloadLine, StatusLine, harmless
from tests.shared.checkpoints.gguf_models import LLAMA, VOCAB
from tests.shared.checkpoints.gguf_writing import write_gguf

ESCAPES = re.compile(r"\x1b")
QUICKLY = 2.0  # seconds within which an interrupted command has ended
TEXTS = {
    "plain": "The sky is blue because of the way light is scattered by the air. ",
    "exact-lines": "0123456789" * 2,
    "lines": "one\n\ntwo\n    three\n",
    "wide": "天空是蓝色的，因为光。",
    "accents": "cafe\u0301 nai\u0308ve ",
    "tabs": "a\tb\t\tc",
    "long-word": "x" * 53,
}


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    """A terminal of 20 columns as stderr, whose status line is drawn as often as somebody asks."""
    stderr = FakeTerminal()
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stderr=stderr))  # pytest changes the real one under the test
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(terminal, "_REFRESH_SECONDS", 0)
    monkeypatch.setattr(terminal, "_columns", lambda: 20)
    return stderr


@pytest.mark.parametrize("lines", [2, 3, 6], ids="{}-lines".format)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("seed", range(3))
def test_the_status_line_leaves_the_text_as_it_is(shown: FakeTerminal, text: str, lines: int, seed: int) -> None:
    rng = random.Random(seed)
    status, expected = StatusLine(), Screen(20, lines)
    answer = text * 3
    while answer:
        for _ in range(rng.randrange(3)):
            status.show("a status that is much longer than the terminal is wide")
        size = rng.randint(1, 7)
        piece, answer = answer[:size], answer[size:]
        status.clear()
        shown.write(piece)
        status.follow(piece)
        expected.feed(piece)
    status.show("the last one")
    status.clear()
    screen = Screen(20, lines)
    screen.feed(shown.getvalue())
    assert screen.text == expected.text
    assert "a status that is m" in shown.getvalue()


def test_the_status_line_is_one_line_below_the_text(shown: FakeTerminal) -> None:
    status = StatusLine()
    shown.write("Hello")
    status.follow("Hello")
    status.show("sweep 1, " + "layer " * 20)
    screen = Screen(20, 3)
    screen.feed(shown.getvalue())
    assert screen.text == "Hello\nsweep 1, layer laye"
    assert (screen.row, screen.column) == (0, 5)


def test_it_is_not_drawn_while_the_cursor_hangs_at_the_right_edge(shown: FakeTerminal) -> None:
    status = StatusLine()
    status.follow("x" * 20)
    status.show("now")
    assert shown.getvalue() == ""
    status.follow("y")
    status.show("now")
    assert "now" in shown.getvalue()


@pytest.mark.parametrize("draw", [lambda: StatusLine().show("x"), lambda: _download()], ids=["status", "download"])
@pytest.mark.parametrize("kind", ["file", "dumb"])
def test_no_escapes_where_nobody_understands_them(
    kind: str, draw: object, shown: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    if kind == "file":
        monkeypatch.setattr(terminal, "sys", SimpleNamespace(stderr=(shown := io.StringIO())))
        monkeypatch.setenv("TERM", "xterm")
    draw()  # type: ignore[operator]
    assert not ESCAPES.search(shown.getvalue())


def test_the_download_line_leaves_only_its_beginning(shown: FakeTerminal) -> None:
    _download()
    screen = Screen(60, 5)
    screen.feed(shown.getvalue())
    assert screen.text == "fetching a model (2.00MB)"
    assert "50%" in shown.getvalue()


def _download() -> None:
    line = DownloadLine()
    line.start("fetching a model", 2_000_000)
    line.advance(1_000_000)
    line.finish()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\tc é 天 🙂", "a\nb\tc é 天 🙂"),
        ("\x1b]0;owned\x07", "\ufffd]0;owned\ufffd"),
        ("\x9b2J\r\x08\x00\x7f", "\ufffd2J" + "\ufffd" * 4),
    ],
    ids=["text", "title", "controls"],
)
def test_control_characters_do_not_reach_a_terminal(text: str, expected: str) -> None:
    assert harmless(text) == expected


# In real terminals, as real processes.


@pytest.fixture(scope="module")
def endless(text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that talks for minutes if it is let."""
    folder = copied(text_model, tmp_path_factory.mktemp("endless") / "endless-llama")
    return change_config(folder, max_position_embeddings=1_000_000)


def answering(model: Path, *prompt: str) -> list[str]:
    settings = ["--ignore-eos", "--temperature", "2", "--seed", "1", "--host-memory", "2GB"]
    return ["generate", "-m", str(model), *prompt, "-n", "100000", *settings]


def check_end(process: TerminalProcess, expected: int = 130) -> None:
    assert process.end(QUICKLY) == expected
    assert "Traceback" not in process.output
    assert "Exception" not in process.output
    process.read_until(lambda: process.companions == [], QUICKLY)
    assert process.is_restored
    screen = Screen()
    screen.feed(process.output)
    assert "sweep" not in screen.text
    assert screen.text.splitlines()[-1] == "error: interrupted"


def is_loading(process: TerminalProcess) -> bool:
    return "libtorch" in Path(f"/proc/{process.process.pid}/maps").read_text()


def is_in_prompt(process: TerminalProcess) -> bool:
    return "sweep" in process.output


def is_answering(process: TerminalProcess) -> bool:
    """Whether text has come piece by piece, with the status between."""
    return "tok/s" in process.output and len(process.output) > 2000 and process.pieces > 20


LONG_PROMPT = ("--prompt-ids", ",".join(["5", "6"] * 8000))


@pytest.mark.parametrize(
    ("prompt", "has_come_so_far"),
    [(LONG_PROMPT, is_loading), (LONG_PROMPT, is_in_prompt), (("Hello",), is_answering)],
    ids=["load", "prefill", "decode"],
)
def test_ctrl_c_and_sigterm_end_it(
    prompt: tuple[str, ...], has_come_so_far: Callable[[TerminalProcess], bool], endless: Path
) -> None:
    command = answering(endless, *prompt)
    with in_terminal(*command) as by_key, in_terminal(*command) as by_signal:
        by_key.read_until(lambda: has_come_so_far(by_key))
        by_key.type(b"\x03")
        check_end(by_key)
        by_signal.read_until(lambda: has_come_so_far(by_signal))
        by_signal.process.send_signal(signal.SIGTERM)
        check_end(by_signal)


@pytest.mark.parametrize("seconds", [0.2, 0.4, 0.7, 1.0, 1.4, 1.8, 2.3, 3.0])
def test_an_interrupt_at_any_time_of_the_start_up(seconds: float, endless: Path) -> None:
    command = [sys.executable, "-m", "layermesh", *answering(endless, *LONG_PROMPT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environ(), text=True) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1]
    assert process.returncode == 130, said
    assert said == "error: interrupted\n"


@pytest.mark.parametrize("becomes", ["pass", "raise ModuleNotFoundError('no module')"], ids=["nothing", "an error"])
@pytest.mark.parametrize("module", ["greenlet", "transformers.models.llama.modeling_llama"], ids=["import", "building"])
def test_an_interrupt_that_is_swallowed(module: str, becomes: str, text_model: Path) -> None:
    script = f"""
import os, signal, sys
from layermesh.interrupts import catch_interrupts

class Swallowing:
    def find_spec(self, name, *_):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                {becomes}

catch_interrupts()
sys.meta_path.insert(0, Swallowing())
from layermesh.cli import main
main()
"""
    command = [sys.executable, "-c", script, "generate", "-m", str(text_model), "Hi", "-n", "2"]
    done = subprocess.run(command, env=child_environ(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_an_interrupt_while_a_gguf_file_is_unpacked(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", "llama", *LLAMA, tokens=[f"t{index}" for index in range(VOCAB)])
    unpacked = tmp_path / "home" / "unpacked"
    command = ("generate", "-m", path, "--prompt-ids", "5", "-n", "2")
    with in_terminal(*command, LAYERMESH_HOME=str(tmp_path / "home")) as process:
        process.read_until(lambda: any(unpacked.glob("unpacking-*")))
        process.process.send_signal(signal.SIGINT)
        check_end(process)
    assert list(unpacked.iterdir()) == []


def test_stdout_in_a_file_has_the_text_only(text_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "answer.txt"
    with path.open("wb") as file, in_terminal(*answering(text_model, "Hello"), stdout=file.fileno()) as process:
        assert process.end(40) == 0
    text = path.read_text("utf-8")
    assert text.endswith("\n")
    assert "tok/s" not in text
    assert "\x1b[" not in text
    assert "sweep" in process.output
    screen = Screen()
    screen.feed(process.output)
    assert screen.text.startswith("[")
    assert screen.text.endswith("seed 1]")


def test_a_reader_that_goes_away_is_no_fault(endless: Path) -> None:
    command = [sys.executable, "-m", "layermesh", *answering(endless, "Hello")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environ()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(os.read(process.stdout.fileno(), 5)) > 0
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(20) == 1
