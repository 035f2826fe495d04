"""`layermesh generate`."""

from functools import partial
from typing import Annotated

import typer

from layermesh.cli_options import (
    Alone,
    Context,
    Debug,
    Device,
    DeviceMemory,
    Dtype,
    GroupSize,
    HostMemory,
    Json,
    Model,
    NoDiscovery,
    NoFastPath,
    Offline,
    Quantize,
    Revision,
    Spread,
    Worker,
)
from layermesh.commands.app import app
from layermesh.commands.opening import mesh_options, open_mesh, opening_options
from layermesh.commands.prompt import read_prompt
from layermesh.commands.template import chosen_template, template_variables
from layermesh.interrupts import ending
from layermesh.reporting import reporting
from layermesh.settings import (
    MAX_SESSIONS,
    GenerationSettings,
    check_batch,
    check_length,
    check_opening,
    check_prompt,
    check_resuming,
    check_sampling,
)
from layermesh.terminal import note


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
    chat_template: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Which of the model's chat templates, or a file with another.")
    ] = None,
    template_arg: Annotated[
        list[str] | None,
        typer.Option("--template-arg", metavar="NAME=JSON", help="A variable of the template: enable_thinking=false."),
    ] = None,
    prompt_ids: Annotated[str | None, typer.Option(help="Token ids instead of text, such as 5,6,7.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on to the limit, past the end of the text.")] = False,
    input_path: Annotated[
        str | None, typer.Option("--input", help="Answer every line of this JSONL file; - for standard input.")
    ] = None,
    output_path: Annotated[
        str | None, typer.Option("--output", help="Append the answers to --input here, and go on where it ends.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the last answer that was interrupted, or the one with this ID.")
    ] = False,
    sessions: Annotated[int | None, typer.Option(help="Most prompts of --input that share a sweep.  [default: 32]")] = None,
    device: Device = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    dtype: Dtype = None,
    no_fast_path: NoFastPath = False,
    quantize: Quantize = None,
    group_size: GroupSize = None,
    context: Context = None,
    revision: Revision = None,
    offline: Offline = False,
    worker: Worker = None,
    no_discovery: NoDiscovery = False,
    spread: Spread = False,
    alone: Alone = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the text and errors.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer a prompt; the text streams to stdout as it is made. With --input: many prompts, in the same sweeps.

    An answer that was interrupted goes on with --resume.
    """
    with reporting(debug):
        check_batch(input_path, output_path, sessions, prompt if prompt_ids is None else prompt_ids)
        given = None if input_path is not None or resume else read_prompt(prompt, prompt_ids)
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
            chat_template=chosen_template(chat_template),
            chat_template_kwargs=template_variables(template_arg or ()),
        )
        options = opening_options(
            device, device_memory, host_memory, dtype, no_fast_path, quantize, group_size, context, revision, offline
        )
        options.update(mesh_options(worker, no_discovery=no_discovery, spread=spread, alone=alone))
        check_opening(options)
        if resume:
            check_resuming(settings, input_path, prompt_ids)
            from layermesh.cli_resume import resume_answer

            resume_answer(prompt, model, options, as_json=as_json, quiet=quiet)
            return
        with ending(at_once=True):
            check_sampling(settings)
        if input_path is not None:
            from layermesh.cli_batch import answer_batch

            opening = partial(open_mesh, model, options, quiet=quiet)
            answer_batch(input_path, output_path, settings, opening, max_sessions=sessions or MAX_SESSIONS, quiet=quiet)
        if given is None:
            return
        from layermesh.journals import new_journal

        with open_mesh(model, options, quiet=quiet) as mesh:
            from layermesh.cli_generate import cannot_resume, print_answer

            with new_journal(lambda error: None if quiet else note(cannot_resume(error))) as journal:
                print_answer(mesh, given, settings, journal, as_json=as_json, quiet=quiet)
