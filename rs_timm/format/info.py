"""The description in an exported file: one JSON object in its metadata, read without onnx and without torch."""
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Dict, Optional, Tuple

from rs_timm.crops import check_crop_pct
from rs_timm.interpolation import INTERPOLATIONS
from rs_timm.resolutions import MAX_RESOLUTIONS, check_resolutions

from .records import LENIENT, parse_record

__all__ = ['CHOICES', 'CROP_MODES', 'FORMAT', 'METADATA_KEY', 'RESIZES', 'TASKS', 'ModelInfo']

FORMAT = 2
_READABLE = (1, FORMAT)  # 1: with the variances of all sets, see `rs_timm.export.network.Tables`
METADATA_KEY = 'rs_timm'  # of the JSON object in metadata_props
CHOICES = ('shape', 'input', 'fixed')
CROP_MODES = ('center', 'squash', 'border')
RESIZES = ('nearest', 'box', 'bilinear', 'hamming', 'bicubic', 'lanczos')
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
        crops: resolution -> crop_pct, where it depends on the size; None: `crop_pct` at all sizes.
        crop_mode: as in timm: 'center', 'squash' or 'border'.
        resize_interpolation: how pictures are resized, one of `RESIZES`: 'bilinear', 'bicubic' and so on.
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
    crops: Optional[Dict[int, float]] = None

    __pydantic_config__: ClassVar[Dict[str, Any]] = LENIENT  # a later version may add entries within the format

    def __post_init__(self) -> None:
        object.__setattr__(self, 'resolutions', check_resolutions(self.resolutions))
        for name in ('mean', 'std', 'label_names'):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        for name, allowed in (('interpolation', INTERPOLATIONS), ('choice', CHOICES), ('task', TASKS),
                              ('crop_mode', CROP_MODES), ('resize_interpolation', RESIZES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown: use one of {', '.join(allowed)}.")
        if len(self.resolutions) > MAX_RESOLUTIONS:
            raise ValueError(f'{len(self.resolutions)} resolutions: a network has at most {MAX_RESOLUTIONS}.')
        for name, low, high in (('channels', 1, 2 ** 16), ('num_classes', 0, 2 ** 24)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f'{name} {getattr(self, name)}: from {low} to {high}.')
        for name in ('mean', 'std'):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise ValueError(f'{name} {values} for {self.channels} channels: give one a channel.')
            if not all(math.isfinite(value) for value in values) or (name == 'std' and not min(values) > 0.):
                raise ValueError(f'{name} {values}: finite numbers, and for std positive ones.')
        if not 0. < self.crop_pct <= 2.:  # some networks of timm want a little more than the picture has
            raise ValueError(f'crop_pct {self.crop_pct}: above 0 and at most 2.')
        if self.crops is not None:
            object.__setattr__(self, 'crops', check_crop_pct(self.crops))
        for name in ('madds', 'alpha'):
            for r, number in (getattr(self, name) or {}).items():
                check_resolutions((r,))
                if not (number >= 0 and math.isfinite(number)):
                    raise ValueError(f'{name} of {r} px is {number}: a finite number, not negative.')
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
        if 'crop_pct' in changes:
            changes.setdefault('crops', None)  # one number for all sizes
        return replace(self, **changes)

    def to_json(self) -> str:
        """One JSON object on one line."""
        data = dict(format=FORMAT, **asdict(self))
        return json.dumps(data, ensure_ascii=False, separators=(',', ':'), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, source: str = f'the metadata {METADATA_KEY!r}') -> 'ModelInfo':
        """The inverse of `to_json`. Entries that a later version added within the format are passed over.

        Args:
            text: one JSON object.
            source: the file, for errors.

        Raises:
            ValueError: no such object, one of a format that this version does not know, or values that cannot be.
        """
        try:
            data = json.loads(text)
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError(f'{source} is not a JSON object: {error}.') from None
        if not isinstance(data, dict):
            raise ValueError(f'{source} is not a JSON object, but {type(data).__name__}.')
        if data.get('format') not in _READABLE:
            raise ValueError(f"{source} has format {data.get('format')!r}, and this rs_timm reads {_READABLE[0]} to "
                             f'{FORMAT}: export the file again, or install the version that wrote it.')
        return parse_record(cls, data, source)
