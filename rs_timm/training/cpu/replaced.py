"""Other functions in place of torch's, for as long as a block runs."""
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from torch.overrides import TorchFunctionMode

__all__ = ['Replaced']


class Replaced(TorchFunctionMode):
    """Within it, each function of torch that `table` names is called through the one that stands beside it.

    >>> import torch
    >>> class NoDropout(Replaced):
    ...     table = {torch.nn.functional.dropout: lambda input, *args, **kwargs: input}
    >>> with NoDropout():
    ...     torch.nn.Dropout(0.5)(torch.ones(4))
    tensor([1., 1., 1., 1.])
    """

    table: Mapping[Callable[..., Any], Callable[..., Any]] = {}

    def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: Tuple[Any, ...] = (),
            kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        return self.table.get(func, func)(*args, **(kwargs or {}))
