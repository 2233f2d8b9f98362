"""A switchable torch network as an export reads it: description, outputs, and BatchNorm sets as tables."""
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.utils import unwrap_model
from torch import nn

from rs_timm.analysis import madds
from rs_timm.analysis.cost import image_channels
from rs_timm.crops import crops_of
from rs_timm.format.info import ModelInfo
from rs_timm.interpolation import scale_and_shift
from rs_timm.layers import SwitchableBatchNorm2d, extract, get_interpolation, get_resolutions, learned_alpha

__all__ = ['Network', 'Tables', 'default_torch_state', 'make_tables', 'model_info', 'read_network']


@contextmanager
def default_torch_state() -> Iterator[None]:
    """Run a block as a fresh process would, but without gradients: float32, on the CPU, no autocast, no inference mode.

    What the caller has set for its own work must not reach a file.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.autocast('cpu', enabled=False))
            if torch.get_default_device().type != 'cpu':
                stack.enter_context(torch.device('cpu'))
            yield
    finally:
        torch.set_default_dtype(dtype)


@dataclass(frozen=True)
class Network:
    """A switchable network at its smallest resolution.

    Attributes:
        plain: the stock network, float32, in evaluation mode, on the CPU.
        info: the description.
        outputs: name -> what it gives for two images; 'logits' where there is but one.
        ranks: BatchNorm -> number of axes of what it normalises.
    """

    plain: nn.Module
    info: ModelInfo
    outputs: Dict[str, torch.Tensor]
    ranks: Dict[str, int]


def model_info(model: nn.Module, choice: str = 'shape') -> ModelInfo:
    """The description of a switchable network, as its file has it, without a file.

    >>> import rs_timm, timm
    >>> model_info(timm.create_model('rs_resnet18', resolutions=(64, 48))).resolutions
    (64, 48)
    """
    with default_torch_state():
        return read_network(unwrap_model(model), choice).info


def read_network(model: nn.Module, choice: str = 'shape', metadata: Optional[Mapping[str, Any]] = None) -> Network:
    """Extract the plain network, and run it once to see what it gives and what its BatchNorms take.

    Args:
        model: made by timm, or by hand; unwrapped.
        choice: as in `ModelInfo`.
        metadata: entries of the description to replace.

    Raises:
        ValueError: not switchable; outputs that are not tensors; metadata that do not fit.
    """
    smallest = get_resolutions(model)[-1]
    plain = extract(model, smallest).eval().float().cpu().requires_grad_(False)
    channels = image_channels(plain)
    ranks: Dict[str, int] = {}

    def note(name: str) -> Any:
        return lambda module, inputs: ranks.update({name: inputs[0].ndim})

    hooks = [plain.get_submodule(name).register_forward_pre_hook(note(name)) for name in _layers(model)]
    try:
        given = plain(torch.zeros(2, channels, smallest, smallest))
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(given, torch.Tensor):
        given = {'logits': given}
    elif not isinstance(given, Mapping):
        given = {f'features_{index}': value for index, value in enumerate(given)}
    outputs = {str(name): value for name, value in given.items()}
    for name, value in outputs.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f'{type(plain).__name__} gives a {type(value).__name__} as its output {name}: an exported '
                             'network gives a tensor, or a flat list or dictionary of tensors.')
    info = _describe(model, channels, list(outputs.values()), choice)
    return Network(plain, info.replace(**(metadata or {})), outputs, ranks)


def _layers(model: nn.Module) -> Dict[str, SwitchableBatchNorm2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SwitchableBatchNorm2d)}


def _describe(model: nn.Module, channels: int, outputs: Sequence[torch.Tensor], choice: str) -> ModelInfo:
    cfg: Mapping[str, Any] = getattr(model, 'pretrained_cfg', None) or {}
    config = resolve_model_data_config(model, pretrained_cfg=dict(cfg))
    resolutions = get_resolutions(model)
    # a classifier gives [N, K], a network for dense prediction says what it is; all else are features
    task = 'features' if len(outputs) > 1 or getattr(model, 'num_classes', None) == 0 else (
        'classification' if outputs[0].ndim == 2 else str(getattr(model, 'task', 'features')))
    classes = 0 if task == 'features' else int(outputs[0].shape[1])
    derived_from = getattr(model, 'derived_from', None)  # of random weights there is no licence and no origin
    architecture, stock = cfg.get('architecture'), getattr(model, 'stock_architecture', None)
    if architecture == 'rs_switchable' and stock:  # as `rs-timm` takes it, where timm made the network
        name = f'switchable:{stock}'
    else:
        tag = cfg.get('tag') if derived_from else None
        name = '.'.join(filter(None, (architecture or type(model).__name__, tag)))
    # the learned weights of the ensemble, if they are known for these resolutions
    alpha = learned_alpha(model)
    label_names, label_descriptions = _labels(model, cfg, classes)
    return ModelInfo(
        name=name,
        resolutions=resolutions,
        interpolation=get_interpolation(model),
        choice=choice,
        task=task,
        channels=channels,
        mean=_per_channel(config['mean'], channels),
        std=_per_channel(config['std'], channels),
        crop_pct=float(config['crop_pct']),
        crop_mode=config['crop_mode'],
        resize_interpolation=config['interpolation'],
        num_classes=classes,
        label_names=label_names,
        label_descriptions=label_descriptions,
        license=cfg.get('license') if derived_from else None,
        origin=(cfg.get('origin_url') or derived_from) if derived_from else None,
        madds={r: madds(model, r) for r in resolutions},
        alpha=alpha if set(alpha) == set(resolutions) else None,
        crops=crops_of(model),
    )


def _per_channel(values: Sequence[float], channels: int) -> Tuple[float, ...]:
    """One value a channel, as the network is saved: for another number of them, the average stands for all."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _labels(
        model: nn.Module,
        cfg: Mapping[str, Any],
        classes: int,
) -> Tuple[Optional[Tuple[str, ...]], Optional[Dict[str, str]]]:
    """Names and descriptions of the classes: those of the cfg if they fit, else ImageNet's if those fit."""
    names, descriptions = cfg.get('label_names'), cfg.get('label_descriptions')
    if not (classes and names and len(names) == classes):
        fits = classes and cfg and classes == getattr(model, 'num_classes', None)
        subset = infer_imagenet_subset(model) if fits else None
        if subset is None:
            return None, None
        imagenet = ImageNetInfo(subset)
        names, descriptions = imagenet.label_names(), imagenet.label_descriptions(as_dict=True)
    known = {name: descriptions[name] for name in names if name in descriptions} if descriptions else None
    return tuple(names), known


