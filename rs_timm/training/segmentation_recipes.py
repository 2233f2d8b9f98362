"""Recipes for segmentation: NYUDv2, as far as the paper describes it, and CamVid on a small machine."""
from dataclasses import dataclass, replace
from typing import Dict, Tuple, Type

from .recipe import Recipe

__all__ = ['SEGMENTATION_RECIPES']

_CAMVID = (
    'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist')
_NYUDV2 = (
    'wall', 'floor', 'cabinet', 'bed', 'chair', 'sofa', 'table', 'door', 'window', 'bookshelf', 'picture', 'counter',
    'blinds', 'desk', 'shelves', 'curtain', 'dresser', 'pillow', 'mirror', 'floor mat', 'clothes', 'ceiling', 'books',
    'refrigerator', 'television', 'paper', 'towel', 'shower curtain', 'box', 'whiteboard', 'person', 'night stand',
    'toilet', 'sink', 'lamp', 'bathtub', 'bag', 'other structure', 'other furniture', 'other prop')


@dataclass(frozen=True)
class RSRefineNetNYUDv2(Recipe):
    """rs_refinenet_resnet101 on NYUDv2: 795 training and 654 test pictures, 40 classes (Appendix B).

    Sizes, classes and split are the paper's. It gives no settings of the optimizer: these are ours. Mask values are 1
    to 40, and 0 for none.

    Run card:
        command   torchrun --nproc-per-node 4 -m rs_timm train rs_refinenet_resnet101 --data DIR --recipe
                  rs_refinenet_nyudv2 --splits train test --init resnet101.a1_in1k
        expected  mean IoU 44.1 / 42.6 / 32.1 at 352 / 224 / 96 (paper, Table 7)
        reached   not run
    """

    task: str = 'segmentation'
    labels: Tuple[str, ...] = _NYUDV2
    ignore_label: int = 0
    resolutions: Tuple[int, ...] = (352, 224, 96)
    epochs: int = 200
    batch_size: int = 16
    opt: str = 'adamw'
    lr: float = 2e-4
    weight_decay: float = 1e-2
    clip_grad: float = 1.
    sched: str = 'poly'
    decay_rate: float = 0.9  # the power, in timm's poly
    warmup_epochs: float = 5.
    crop_scale: Tuple[float, ...] = (0.25, 1.)
    crop_ratio: Tuple[float, ...] = (1., 16 / 9)  # around 4:3, the pictures' own, which evaluation squeezes to a square
    crop_pct: float = 1.
    color_jitter: float = 0.3

    def debug(self) -> 'Recipe':
        """As of any recipe; no size is below the output stride of 32."""
        return replace(super().debug(), resolutions=tuple(r // 8 + 20 for r in self.resolutions))


@dataclass(frozen=True)
class RSRefineNetCamVid(RSRefineNetNYUDv2):
    """rs_refinenet_resnet18 on CamVid, 11 classes, at the paper's three sizes, on two CPU cores.

    The decoder has 64 channels: the maps of ResNet18 have a quarter of the channels of ResNet101's, for which the
    decoder of 256 was made.

    Run card:
        command   rs-timm train rs_refinenet_resnet18 --data camvid --recipe camvid --init rs_resnet18.mred_imagenette
        hardware  two CPU cores with bfloat16 instructions
        expected  not known: the paper has no CamVid
        reached   mean IoU 40.8 / 40.2 / 37.4 at 352 / 224 / 96 with --epochs 7 --warmup-epochs 1; the 60 epochs were
                  not run
    """

    labels: Tuple[str, ...] = _CAMVID
    ignore_label: int = 11
    model_args: Tuple[str, ...] = ('features=64', 'drop_rate=0.1')
    epochs: int = 60
    batch_size: int = 8
    lr: float = 1e-3
    precision: str = 'bfloat16'
    channels_last: bool = True


SEGMENTATION_RECIPES: Dict[str, Type[Recipe]] = {
    'rs_refinenet_nyudv2': RSRefineNetNYUDv2,
    'camvid': RSRefineNetCamVid,
}
