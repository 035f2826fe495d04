"""Options that several commands share."""

from typing import Annotated

import typer

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
Quantize = Annotated[
    str | None,
    typer.Option(envvar="LAYERMESH_QUANTIZE", help="int4 or int8: pack the model once, and run it from its packed form."),
]
GroupSize = Annotated[
    int | None,
    typer.Option(envvar="LAYERMESH_GROUP_SIZE", help="Weights that share a scale: 32, 64 or 128.  [default: 32]"),
]
Context = Annotated[
    int | None,
    typer.Option(envvar="LAYERMESH_CONTEXT", help="Most tokens of prompt and answer.  [default: what the model states]"),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Offline = Annotated[bool, typer.Option("--offline", envvar="LAYERMESH_OFFLINE", help="Use only what is on this machine.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Debug = Annotated[bool, typer.Option("--debug", envvar="LAYERMESH_DEBUG", help="Show tracebacks.")]
Alone = Annotated[bool, typer.Option("--alone", envvar="LAYERMESH_ALONE", help="Look for no other machines.")]
Worker = Annotated[
    list[str] | None,
    typer.Option(
        "--worker", envvar="LAYERMESH_WORKER", help="A machine that runs `layermesh worker`, as HOST:PORT; several times."
    ),
]
NoDiscovery = Annotated[
    bool, typer.Option("--no-discovery", envvar="LAYERMESH_NO_DISCOVERY", help="Use only machines named with --worker.")
]
Spread = Annotated[
    bool,
    typer.Option("--spread", envvar="LAYERMESH_SPREAD", help="Give every worker a part, even where fewer would be faster."),
]
