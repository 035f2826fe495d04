"""What must be the same on two machines for the same product to have the same bits."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from layermesh.shared.quant.native.building import source_hash
from layermesh.shared.quant.native.kernel import native_kernel
from layermesh.worker.machine import pick_dtype


def compute_fingerprint(device: torch.device) -> str:
    """Return a line that names the libraries, the device, what it can do, and how many threads share its work."""
    return "; ".join(
        (
            f"torch {torch.__version__}",
            f"transformers {_version('transformers')}",
            _cpu() if device.type == "cpu" else _card(device),
            f"{str(pick_dtype(torch.bfloat16, device)).removeprefix('torch.')}",
        )
    )


def device_name(device: torch.device) -> str:
    """Return what people call `device`: "cpu, 8 threads" or the card's name."""
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    return str(torch.cuda.get_device_name(device))


def _cpu() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    kernel = native_kernel()
    ours = "none" if kernel is None else f"{source_hash()}{' bytes' if kernel.has_fast_many else ''}"
    return f"cpu {platform.machine()} {capability}, {torch.get_num_threads()} threads; our kernel {ours}"


def _card(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} sm_{major}{minor}, CUDA {torch.version.cuda}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
