"""The command line. Heavy imports happen inside the command that needs them."""

import gc
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from layermesh import __version__
from layermesh.interrupts import INTERRUPTED, catch_interrupts, check_interrupt, end_interrupted, ending, was_interrupted
from layermesh.reporting import prepare_streams, reporting
from layermesh.settings import (
    MAX_SESSIONS,
    GenerationSettings,
    OpeningOptions,
    Prompt,
    check_batch,
    check_length,
    check_opening,
    check_prompt,
    check_sampling,
)
from layermesh.shared.errors import UsageError
from layermesh.terminal import DownloadLine, note

if TYPE_CHECKING:
    from layermesh.mesh import LayerMesh

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
NoFastPath = Annotated[
    bool,
    typer.Option("--no-fast-path", envvar="LAYERMESH_NO_FAST_PATH", help="Run transformers' own layers, to the bit."),
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
    input_path: Annotated[
        str | None, typer.Option("--input", help="Answer every line of this JSONL file; - for standard input.")
    ] = None,
    output_path: Annotated[
        str | None, typer.Option("--output", help="Append the answers to --input here, and go on where it ends.")
    ] = None,
    sessions: Annotated[int | None, typer.Option(help="Most prompts of --input that share a sweep.  [default: 32]")] = None,
    device: Device = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    dtype: Dtype = None,
    no_fast_path: NoFastPath = False,
    revision: Revision = None,
    offline: Offline = False,
    alone: Alone = False,  # noqa: ARG001 - there is nobody to look for yet
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the text and errors.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer a prompt; the text streams to stdout as it is made. With --input: many prompts, in the same sweeps."""
    with reporting(debug):
        check_batch(input_path, output_path, sessions, prompt if prompt_ids is None else prompt_ids)
        given = None if input_path is not None else _prompt(prompt, prompt_ids)
        if given is not None:
            check_prompt(given, raw=raw)
        check_length(max_new_tokens)
        settings = GenerationSettings(
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
        options = _options(device, device_memory, host_memory, dtype, no_fast_path, revision, offline)
        check_opening(options)
        with ending(at_once=True):
            check_sampling(settings)
        if input_path is not None:
            from layermesh.cli_batch import answer_batch

            opening = partial(_open, model, options, quiet=quiet)
            answer_batch(input_path, output_path, settings, opening, max_sessions=sessions or MAX_SESSIONS, quiet=quiet)
        if given is None:
            return
        with _open(model, options, quiet=quiet) as mesh:
            from layermesh.cli_generate import print_answer

            print_answer(mesh, given, settings, as_json=as_json, quiet=quiet)


@app.command()
def plan(
    model: Model = None,
    device: Device = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    dtype: Dtype = None,
    no_fast_path: NoFastPath = False,
    revision: Revision = None,
    offline: Offline = False,
    alone: Alone = False,  # noqa: ARG001 - there is nobody to look for yet
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a model's blocks, what would stay in memory, what would stream, and how fast that should be."""
    with reporting(debug):
        options = _options(device, device_memory, host_memory, dtype, no_fast_path, revision, offline)
        with _open(model, options) as mesh:
            from layermesh.cli_plan import print_plan

            print_plan(mesh.local, as_json=as_json)


@app.command()
def bench(
    model: Model = None,
    device: Device = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    dtype: Dtype = None,
    no_fast_path: NoFastPath = False,
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure this machine with a model: disk, weights, prefill, decode, and how near the bound that comes."""
    with reporting(debug):
        options = _options(device, device_memory, host_memory, dtype, no_fast_path, revision, offline)
        with _open(model, options) as mesh:
            from layermesh.cli_bench import print_bench

            print_bench(mesh, as_json=as_json)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name of the catalog, or a hub id.")],
    revision: Revision = None,
    debug: Debug = False,
) -> None:
    """Fetch a model."""
    with reporting(debug):
        from layermesh.shared.library import resolve

        resolved = resolve(name, revision=revision, progress=DownloadLine())
        for notice in resolved.notices:
            note(f"note: {notice}")
        typer.echo(resolved.path)


@app.command()
def ls(as_json: Json = False, debug: Debug = False) -> None:
    """List the models on this machine, the last used first."""
    with reporting(debug):
        from layermesh.cli_list import print_models

        print_models(as_json=as_json)


@app.command()
def rm(name: Annotated[str, typer.Argument(help="A name that `layermesh ls` shows.")], debug: Debug = False) -> None:
    """Delete a fetched model."""
    with reporting(debug):
        from layermesh.shared.library import remove
        from layermesh.shared.units import format_bytes

        note(f"removed {name}, {format_bytes(remove(name))} freed")


def main() -> None:
    """Run the command line."""
    catch_interrupts()
    prepare_streams()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # remarks of one library about another are not for the user's eyes
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except SystemExit as end:
        if was_interrupted():
            end_interrupted(said=end.code == INTERRUPTED)
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from the interpreter's own end
        gc.freeze()  # nor a second spent on looking for garbage in torch and transformers
        gc.disable()


def _options(
    device: str | None,
    device_memory: str | None,
    host_memory: str | None,
    dtype: str | None,
    no_fast_path: bool,
    revision: str | None,
    offline: bool,
) -> OpeningOptions:
    return OpeningOptions(
        device=device,
        device_memory=device_memory,
        host_memory=host_memory,
        dtype=dtype,
        fast_path=not no_fast_path,
        revision=revision,
        offline=offline,
    )


@contextmanager
def _open(model: str | None, options: OpeningOptions, *, quiet: bool = False) -> Iterator["LayerMesh"]:
    """Open the model, after a look at what can be known to be wrong before anything heavy is imported."""
    from layermesh.shared.library import DEFAULT_MODEL, resolve
    from layermesh.shared.library.names import looks_like_path

    name = DEFAULT_MODEL if model is None else model
    check_opening(options)
    if looks_like_path(name):
        resolve(name, revision=options.get("revision"))
    with ending(at_once=True):  # C extensions swallow a KeyboardInterrupt
        from layermesh.mesh import LayerMesh

    options["progress"] = None if quiet else DownloadLine()
    with LayerMesh(name, **options) as mesh:
        check_interrupt()
        for notice in () if quiet else mesh.local.notices:
            note(f"note: {notice}")
        yield mesh


def _prompt(text: str | None, ids: str | None) -> Prompt:
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
