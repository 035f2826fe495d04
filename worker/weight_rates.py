"""How fast a device goes through weights with one token, and how fast it multiplies large matrices."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import torch

from layermesh.shared.quant.choosing import rounded_form
from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.multiplying import multiply
from layermesh.shared.quant.native.kernel import native_kernel
from layermesh.shared.quant.plain import multiply as multiply_plain
from layermesh.shared.quant.plain import suits
from layermesh.shared.quant.sizes import DEFAULT_GROUP, KINDS
from layermesh.shared.quant.tiles import packing_tile
from layermesh.worker.buffers import Buffer
from layermesh.worker.machine import pick_dtype

MEASURED_BYTES: Final = 192 << 20  # of weights of a form: several times what the caches of most processors hold
SECONDS: Final = 0.25  # for each form
_LEAST_BYTES: Final = 32 << 20
_COLUMNS: Final = 4096  # as layers of a model of 7 billion parameters have
_MATRIX_BYTES: Final = 32 << 20  # of a matrix, so that calling it takes little beside it: packed layers are one call
_LEAST_PASSES: Final = 2
_VALUE: Final = 0.01  # any but zero, whose memory the system would not really give out
_DIGITS: Final = 0x77
_BYTES: Final = 0x3C  # of nested scales: those of rows become 0.0115
_HOST_ROWS: Final = 256
_CARD_ROWS: Final = 4096

_Product = Callable[[], torch.Tensor]


def measure_weight_rates(device: torch.device, budget_bytes: int, seconds: float = SECONDS) -> dict[str, float]:
    """Return, by form, the bytes of weights per second that products with one token reach on `device`.

    It takes half of `budget_bytes` at most, and `seconds` for each form or a few products.
    """
    most_bytes = max(min(MEASURED_BYTES, budget_bytes // 2), _LEAST_BYTES)
    native = pick_dtype(torch.bfloat16, device)
    dtypes = {torch.float32, native}
    if device.type == "cpu" and native_kernel() is not None:
        dtypes.add(torch.bfloat16)
    rates = {str(dtype).removeprefix("torch."): _plain_rate(device, dtype, most_bytes, seconds) for dtype in dtypes}
    for kind, bits in KINDS.items():
        rates[kind] = _packed_rate(device, rounded_form(bits, DEFAULT_GROUP), native, most_bytes, seconds)
    return rates


@torch.inference_mode()
def measure_flops(device: torch.device) -> float:
    """Return the operations per second of a large matrix product in the dtype that `device` does best."""
    rows = _HOST_ROWS if device.type == "cpu" else _CARD_ROWS
    dtype = pick_dtype(torch.bfloat16, device)
    inputs = torch.full((rows, _COLUMNS), _VALUE, dtype=dtype, device=device)
    weights = torch.full((_COLUMNS, _COLUMNS), _VALUE, dtype=dtype, device=device)
    seconds = [_time(device, [partial(torch.nn.functional.linear, inputs, weights)]) for _ in range(3)]
    return 2 * rows * _COLUMNS**2 / min(seconds[1:])


@torch.inference_mode()
def _plain_rate(device: torch.device, dtype: torch.dtype, most_bytes: int, seconds: float) -> float:
    token = torch.full((1, _COLUMNS), _VALUE, dtype=dtype, device=device)
    matrices = [_filled((rows, _COLUMNS), _VALUE, dtype, device) for rows in _cut(most_bytes, _COLUMNS * dtype.itemsize)]
    product = multiply_plain if suits(token, matrices[0]) else torch.nn.functional.linear
    products = [partial(product, token, matrix, None) for matrix in matrices]
    return sum(matrix.nbytes for matrix in matrices) / _median(device, products, matrices, seconds)


@torch.inference_mode()
def _packed_rate(device: torch.device, form: QuantForm, dtype: torch.dtype, most_bytes: int, seconds: float) -> float:
    token = torch.full((1, _COLUMNS), _VALUE, dtype=dtype, device=device)
    row_bytes = form.num_bytes(_COLUMNS, _COLUMNS) // _COLUMNS
    products: list[_Product] = []
    weights: list[torch.Tensor] = []
    num_bytes = 0
    for rows in _cut(most_bytes, row_bytes):
        packed = _filled(form.packed_shape(rows, _COLUMNS), _DIGITS, torch.uint8, device)
        scales = _filled(form.scales_shape(rows, _COLUMNS), _BYTES if form.nested else _VALUE, form.scales_dtype, device)
        products.append(partial(multiply, token, packed, scales, form, packing_tile()))
        weights += packed, scales
        num_bytes += form.num_bytes(rows, _COLUMNS)
    return num_bytes / _median(device, products, weights, seconds)


def _filled(shape: tuple[int, ...], value: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Weights as a stage has them: on the host in mapped memory, whose pages are large where the system has such."""
    if device.type != "cpu":
        return torch.full(shape, value, dtype=dtype, device=device)
    memory = Buffer(math.prod(shape) * dtype.itemsize).bytes
    return memory.view(dtype).view(shape).fill_(value)


def _cut(most_bytes: int, row_bytes: int) -> Iterator[int]:
    """Rows of matrices of _MATRIX_BYTES while there is room, or one in pieces of whole tiles where there is little."""
    rows = max(min(_MATRIX_BYTES, most_bytes // 2) // row_bytes // 64, 1) * 64
    for _ in range(max(most_bytes // (rows * row_bytes), 2)):
        yield rows


def _median(device: torch.device, products: Sequence[_Product], weights: Sequence[torch.Tensor], seconds: float) -> float:
    """Seconds of a pass through all `products`, one after the other, so that none finds its weights in a cache.

    Some caches hold them all: they are emptied before each pass where that can be done.
    """
    kernel = native_kernel() if device.type == "cpu" else None

    def timed() -> float:
        if kernel is not None:
            for matrix in weights:
                kernel.chill(matrix)
        return _time(device, products)

    timed()  # makes whatever is made once
    ends = time.perf_counter() + seconds
    times: list[float] = []
    while len(times) < _LEAST_PASSES or time.perf_counter() < ends:
        times.append(timed())
    return statistics.median(times)


def _time(device: torch.device, products: Sequence[_Product]) -> float:
    began = time.perf_counter()
    for product in products:
        product()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(time.perf_counter() - began, 1e-9)
