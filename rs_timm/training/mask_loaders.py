"""The loaders of a run for segmentation."""
from typing import Any, Iterable, List, Tuple

from rs_timm.data import MultiResLoader, create_mask_loader

from .loaders import Loaders

__all__ = ['MaskLoaders']


class MaskLoaders(Loaders):
    """As `Loaders`, of pictures with masks: see `rs_timm.data.MaskFolder` for the folder's layout."""

    def _class_names(self) -> List[str]:
        for loader in (self.training(0), self.evaluation(self.recipe.resolutions)):  # both splits must be there
            assert loader.dataset.classes == self.recipe.labels
        return list(self.recipe.labels)

    def _file_names(self) -> List[str]:
        dataset: Any = self._made[True].dataset
        return [file.name for pair in dataset.pairs for file in pair]

    def training(self, epoch: int) -> MultiResLoader:
        """The loader for the sizes of `epoch`; set its epoch before use."""
        recipe = self.recipe
        return self._loader(
            True,
            recipe.sizes(epoch).values(),
            scale=recipe.crop_scale,
            ratio=recipe.crop_ratio,
            hflip=recipe.hflip,
            color_jitter=recipe.color_jitter or None,
        )

    def evaluation(self, sizes: Iterable[int]) -> MultiResLoader:
        """The loader of the pictures that the network is measured on."""
        return self._loader(False, sizes)

    def _create(self, source: Any, sizes: Tuple[int, ...], **kwargs: Any) -> MultiResLoader:
        common = {key: value for key, value in self.common.items() if key != 'mode'}
        labels, ignored = self.recipe.labels, self.recipe.ignore_label
        return create_mask_loader(source, sizes, classes=labels, ignore_label=ignored, **common, **kwargs)
