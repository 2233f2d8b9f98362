"""Names of a classifier's outputs, and which output the folder of a class belongs to; torch for torch models alone."""
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Sequence, Tuple

if TYPE_CHECKING:
    from torch import nn

__all__ = ['class_names', 'folder_names', 'outputs_by_name']


def class_names(model: 'nn.Module') -> Callable[[int], str]:
    """Class index -> name: as the model's cfg says, else ImageNet's if the number of classes fits, else a number.

    >>> import timm
    >>> class_names(timm.create_model('resnet18'))(281)
    'tabby, tabby cat'

    Raises:
        ValueError: a network without classifier, or for segmentation.
    """
    if getattr(model, 'task', 'classification') != 'classification':
        raise ValueError(f'{type(model).__name__} is for {model.task}: rs-timm eval --overlays DIR draws what it '
                         'predicts.')
    if not getattr(model, 'num_classes', 0):
        raise ValueError('the model has no classifier (num_classes=0): there are no classes to predict.')
    labels, descriptions = _labels(model)
    if labels:
        return lambda index: str(descriptions.get(labels[index], labels[index]))
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    return ImageNetInfo(subset).index_to_description if subset else lambda index: f'class {index}'


def folder_names(model: 'nn.Module') -> List[Sequence[str]]:
    """What the folders of a model's classes may be called, each list in the order of the outputs.

    The labels of the model's cfg, or their descriptions; where it has none, ImageNet's synsets if the number of classes
    fits.
    """
    labels, descriptions = _labels(model)
    if labels:
        return [labels, [str(descriptions.get(label, label)) for label in labels]]
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(model)
    return [ImageNetInfo(subset).label_names()] if subset else []


def outputs_by_name(folders: Sequence[str], candidates: Sequence[Sequence[str]]) -> Optional[Dict[str, int]]:
    """Folder -> index of its name in the first of the lists that has them all; None if there is none.

    >>> outputs_by_name(['dog', 'cat'], [['n02084071', 'n02121620', 'n02512053'], ['dog', 'cat', 'fish']])
    {'dog': 0, 'cat': 1}

    Args:
        folders: names.
        candidates: names of all outputs, in order; a list that calls two outputs alike is passed over.
    """
    for names in candidates:
        index = {name: output for output, name in enumerate(names)}
        if folders and len(index) == len(names) and index.keys() >= set(folders):
            return {folder: index[folder] for folder in folders}
    return None


def _labels(model: 'nn.Module') -> Tuple[List[str], Dict[str, str]]:
    """Labels of the outputs and descriptions of the labels; none where the cfg is about another number of classes."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    labels = [str(label) for label in cfg.get('label_names') or ()]
    if len(labels) != getattr(model, 'num_classes', 0):
        return [], {}
    return labels, cfg.get('label_descriptions') or {}