@dataclass(frozen=True)
class Tables:
    """The BatchNorm sets of a network: one row a resolution, one column a channel of all layers together.

    Attributes:
        resolutions: the rows, in pixels, largest first.
        interpolation: 'params', 'affine' or 'nearest'.
        layers: name of a layer -> its number of channels, in the order of the columns.
        values: table -> float32 [rows, columns]. For 'params' these are gamma, beta, mean and variance, with the
            layer's eps in the variance, and each channel in units in which the variance of the first row is 1: scale is
            gamma / sqrt(variance) of the blends, in which the unit cancels, and the row need not be stored. For the
            other two, which blend y = scale * x + shift, scale and shift.
    """

    resolutions: Tuple[int, ...]
    interpolation: str
    layers: Dict[str, int]
    values: Dict[str, np.ndarray]


def make_tables(model: nn.Module) -> Tables:
    """Read the sets of a switchable `model`.

    Raises:
        ValueError: a BatchNorm without running statistics, with a variance of 0 and no eps, or one whose interpolation
            has no closed form.
    """
    resolutions, interpolation = get_resolutions(model), get_interpolation(model)
    layers = _layers(model)
    columns: Dict[str, List[np.ndarray]] = {}
    for name, layer in layers.items():
        sets = [_set_tensors(layer[str(r)], name) for r in resolutions]
        if interpolation == 'affine' and not layer[str(resolutions[0])].affine:
            raise ValueError(f"{name} has no gamma and beta, for which 'affine' interpolates as 'params' does, unlike "
                             "the other layers: set_interpolation(model, 'params') before the export.")
        if interpolation != 'params':
            sets = [dict(zip(('scale', 'shift'), scale_and_shift(**s))) for s in sets]
        for key in sets[0]:
            columns.setdefault(key, []).append(np.stack([s[key] for s in sets]))
    values = {key: np.concatenate(parts, axis=1) for key, parts in columns.items()}
    if interpolation == 'params':
        unit = values['variance'][:1]
        if not (unit > 0).all():
            raise ValueError(f'a BatchNorm with eps 0 has a channel of variance 0 at {resolutions[0]} px: its scale is '
                             'not a number. Recalibrate the model, or give the BatchNorm an eps.')
        values.update(gamma=values['gamma'] / np.sqrt(unit), variance=values['variance'] / unit)
    return Tables(
        resolutions=resolutions,
        interpolation=interpolation,
        layers={name: layer[str(resolutions[0])].num_features for name, layer in layers.items()},
        values={key: table.astype(np.float32) for key, table in values.items()},
    )


def _set_tensors(bn: Any, name: str) -> Dict[str, np.ndarray]:
    """gamma, beta, mean, and variance plus eps of one set, float64 [C] each."""
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(f'{name} has no running statistics: it normalises by those of the batch, so that there is '
                         'nothing to store. Train it with track_running_stats=True.')
    tensors = dict(gamma=bn.weight, beta=bn.bias, mean=bn.running_mean, variance=bn.running_var)
    absent = dict(gamma=np.ones(bn.num_features), beta=np.zeros(bn.num_features))
    arrays = {key: absent[key] if t is None else t.detach().double().cpu().numpy() for key, t in tensors.items()}
    return dict(arrays, variance=arrays['variance'] + bn.eps)
