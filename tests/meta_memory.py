"""The memory that tensors take, told from tensors without content."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside its context.

    Attributes:
        peak: the most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                # The object lives as long as the memory, however many tensors share it.
                if id(storage) not in self._sizes:
                    self._sizes[id(storage)] = storage.nbytes()
                    weakref.finalize(storage, self._sizes.pop, id(storage))
        self.peak = max(self.peak, sum(self._sizes.values()))
        return result
