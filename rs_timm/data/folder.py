"""Pictures of a folder in a fixed random order, without labels."""
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterator, List, Optional, Union

import torch
from PIL import Image

from rs_timm.pictures import ImageError, open_image

__all__ = ['ImageFiles']


class ImageFiles:
    """The pictures below `folder`, at any depth, in an order that is random and always the same.

    Random, since folders are often sorted by class and the first pictures then show one class alone.

    Args:
        folder: searched for files whose name ends like a picture's (`.jpg`, `.png`, ...); links to folders are not
            followed.
        seed: of the order.

    Attributes:
        files: their paths, in order.
        unreadable: one line for each file that turned out to be no picture, so far.

    Raises:
        ValueError: no such folder, or no pictures in it.
    """

    def __init__(self, folder: Union[str, 'os.PathLike[str]'], seed: int = 0) -> None:
        if not os.path.isdir(folder):
            raise ValueError(f'{folder}: no such folder; expected one with pictures.')
        endings = tuple(Image.registered_extensions())
        self.files = sorted(path for path in Path(folder).rglob('*') if path.name.lower().endswith(endings))
        if not self.files:
            raise ValueError(f'{folder}: no pictures in it (.jpg, .png, ...).')
        random.Random(seed).shuffle(self.files)
        self.unreadable: List[str] = []

    def batches(
            self,
            transform: Callable[[Image.Image], torch.Tensor],
            batch_size: int,
            threads: Optional[int] = None,
    ) -> Iterator[torch.Tensor]:
        """Batches [N, ...] of transformed pictures, N = `batch_size` but for the last; unreadable ones are left out."""
        def load(path: Path) -> Union[torch.Tensor, ImageError]:
            try:
                return transform(open_image(path))
            except ImageError as error:
                return error

        with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
            batch: List[torch.Tensor] = []
            for start in range(0, len(self.files), batch_size):
                for loaded in pool.map(load, self.files[start:start + batch_size]):
                    if isinstance(loaded, torch.Tensor):
                        batch.append(loaded)
                    elif str(loaded) not in self.unreadable:
                        self.unreadable.append(str(loaded))
                if len(batch) >= batch_size:
                    yield torch.stack(batch[:batch_size])
                    batch = batch[batch_size:]
            if batch:
                yield torch.stack(batch)
