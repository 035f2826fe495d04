"""`layermesh plan`."""

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
from layermesh.reporting import reporting


@app.command()
def plan(
    model: Model = None,
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
    what_if: Annotated[
        list[str] | None,
        typer.Option("--what-if", help="One more worker, such as 8GB,disk=3GB/s,weights=30GB/s; several times."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a model's blocks, what would stay in memory, what would stream, and how fast that should be."""
    with reporting(debug):
        options = opening_options(
            device, device_memory, host_memory, dtype, no_fast_path, quantize, group_size, context, revision, offline
        )
        options.update(mesh_options(worker, no_discovery=no_discovery, spread=spread, alone=alone))
        with open_mesh(model, options) as mesh:
            from layermesh.cli_plan import print_plan

            print_plan(mesh, what_if or (), as_json=as_json)
