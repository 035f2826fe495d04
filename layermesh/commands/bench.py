"""`layermesh bench`."""

from layermesh.cli_options import (
    Context,
    Debug,
    Device,
    DeviceMemory,
    Dtype,
    GroupSize,
    HostMemory,
    Json,
    Model,
    NoFastPath,
    Offline,
    Quantize,
    Revision,
)
from layermesh.commands.app import app
from layermesh.commands.opening import open_mesh, opening_options
from layermesh.reporting import reporting


@app.command()
def bench(
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
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure this machine with a model: disk, weights, prefill, decode, and how near the bound that comes."""
    with reporting(debug):
        options = opening_options(
            device, device_memory, host_memory, dtype, no_fast_path, quantize, group_size, context, revision, offline
        )
        options["alone"] = True
        with open_mesh(model, options) as mesh:
            from layermesh.cli_bench import print_bench

            print_bench(mesh, as_json=as_json)
