"""What an exported file says about itself: one JSON object in its metadata, read without onnx and without torch."""
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Dict, Mapping, Optional, Tuple

from rs_timm.interpolation import INTERPOLATIONS
from rs_timm.resolutions import check_resolutions

__all__ = ['CHOICES', 'FORMAT', 'METADATA_KEY', 'TASKS', 'ModelInfo']

FORMAT = 2
_READABLE = (1, FORMAT)  # 1: with the variances of all sets, see `rs_timm.export.tables`
METADATA_KEY = 'rs_timm'  # of the JSON object in metadata_props
CHOICES = ('shape', 'input', 'fixed')
TASKS = ('classification', 'segmentation', 'features')


@dataclass(frozen=True)
class ModelInfo:
    """The description of an exported network.

    >>> info = ModelInfo(name='rs_resnet18', resolutions=(224, 96), num_classes=2, label_names=('cat', 'dog'))
    >>> ModelInfo.from_json(info.to_json()) == info
    True
    >>> info.label(1)
    'dog'

    Args:
        name: of the network, as `rs-timm` takes it.
        resolutions: sizes in pixels that have a BatchNorm set of their own, largest first.
        interpolation: how the sets of other sizes are made: 'params', 'affine' or 'nearest'.
        choice: what the graph takes the resolution from: 'shape' of the images; 'input', a second input; 'fixed', it
            is the plain network of the one size in `resolutions`.
        task: 'classification' (output [N, classes]), 'segmentation' (output [N, classes, h, w]) or 'features'.
        channels: of the images.
        mean, std: per channel, of pixels in [0, 1].
        crop_pct: side of the crop over the shorter side of the resized picture.
        crop_mode: as in timm: 'center', 'squash' or 'border'.
        resize_interpolation: how pictures are resized: 'bilinear', 'bicubic' and so on.
        num_classes: 0 for a network without a classifier.
        label_names: one a class, or None.
        label_descriptions: label name -> text, or None.
        license, origin: of the weights; None if not known.
        madds: resolution -> multiply-adds of one image.
        alpha: resolution -> weight in the ensemble (Equation 5 of the paper); None if not known.

    Raises:
        ValueError: an entry that is not one of the above, or that contradicts another.
    """

    name: str
    resolutions: Tuple[int, ...]
    interpolation: str = 'params'
    choice: str = 'shape'
    task: str = 'classification'
    channels: int = 3
    mean: Tuple[float, ...] = (0., 0., 0.)
    std: Tuple[float, ...] = (1., 1., 1.)
    crop_pct: float = 0.875
    crop_mode: str = 'center'
    resize_interpolation: str = 'bilinear'
    num_classes: int = 0
    label_names: Optional[Tuple[str, ...]] = None
    label_descriptions: Optional[Dict[str, str]] = None
    license: Optional[str] = None
    origin: Optional[str] = None
    madds: Dict[int, int] = field(default_factory=dict)
    alpha: Optional[Dict[int, float]] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'resolutions', check_resolutions(self.resolutions))
        for name in ('mean', 'std', 'label_names'):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        for name, allowed in (('interpolation', INTERPOLATIONS), ('choice', CHOICES), ('task', TASKS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown: use one of {', '.join(allowed)}.")
        self._check_counts()

    def _check_counts(self) -> None:
        for name in ('mean', 'std'):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f'{name} {getattr(self, name)} for {self.channels} channels: give one a channel.')
        if self.label_names is not None and len(self.label_names) != self.num_classes:
            raise ValueError(f'{len(self.label_names)} label_names for {self.num_classes} classes: give one a class.')
        if self.choice == 'fixed' and len(self.resolutions) != 1:
            raise ValueError(f"resolutions {self.resolutions} with choice='fixed': a plain network has one.")

    def label(self, index: int) -> str:
        """The name of a class for people: its description, else its label, else its number."""
        if self.label_names is None:
            return f'class {index}'
        return (self.label_descriptions or {}).get(self.label_names[index], self.label_names[index])

    def replace(self, **changes: Any) -> 'ModelInfo':
        """A copy with other entries.

        >>> ModelInfo(name='rs_resnet18', resolutions=(224,)).replace(license='mit').license
        'mit'
        """
        unknown = sorted(set(changes) - {f.name for f in fields(self)})
        if unknown:
            raise ValueError(f"metadata has no {', '.join(unknown)}; it has {', '.join(f.name for f in fields(self))}.")
        return replace(self, **changes)

    def to_json(self) -> str:
        """One JSON object on one line."""
        return json.dumps(dict(format=FORMAT, **asdict(self)), ensure_ascii=False, separators=(',', ':'))

    @classmethod
    def from_json(cls, text: str) -> 'ModelInfo':
        """The inverse of `to_json`. Entries that a later version added within the format are passed over.

        Raises:
            ValueError: no such object, or one of a format that this version does not know.
        """
        try:
            data = dict(json.loads(text))
        except (TypeError, ValueError) as error:
            raise ValueError(f'the metadata {METADATA_KEY!r} is not a JSON object: {error}.') from error
        if data.get('format') not in _READABLE:
            raise ValueError(f"the metadata {METADATA_KEY!r} has format {data.get('format')!r}, this rs_timm reads "
                             f'formats {_READABLE[0]} to {FORMAT}: export the file again, or install the version that '
                             'wrote it.')
        known = {f.name for f in fields(cls)}
        missing = sorted({'name', 'resolutions'} - set(data))
        if missing:
            raise ValueError(f"the metadata {METADATA_KEY!r} lacks {', '.join(missing)}.")
        return cls(**_with_int_keys({key: value for key, value in data.items() if key in known}))


def _with_int_keys(data: Mapping[str, Any]) -> Dict[str, Any]:
    """JSON has no numbers as keys: resolutions become them again."""
    return {
        key: {int(r): number for r, number in value.items()} if key in ('madds', 'alpha') and value else value
        for key, value in data.items()}
