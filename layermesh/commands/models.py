"""`layermesh pull`, `quantize`, `ls` and `rm`."""

from pathlib import Path
from typing import Annotated

import typer

from layermesh.cli_options import Debug, GroupSize, Json, NoFastPath, Offline, Revision
from layermesh.commands.app import app
from layermesh.reporting import reporting
from layermesh.settings import check_packing
from layermesh.terminal import DownloadLine, note


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


@app.command("quantize")
def quantize_model(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder, a .gguf file, a hub id or a pulled name.")],
    to: Annotated[str, typer.Option("--to", help="int4 or int8.")] = "int4",
    group_size: GroupSize = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new folder for it.  [default: in the cache, as for --quantize]")
    ] = None,
    no_fast_path: NoFastPath = False,
    revision: Revision = None,
    offline: Offline = False,
    debug: Debug = False,
) -> None:
    """Pack a model into 4 or 8 bits; the original stays as it is."""
    with reporting(debug):
        form = check_packing(to, group_size)
        from layermesh.cli_quantize import print_packed
        from layermesh.shared.packing.request import PackRequest

        print_packed(model, PackRequest(*form, fused=not no_fast_path), output, revision=revision, offline=offline)


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
