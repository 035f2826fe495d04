"""Embeddings whose tables stay on disk: only the rows of the tokens at hand are read."""

from typing import Any

import torch
from torch import nn

from layermesh.shared.checkpoints.tensors import StoredTensor, as_matrix, stored_rows
from layermesh.worker.loading import BlockLoader


class RowLookup:
    """Stands in for the table of one embedding module; the module's own forward runs on the few rows it needs."""

    def __init__(self, module: nn.Embedding, table: StoredTensor, loader: BlockLoader, device: torch.device) -> None:
        self._module = module
        self._table = as_matrix(table)
        self._loader = loader
        self._device = device
        self._dtype = module.weight.dtype
        self._forward: Any = module.forward
        self._absent = nn.Parameter(_absent(self._table.shape, self._dtype, device), requires_grad=False)
        module.padding_idx = None  # means nothing without gradients, and would not fit the few rows
        module._parameters["weight"] = self._absent
        module.forward = self  # type: ignore[method-assign, assignment]

    def __call__(self, token_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output for `token_ids`, of any shape."""
        distinct, places = torch.unique(token_ids, return_inverse=True)
        self._module._parameters["weight"] = nn.Parameter(self.rows(distinct.tolist()), requires_grad=False)
        try:
            return self._forward(places, *args, **kwargs)
        finally:
            self._module._parameters["weight"] = self._absent

    def rows(self, token_ids: list[int]) -> torch.Tensor:
        """Read rows of the table: `[len(token_ids), hidden]` on the device.

        Raises IndexError for an id that the table has no row for: what lies there in the file is something else.
        """
        num_rows = self._table.shape[0]
        if outside := [token_id for token_id in token_ids if not 0 <= token_id < num_rows]:
            raise IndexError(f"token id {outside[0]} is not one of the vocabulary's {num_rows}")
        rows = torch.empty(len(token_ids), self._table.shape[1], dtype=self._dtype)
        for row, token_id in zip(rows, token_ids, strict=True):
            self._loader.read(stored_rows(self._table, token_id, token_id + 1), row[None])
        return rows.to(self._device)


def leave_blank(module: nn.Embedding, device: torch.device) -> None:
    """Let an embedding module whose values nobody looks at return zeros, for which there is neither memory nor a file."""
    table = torch.zeros(1, dtype=module.weight.dtype, device=device).expand(module.weight.shape)
    module._parameters["weight"] = nn.Parameter(table, requires_grad=False)


def _absent(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A table that is not there: its shape and dtype without its memory, and NaN wherever somebody looks."""
    return torch.full((1,), float("nan"), dtype=dtype, device=device).expand(shape)
