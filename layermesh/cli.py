"""The command line. Heavy imports happen inside the command that needs them."""

import errno
import gc
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from layermesh import __version__
from layermesh.shared.errors import LayermeshError, UsageError
from layermesh.terminal import DownloadLine, note, restart_line

if TYPE_CHECKING:
    from layermesh.mesh import LayerMesh

INTERRUPTED = 130
OUT_OF_RESOURCES = 6

_OUT_OF_MEMORY = "this machine ran out of memory. Give layermesh less of it: --host-memory 2GB."

app = typer.Typer(
    name="layermesh",
    help="Run language models that are too big for any machine you own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"layermesh {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Run language models that are too big for any machine you own."""


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar="LAYERMESH_MODEL",
        help="A Hugging Face folder, a .gguf file, a hub id or a pulled name.  [default: smollm2-135m]",
    ),
]
Device = Annotated[str | None, typer.Option(envvar="LAYERMESH_DEVICE", help="cpu, cuda or cuda:N.  [default: the best]")]
DeviceMemory = Annotated[
    str | None,
    typer.Option(envvar="LAYERMESH_DEVICE_MEMORY", help="Memory to use on the device, such as 4GB.  [default: most of it]"),
]
HostMemory = Annotated[
    str | None,
    typer.Option(envvar="LAYERMESH_HOST_MEMORY", help="Memory to use on the host, such as 2GB.  [default: most of it]"),
]
Dtype = Annotated[
    str | None,
    typer.Option(envvar="LAYERMESH_DTYPE", help="float32, bfloat16 or float16.  [default: the checkpoint's own]"),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Offline = Annotated[bool, typer.Option("--offline", envvar="LAYERMESH_OFFLINE", help="Use only what is on this machine.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Debug = Annotated[bool, typer.Option("--debug", envvar="LAYERMESH_DEBUG", help="Show tracebacks.")]
Alone = Annotated[bool, typer.Option("--alone", help="Look for no other machines.")]


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to say to the model; standard input if left out.")] = None,
    model: Model = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "-n",
            envvar="LAYERMESH_MAX_NEW_TOKENS",
            help="Most tokens of the answer.  [default: 512]",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(envvar="LAYERMESH_TEMPERATURE", help="0 takes the likeliest token each time.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(envvar="LAYERMESH_TOP_P", help="Sample from the likeliest tokens that make up this share."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(envvar="LAYERMESH_TOP_K", help="Sample from this many of the likeliest tokens; 0 for all."),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(envvar="LAYERMESH_MIN_P", help="Drop tokens less likely than this share of the likeliest."),
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(envvar="LAYERMESH_REPETITION_PENALTY", help="Above 1: repeat less.")
    ] = None,
    seed: Annotated[int | None, typer.Option(envvar="LAYERMESH_SEED", help="The same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be given several times.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model should know about its role.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Give the prompt as it is, without the chat template.")] = False,
    prompt_ids: Annotated[str | None, typer.Option(help="Token ids instead of text, such as 5,6,7.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on to the limit, past the end of the text.")] = False,
    device: Device = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    dtype: Dtype = None,
    revision: Revision = None,
    offline: Offline = False,
    alone: Alone = False,  # noqa: ARG001 - there is nobody to look for yet
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the text and errors.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer a prompt; the text streams to stdout as it is made."""
    with _reporting(debug):
        given = _prompt(prompt, prompt_ids)
        from layermesh.generating import print_answer

        with _open(model, device, device_memory, host_memory, dtype, revision, offline, quiet=quiet) as mesh:
            print_answer(
                mesh,
                given,
                as_json=as_json,
                quiet=quiet,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                seed=seed,
                stop=tuple(stop or ()),
                system=system,
                raw=raw,
                ignore_eos=ignore_eos,
            )


@app.command()
def plan(
    model: Model = None,
    device: Device = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    dtype: Dtype = None,
    revision: Revision = None,
    offline: Offline = False,
    alone: Alone = False,  # noqa: ARG001 - there is nobody to look for yet
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a model's blocks, what would stay in memory, what would stream, and how fast that should be."""
    with _reporting(debug):
        from layermesh.planning import print_plan

        with _open(model, device, device_memory, host_memory, dtype, revision, offline) as mesh:
            print_plan(mesh.local, as_json=as_json)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name of the catalog, or a hub id.")],
    revision: Revision = None,
    debug: Debug = False,
) -> None:
    """Fetch a model."""
    with _reporting(debug):
        from layermesh.shared.library import resolve

        resolved = resolve(name, revision=revision, progress=DownloadLine())
        for notice in resolved.notices:
            note(f"note: {notice}")
        typer.echo(resolved.path)


@app.command()
def ls(as_json: Json = False, debug: Debug = False) -> None:
    """List the models on this machine, the last used first."""
    with _reporting(debug):
        from layermesh.listing import print_models

        print_models(as_json=as_json)


@app.command()
def rm(name: Annotated[str, typer.Argument(help="A name that `layermesh ls` shows.")], debug: Debug = False) -> None:
    """Delete a fetched model."""
    with _reporting(debug):
        from layermesh.shared.library import remove
        from layermesh.shared.units import format_bytes

        note(f"removed {name}, {format_bytes(remove(name))} freed")


def main() -> None:
    """Run the command line."""
    _prepare_streams()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # remarks of one library about another are not for the user's eyes
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from the interpreter's own end
        gc.freeze()  # nor a second spent on looking for garbage in torch and transformers
        gc.disable()


def _prepare_streams() -> None:
    """Stand in for streams that the caller has closed, and let no character fail that a stream cannot show."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def _open(
    model: str | None,
    device: str | None,
    device_memory: str | None,
    host_memory: str | None,
    dtype: str | None,
    revision: str | None,
    offline: bool,
    *,
    quiet: bool = False,
) -> Iterator["LayerMesh"]:
    from layermesh.mesh import LayerMesh
    from layermesh.shared.library import DEFAULT_MODEL

    with LayerMesh(
        DEFAULT_MODEL if model is None else model,
        device=device,
        device_memory=device_memory,
        host_memory=host_memory,
        dtype=dtype,
        revision=revision,
        offline=offline,
        progress=None if quiet else DownloadLine(),
    ) as mesh:
        for notice in () if quiet else mesh.local.notices:
            note(f"note: {notice}")
        yield mesh


@contextmanager
def _reporting(debug: bool) -> Iterator[None]:
    """Turn whatever goes wrong into one message and the right exit code."""
    try:
        yield
        sys.stdout.flush()  # what it cannot take should be known here
    except LayermeshError as error:
        _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        restart_line()
        _fail("interrupted", INTERRUPTED, debug)
    except BrokenPipeError:
        _abandon_stdout()
        raise typer.Exit(1) from None
    except MemoryError:
        _fail(_OUT_OF_MEMORY, OUT_OF_RESOURCES, debug)
    except OSError as error:
        _abandon_stdout()
        if error.errno == errno.ENOMEM:
            _fail(_OUT_OF_MEMORY, OUT_OF_RESOURCES, debug)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _fail(f"the system refused something: {error}.", OUT_OF_RESOURCES if full else 1, debug)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error}. This is a fault in layermesh; --debug shows where.", 1, debug)


def _abandon_stdout() -> None:
    """Send what is still to be written nowhere: the interpreter would complain about it once more at its end."""
    with suppress(OSError, ValueError):  # a stream without a number of its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, exit_code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    note(f"error: {message}")
    raise typer.Exit(exit_code) from None


def _prompt(text: str | None, ids: str | None) -> Any:
    """The prompt from the command line or standard input: a text, or a list of token ids."""
    if ids is not None:
        if text is not None:
            raise UsageError("give a prompt or --prompt-ids, not both.")
        try:
            return [int(token_id) for token_id in ids.split(",")]
        except ValueError as error:
            raise UsageError(f"--prompt-ids takes numbers with commas between them, such as 5,6,7, not {ids!r}.") from error
    if text is not None and text != "-":
        return text
    if text is None and sys.stdin.isatty():
        raise UsageError('there is no prompt. Say: layermesh generate "Why is the sky blue?"')
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text at byte {error.start}.") from error


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt
