"""Pictures that cannot be read, where a run goes on without them (`--skip-corrupt`)."""
import logging
from typing import Set

from rs_timm.data import MultiResLoader

from .processes import gather, is_first_process

__all__ = ['DamagedPictures']

_logger = logging.getLogger(__name__)


class DamagedPictures:
    """Those of a run that a warning has named."""

    def __init__(self) -> None:
        self._reported: Set[str] = set()

    def report(self, loader: MultiResLoader, purpose: str) -> None:
        """Warn of pictures that no process could read, each of them once in a run; all processes must call it.

        Args:
            loader: after an epoch; one that stops at such pictures has none to report.
            purpose: what they were read for, in words.
        """
        if not loader.skip_corrupt:
            return
        lines = [line for damaged in gather(loader.damaged) for line in damaged]
        new = [line for line in dict.fromkeys(lines) if line not in self._reported]
        self._reported.update(new)
        if new and is_first_process():
            _logger.warning('%d pictures could not be read in %s, the first: %s', len(new), purpose, new[0])
