"""The schema of config.json, as timm and rs_timm write it: what a file may say is checked before anything is built.

Whatever a file says goes into `timm.create_model`. What pydantic finds is put into one sentence.
"""
from typing import Any, Callable, ClassVar, Dict, Literal, Mapping, Optional, Set, Tuple, Union

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Annotated

from rs_timm.resolutions import LARGEST_RESOLUTION

from ._saved import check_model_args

__all__ = ['SavedConfig', 'check_config', 'check_entries']

Size = Annotated[int, Field(ge=1, le=LARGEST_RESOLUTION)]
Channels = Annotated[int, Field(ge=1, le=1024)]
Classes = Annotated[int, Field(ge=0, le=2 ** 17)]
Share = Annotated[float, Field(gt=0, le=1)]
Pixels = Annotated[str, Field(pattern=r'^[1-9]\d{0,4}$')]
Word = Annotated[str, Field(max_length=200, pattern=r'^[\w.\-]*$')]
Text = Annotated[str, Field(max_length=20_000)]
InputSize = Tuple[Channels, Size, Size]
Labels = Union[Tuple[Text, ...], Dict[str, Text]]
Names = Union[Word, Tuple[Word, ...]]
Nothing = Union[None, Literal['']]


class _Entries(BaseModel):
    # protected_namespaces: pydantic before 2.10 refuses the name model_args
    model_config = ConfigDict(
        strict=True, extra='forbid', allow_inf_nan=False, frozen=True, protected_namespaces=())
    _needs_value: ClassVar[Set[str]] = set()  # may be left out, but not null

    @model_validator(mode='after')
    def _no_null(self) -> '_Entries':
        for name in self._needs_value & self.model_fields_set:
            if getattr(self, name) is None:
                raise ValueError(f'{name} is null')
        return self


class PretrainedEntries(_Entries):
    """Entries of timm's `PretrainedCfg`; those that say where weights come from are timm's to fill in."""

    url: Nothing = None
    file: Nothing = None
    state_dict: None = None
    hf_hub_id: Nothing = None
    hf_hub_filename: Nothing = None
    source: Nothing = None
    custom_load: Optional[Literal[False]] = None
    architecture: Optional[Word] = None
    tag: Optional[Word] = None
    input_size: Optional[InputSize] = None
    test_input_size: Optional[InputSize] = None
    min_input_size: Optional[InputSize] = None
    fixed_input_size: Optional[bool] = None
    interpolation: Optional[Word] = None
    crop_pct: Optional[Share] = None
    test_crop_pct: Optional[Share] = None
    crop_mode: Optional[Literal['center', 'squash', 'border']] = None
    mean: Optional[Tuple[float, ...]] = None
    std: Optional[Tuple[Annotated[float, Field(gt=0)], ...]] = None
    num_classes: Optional[Classes] = None
    label_offset: Optional[Annotated[int, Field(ge=0, le=1)]] = None
    label_names: Optional[Labels] = None
    label_descriptions: Optional[Labels] = None
    pool_size: Optional[Tuple[Size, Size]] = None
    test_pool_size: Optional[Tuple[Size, Size]] = None
    first_conv: Optional[Names] = None
    classifier: Optional[Names] = None
    license: Optional[Text] = None
    description: Optional[Text] = None
    origin_url: Optional[Text] = None
    paper_name: Union[None, Text, Tuple[Text, ...]] = None
    paper_ids: Union[None, Text, Tuple[Text, ...]] = None
    notes: Union[None, Text, Tuple[Text, ...]] = None
    _needs_value = {'input_size', 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std', 'num_classes'}


class Metadata(_Entries):
    """The entry 'rs_timm', which timm leaves alone.

    Attributes:
        version: of rs_timm that wrote it.
        alpha: resolution -> weight in the ensemble.
        crops: resolution -> share of the picture that it sees.
        derived_from: what the weights were made from: a repository of the hub, or a name with its tag.
        digest: of the tensors, see `tensor_digest`.
    """

    version: Optional[Word] = None
    alpha: Dict[Pixels, Annotated[float, Field(ge=0, le=1)]] = {}
    crops: Dict[Pixels, Share] = {}
    derived_from: Optional[Annotated[str, Field(max_length=300, pattern=r'^[\w.\-/@]+$')]] = None
    digest: Optional[Annotated[str, Field(pattern=r'^sha256:[0-9a-f]{64}$')]] = None


class SavedConfig(_Entries):
    """The whole file. Entries of its top level that are not named here do nothing, in timm and here."""

    model_config = ConfigDict(extra='allow')

    architecture: Word
    pretrained_cfg: PretrainedEntries
    num_classes: Optional[Classes] = None
    num_features: Optional[int] = None
    global_pool: Optional[Word] = None
    label_names: Optional[Labels] = None
    label_descriptions: Optional[Labels] = None
    model_args: Dict[str, Any] = {}
    rs_timm: Metadata = Metadata()

    @model_validator(mode='after')
    def _agree(self) -> 'SavedConfig':
        check_model_args(self.architecture, self.model_args)
        names = self.label_names or self.pretrained_cfg.label_names
        classes = self.pretrained_cfg.num_classes if self.num_classes is None else self.num_classes
        if names and isinstance(names, tuple) and len(names) != classes:
            raise ValueError(f'{len(names)} label_names for {classes} classes')
        return self


def check_config(text: Union[str, bytes], where: str) -> SavedConfig:
    """Parse the text of a config.json.

    >>> text = '{"architecture": "rs_resnet18", "pretrained_cfg": {}, "model_args": {"cache_dir": "/"}}'
    >>> check_config(text, 'c.json')
    Traceback (most recent call last):
    ValueError: c.json: model_args.cache_dir is no argument of a network that is read from a file: remove it.

    Args:
        text: of the file.
        where: what the message of an error calls it.

    Raises:
        ValueError: the first entry that is unknown, missing, or not what it may be.
    """
    return _checked(SavedConfig.model_validate_json, text, where)


def check_entries(entries: Mapping[str, Any], where: str) -> None:
    """Check entries of a `PretrainedCfg` that come from a file; errors are those of `check_config`."""
    _checked(PretrainedEntries.model_validate, dict(entries), where)


def _checked(validate: Callable[[Any], Any], given: Any, where: str) -> Any:
    try:
        return validate(given)
    except ValidationError as invalid:
        error: Any = invalid.errors(include_url=False)[0]
        # without the members of unions, such as 'tuple[str, ...]', which are no entries of the file
        field = '.'.join(part for part in map(str, error['loc']) if '[' not in part and part != 'constrained-str')
        message = error['msg'].removeprefix('Value error, ')
        if error['type'] == 'extra_forbidden':
            message = 'is no entry that is read from a file; a newer rs_timm may know it'
        elif error['type'] == 'missing':
            message = 'is missing'
        elif error['type'] not in ('value_error', 'json_invalid'):
            message = f"is {str(error['input'])[:60]!r}: {message[0].lower()}{message[1:]}"
        raise ValueError(f'{where}: {field} {message.rstrip(".")}.'.replace(':  ', ': ')) from None
