"""The parameters of a block as their checkpoint has them: quants that can be kept, or weights in full precision."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from layermesh.shared.checkpoints.decoding import decode
from layermesh.shared.checkpoints.json_files import unreadable
from layermesh.shared.checkpoints.layout import truncated
from layermesh.shared.checkpoints.tensors import StoredTensor, as_matrix
from layermesh.shared.model.blocks import TRANSPOSED_BYTES
from layermesh.shared.model.recipes import Conversion, Copy, Recipe, TransposedCopy
from layermesh.shared.quant.forms import QuantForm
from layermesh.shared.quant.gguf_quants import KEPT_FORMS, keep_quants
from layermesh.shared.quant.quants import Quants, widen


class ParameterReader:
    """Reads what `recipes` make. Matrices come some rows at a time; what must be converted is made once and kept."""

    def __init__(self, recipes: Sequence[Recipe]) -> None:
        self._copies: dict[str, list[Copy]] = defaultdict(list)
        self._transposed: dict[str, list[TransposedCopy]] = defaultdict(list)
        self._conversions: dict[str, Conversion] = {}
        self._made: dict[str, torch.Tensor] = {}
        for recipe in recipes:
            if isinstance(recipe, Conversion):
                self._conversions |= dict.fromkeys(recipe.targets, recipe)
            elif isinstance(recipe, TransposedCopy):
                self._transposed[recipe.target].append(recipe)
            else:
                self._copies[recipe.target].append(recipe)

    def kept_form(self, target: str) -> QuantForm | None:
        """Return the form that holds the quants of `target` as they are; None where it has none such."""
        copies = self._copies.get(target, [])
        if not copies or target in self._conversions or any(copy.source.encoding not in KEPT_FORMS for copy in copies):
            return None
        forms = {KEPT_FORMS[copy.source.encoding] for copy in copies}
        return forms.pop() if len(forms) == 1 else QuantForm(8, min(form.group for form in forms))

    def is_quantised(self, target: str) -> bool:
        """Whether `target` is stored in one of GGUF's quantisations."""
        return any(copy.source.dtype is None for copy in self._copies.get(target, []))

    def quants(self, target: str, start: int, end: int) -> Quants:
        """Return the kept quants of rows `[start, end)` of `target`."""
        form = self.kept_form(target)
        assert form is not None
        parts = []
        for copy in self._copies[target]:
            rows, raw = _raw_rows(copy, start, end)
            if len(rows):
                parts.append((rows, widen(keep_quants(raw, copy.source.encoding), form)))
        order = torch.cat([rows for rows, _ in parts]).argsort()
        fields = (torch.cat([getattr(part, name) for _, part in parts])[order] for name in ("values", "scale", "zero"))
        return Quants(form, *fields)

    def weights(self, target: str, start: int, end: int) -> torch.Tensor:
        """Return rows `[start, end)` of `target`, float32 `[rows, columns]`."""
        if target in self._conversions:
            made = self._converted(target)
            return made.view(-1, made.shape[-1])[start:end].float()
        columns = as_matrix(self._copies[target][0].source).shape[1]
        weights = torch.empty(end - start, columns)
        for copy in self._copies[target]:
            rows, raw = _raw_rows(copy, start, end)
            if len(rows):
                weights[rows - start] = _decoded(raw, copy.source.encoding, columns)
        return weights

    def whole(self, target: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return all of `target` in `shape` and `dtype`."""
        if target in self._conversions:
            return self._converted(target).to(dtype).view(shape)
        made = torch.empty(shape, dtype=dtype)
        for transposed in self._transposed.get(target, []):
            for part in transposed.parts(TRANSPOSED_BYTES):
                stored = transposed.stored(*part)
                raw = [_read(source.path, source.offset, source.num_bytes) for source in stored]
                transposed.place(raw, part, made)
        for copy in self._copies.get(target, []):
            source = as_matrix(copy.source)
            decoded = torch.empty(source.shape, dtype=dtype)
            decode(_read(source.path, source.offset, source.num_bytes), source.encoding, decoded)
            if copy.rows is None:
                made.view(-1)[copy.start : copy.start + decoded.numel()] = decoded.view(-1)
            else:
                made.view(-1, source.shape[1])[copy.rows] = decoded
        return made

    def _converted(self, target: str) -> torch.Tensor:
        if target not in self._made:
            conversion = self._conversions[target]
            dtype = conversion.dtype or torch.float32
            made = conversion.combine([read_whole(source, dtype) for source in conversion.sources])

            self._made = {name: made[name] for name in conversion.targets if name in made}
        return self._made[target]


def read_whole(source: StoredTensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a stored tensor decoded to `dtype`; raises CheckpointError where its file cannot be read."""
    decoded = torch.empty(source.shape, dtype=dtype)
    if source.num_elements:
        decode(_read(source.path, source.offset, source.num_bytes), source.encoding, decoded)
    return decoded


def raw_chunks(source: StoredTensor, num_bytes: int) -> Iterator[torch.Tensor]:
    """Return the stored bytes, uint8, at most `num_bytes` at a time."""
    for start in range(0, source.num_bytes, num_bytes):
        yield _read(source.path, source.offset + start, min(num_bytes, source.num_bytes - start))


def _raw_rows(copy: Copy, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of the target's rows `[start, end)` a copy makes, int64, and their stored bytes, uint8 `[rows, bytes]`."""
    source = as_matrix(copy.source)
    num_rows, columns = source.shape
    row_bytes = source.num_bytes // max(num_rows, 1)
    if copy.rows is None:
        begin = copy.start // columns
        first, last = max(start, begin), min(end, begin + num_rows)
        if first >= last:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, row_bytes, dtype=torch.uint8)
        raw = _read(source.path, source.offset + (first - begin) * row_bytes, (last - first) * row_bytes)
        return torch.arange(first, last), raw.view(-1, row_bytes)
    wanted = ((copy.rows >= start) & (copy.rows < end)).nonzero().view(-1)
    raw = torch.empty(len(wanted), row_bytes, dtype=torch.uint8)
    for begin, stop in _runs(wanted):
        offset = source.offset + int(wanted[begin]) * row_bytes
        raw[begin:stop] = _read(source.path, offset, (stop - begin) * row_bytes).view(-1, row_bytes)
    return copy.rows[wanted], raw


def _runs(numbers: torch.Tensor) -> Iterator[tuple[int, int]]:
    """Cut ascending `numbers` where they skip some."""
    if len(numbers) == 0:
        return
    cuts = ((numbers.diff() != 1).nonzero().view(-1) + 1).tolist()
    yield from zip([0, *cuts], [*cuts, len(numbers)], strict=True)


def _decoded(raw: torch.Tensor, encoding: str, columns: int) -> torch.Tensor:
    decoded = torch.empty(len(raw), columns)
    decode(raw.view(-1), encoding, decoded)
    return decoded


def _read(path: Path, offset: int, num_bytes: int) -> torch.Tensor:
    data = torch.empty(num_bytes, dtype=torch.uint8)
    view, done = data.numpy().data, 0
    try:
        with path.open("rb", buffering=0) as file:
            while done < num_bytes:
                count = os.preadv(file.fileno(), [view[done:]], offset + done)
                if count == 0:
                    raise truncated(path, offset + num_bytes, offset + done)
                done += count
    except OSError as error:
        raise unreadable(path, error) from error
    return data
