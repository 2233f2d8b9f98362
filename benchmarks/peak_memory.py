"""How much memory tensors hold, whatever the device and the C library do with it."""
import weakref
from typing import Any, Dict, Optional, Set, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """The largest number of bytes, `peak`, that tensors made within it held at one time.

    >>> with PeakMemory() as memory:
    ...     for _ in range(3):
    ...         x = torch.zeros(100) + torch.zeros(100)
    >>> memory.peak  # two terms and their sum, and the sum of the round before
    1600
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.seen: Set[int] = set()

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size

    def __torch_dispatch__(
            self,
            func: Any,
            types: Any,
            args: Tuple[Any, ...] = (),
            kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.seen:
                    self.seen.add(key)
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._free, key, size)
        return out
