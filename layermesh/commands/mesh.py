"""`layermesh worker` and `layermesh status`."""

from pathlib import Path
from typing import Annotated

import typer

from layermesh.cli_options import Debug, Device, DeviceMemory, HostMemory, Json, NoDiscovery, Worker
from layermesh.commands.app import app
from layermesh.interrupts import ending
from layermesh.reporting import reporting
from layermesh.settings import OpeningOptions, check_opening


@app.command()
def worker(
    name: Annotated[
        str | None, typer.Option(envvar="LAYERMESH_NAME", help="What to call it.  [default: the host's name]")
    ] = None,
    device: Device = None,
    device_memory: DeviceMemory = None,
    host_memory: HostMemory = None,
    host: Annotated[
        str | None, typer.Option(envvar="LAYERMESH_HOST", help="Address to listen at.  [default: all of this machine's]")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, envvar="LAYERMESH_PORT", help="Port to listen at.  [default: 50700, or any that is free]"
        ),
    ] = None,
    no_discovery: Annotated[bool, typer.Option("--no-discovery", help="Do not announce it on the network.")] = False,
    store: Annotated[
        Path | None, typer.Option(envvar="LAYERMESH_STORE", help="Folder for the parts of models that it runs.")
    ] = None,
    store_limit: Annotated[
        str | None, typer.Option(envvar="LAYERMESH_STORE_LIMIT", help="Most that may take, such as 40GB.  [default: the disk]")
    ] = None,
    join: Annotated[
        str | None, typer.Option(envvar="LAYERMESH_JOIN", help="What `layermesh invite` printed: join that mesh, then serve.")
    ] = None,
    join_file: Annotated[Path | None, typer.Option(help="A file with what `layermesh invite` printed.")] = None,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT where `layermesh invite` runs.  [default: looks for it]")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no live line.")] = False,
    debug: Debug = False,
) -> None:
    """Run a part of models for whoever says `layermesh generate` on this network."""
    with reporting(debug):
        options = OpeningOptions(device=device, device_memory=device_memory, host_memory=host_memory)
        check_opening(options)
        with ending(at_once=True):
            from layermesh.cli_worker import WorkerOptions, run_worker
            from layermesh.pairing import JoinOptions

        joining = JoinOptions(join, join_file, coordinator)
        code = run_worker(options, WorkerOptions(name, host, port, not no_discovery, store, store_limit, quiet, joining))
    if code:
        raise typer.Exit(code)


@app.command()
def status(
    worker: Worker = None,
    no_discovery: NoDiscovery = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which workers there are, what they have, and what they run."""
    with reporting(debug):
        options = OpeningOptions(workers=list(worker or ()), discover=not no_discovery)
        check_opening(options)
        from layermesh.cli_status import print_status

        print_status(options, watch=watch, as_json=as_json)
