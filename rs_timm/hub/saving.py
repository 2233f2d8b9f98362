"""A network -> a folder that gives it back: the config that timm writes, the weights, and the proof that they do."""
import json
from contextlib import suppress
from copy import copy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Union

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import SelectAdaptivePool2d
from timm.models import FeatureInfo, PretrainedCfg, is_model, model_entrypoint
from timm.models._hub import save_config_for_hf
from timm.utils import unwrap_model
from torch import nn

from rs_timm.atomic import replacing_folder
from rs_timm.card import CardData, as_text, model_card
from rs_timm.crops import crops_of
from rs_timm.layers import get_interpolation, get_resolutions, is_switchable, learned_alpha
from rs_timm.models import OWN_ARGUMENTS, tensor_digest
from rs_timm.quantization import pack_weights, unpack_weights
from rs_timm.tensor_files import save_tensors

__all__ = [
    'CARD', 'CONFIG', 'WEIGHTS', 'card_text', 'check_restores', 'save_pretrained', 'write_model', 'write_weights']

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
CARD = 'README.md'

# Fields of a cfg that say where weights come from, and what is claimed about them.
_SOURCES = ('url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source')
_CLAIMS = ('tag', 'description', 'license', 'origin_url', 'paper_name', 'paper_ids', 'notes')


def save_pretrained(
        model: nn.Module,
        directory: Union[str, Path],
        *,
        half: bool = False,
        packed: bool = False,
        model_config: Optional[Dict[str, Any]] = None,
        model_args: Optional[Dict[str, Any]] = None,
        card: Optional[CardData] = None,
        keep_source: bool = False,
) -> Path:
    """Write model.safetensors, config.json and README.md, and return the folder.

    `timm.create_model('local-dir:DIRECTORY', pretrained=True)` restores resolutions, interpolation, preprocessing,
    class names and weights. The folder appears when all is written and was read back; an earlier one stays until then.

    >>> import tempfile, timm, rs_timm
    >>> model = timm.create_model('rs_resnet18', resolutions=(64, 48), num_classes=3)
    >>> folder = save_pretrained(model, Path(tempfile.mkdtemp()) / 'mine')
    >>> sorted(file.name for file in folder.iterdir())
    ['README.md', 'config.json', 'model.safetensors']
    >>> timm.create_model(f'local-dir:{folder}', pretrained=True).resolutions
    (64, 48)

    Args:
        model: a switchable network that timm made, or a wrapper of one (DDP, EMA, torch.compile).
        directory: is made, or replaced as a whole if it holds nothing but an earlier save.
        half: store the weights of convolutions and linear layers as float16; BatchNorms and biases stay as they are.
        packed: store quantised weights in their bits, see `rs_timm.quantization.pack_weights`.
        model_config: as in timm's `save_for_hf`: `label_names`, `label_descriptions`, `pretrained_cfg` (entries to
            replace, such as `mean`), and anything else for the top level of config.json.
        model_args: constructor arguments that timm did not record.
        card: licence, description, measured results, recipe.
        keep_source: the weights are those that `model.pretrained_cfg` names, not trained since: keep its tag,
            description, origin and paper. Otherwise these are left out, since they may not hold; the licence is kept
            if the model was created with `pretrained=True`, and `card` can give all of them.

    Raises:
        ValueError: a network that is not switchable, was not made by timm, or that its config would not restore; a
            folder with other files in it.
        OSError: the disk's own; an earlier folder is then as it was.
    """
    directory = Path(directory).resolve()
    if directory.exists() and not directory.is_dir():
        raise ValueError(f'{directory} is a file: name a folder.')
    others = sorted({entry.name for entry in directory.glob('*')} - {WEIGHTS, CONFIG, CARD})
    if others:
        names = ', '.join(others[:3]) + (', ...' if others[3:] else '')
        raise ValueError(f'{directory} holds other files ({names}): name a new folder, or one that save_pretrained '
                         'wrote.')
    directory.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(directory) as folder:
        network = write_model(model, folder, half, packed, model_config, model_args, card, keep_source)
        (folder / CARD).write_text(card_text(network, card, directory.name), encoding='utf-8')
    return directory


def write_model(
        model: nn.Module,
        folder: Path,
        half: bool,
        packed: bool,
        model_config: Optional[Dict[str, Any]],
        model_args: Optional[Dict[str, Any]],
        card: Optional[CardData],
        keep_source: bool,
) -> nn.Module:
    """Write config.json and model.safetensors, check that they restore `model`, and return what they describe."""
    if half and packed:
        raise ValueError('half and packed exclude each other: packed stores what is not quantised in float16 anyway.')
    storage = 'packed' if packed else 'half' if half else 'full'
    data = card or CardData()
    claims = dict(license=data.license, description=data.description)
    network = _restorable(model, keep_source, claims, (model_config or {}).get('pretrained_cfg', {}))
    saved = write_weights(network, folder, storage)
    try:
        digest = tensor_digest(load_file(folder / WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f'{WEIGHTS} would not restore this network: it was not written whole ({error}).') from error
    _write_config(network, folder, model_config or {}, model_args or {}, digest)
    check_restores(network, folder, saved)
    return network


def card_text(network: nn.Module, card: Optional[CardData], name: str, source: Optional[str] = None) -> str:
    """The README.md of what `write_model` returned."""
    cfg: Any = network.pretrained_cfg
    data = replace(card or CardData(), license=cfg.get('license'))
    if data.description is None and cfg.get('description'):  # of a config.json that somebody else may have written
        data = replace(data, description=as_text(cfg['description']))
    origin = (getattr(network, 'derived_from', None) or '').partition('@')[0]
    return model_card(network, data, name, source, base_model=origin if '/' in origin else None)


def _restorable(
        model: nn.Module,
        keep_source: bool,
        claims: Mapping[str, Optional[str]],
        overrides: Mapping[str, Any],
) -> nn.Module:
    """A shallow copy of the network inside `model` whose `pretrained_cfg` describes it as it is now.

    Args:
        model: a switchable network, or a wrapper of one.
        keep_source: keep what the cfg claims about its weights.
        claims: license and description that replace those of the cfg, unless None.
        overrides: entries of the cfg to replace.
    """
    model = unwrap_model(model)
    _check_kind(model)
    unknown = sorted(set(overrides) - {field.name for field in fields(PretrainedCfg)})
    if unknown:
        raise ValueError(f"pretrained_cfg has no {', '.join(unknown)}: timm would refuse to load it. Other entries "
                         'belong at the top level of model_config.')
    network = copy(model)
    cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in _SOURCES}
    if not keep_source:
        derived = getattr(model, 'derived_from', None) is not None
        kept = {'license': cfg.get('license')} if derived else {}
        cfg = {key: value for key, value in cfg.items() if key not in _CLAIMS}
        cfg.update(kept)
    cfg.update({key: value for key, value in claims.items() if value is not None})
    _describe_input(cfg, model)
    if cfg.get('num_classes') != model.num_classes:
        cfg.update(num_classes=model.num_classes, label_names=None, label_descriptions=None)
    if model_entrypoint(cfg['architecture']).__module__.startswith('timm.'):  # converted or packed by hand
        network.stock_architecture = cfg['architecture']
        cfg['architecture'] = 'rs_switchable'
    network.pretrained_cfg = {**cfg, **overrides}  # type: ignore[assignment]
    return network


def _check_kind(model: nn.Module) -> None:
    kind = type(model).__name__
    if not is_switchable(model):
        raise ValueError(f'{kind} has no switchable BatchNorm: rs_timm.switchable(model) gives it some; timm.models.'
                         'save_for_hf saves plain networks.')
    architecture = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture')
    if not architecture or not is_model(architecture):
        raise ValueError(f'{kind} was not made by timm (pretrained_cfg names no registered architecture): a config '
                         'cannot restore it. Save its state_dict() with safetensors instead.')
    if isinstance(getattr(model, 'feature_info', None), FeatureInfo):
        raise ValueError(f'{kind} is a features_only network without its head: save the whole network, and load it '
                         'with features_only=True.')
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(f'{kind} is on the meta device: it has no weights to save.')


def _describe_input(cfg: Dict[str, Any], model: nn.Module) -> None:
    """Make sizes, mean and std agree with the channels that `model` takes; a lone mean stands for all channels."""
    conv = model.get_submodule(cfg['first_conv']) if isinstance(cfg.get('first_conv'), str) else None
    channels = int(cfg['input_size'][0])
    if hasattr(model, 'in_chans'):
        channels = int(model.in_chans)  # type: ignore[arg-type]
    elif not any(type(module).__name__ == 'SpaceToDepth' for module in model.modules()):
        channels = int(getattr(conv, 'in_channels', channels))
    for key in ('input_size', 'test_input_size', 'min_input_size'):
        if cfg.get(key):
            cfg[key] = (channels, *cfg[key][1:])
    for key in ('mean', 'std'):
        values = cfg.get(key)
        if values and len(values) != channels:
            cfg[key] = (sum(values) / len(values),) * channels
    if channels not in (1, 3) and not hasattr(model, '_traits'):
        cfg['first_conv'] = None  # timm before 1.0.31 re-initialises a first convolution that fits already


def _write_config(
        network: nn.Module,
        folder: Path,
        model_config: Mapping[str, Any],
        model_args: Mapping[str, Any],
        digest: str,
) -> None:
    """Let timm write config.json for what `_restorable` returned, then finish it.

    The number of classes stands at the top alone, and so do their names: transformers' wrapper of timm passes what is
    in `model_args` a second time, and reads names nowhere else.
    """
    from rs_timm import __version__

    config = {key: value for key, value in model_config.items() if key != 'pretrained_cfg'}
    names = config.get('label_names')
    if names is not None and len(names) != network.num_classes:
        raise ValueError(f'{len(names)} label_names for {network.num_classes} classes: give one name a class.')
    metadata = dict(
        version=__version__,
        crops={str(resolution): crop for resolution, crop in (crops_of(network) or {}).items()},
        alpha={str(resolution): weight for resolution, weight in learned_alpha(network).items()},
        derived_from=getattr(network, 'derived_from', None),
        digest=digest,
    )
    config['rs_timm'] = {**{key: value for key, value in metadata.items() if value}, **config.get('rs_timm', {})}
    args = {**_constructor_arguments(network), **model_args}
    save_config_for_hf(network, folder / CONFIG, config, args)  # type: ignore[arg-type]
    written = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
    written['model_args'].pop('num_classes', None)
    for key in ('label_names', 'label_descriptions'):
        found = written['pretrained_cfg'].pop(key, None)
        if found and key not in written:
            written[key] = found
    (folder / CONFIG).write_text(json.dumps(written, indent=2), encoding='utf-8')


def _constructor_arguments(network: nn.Module) -> Dict[str, Any]:
    """The arguments that timm before 1.0.31 does not record by itself, as far as the network tells."""
    args: Dict[str, Any] = dict(
        resolutions=get_resolutions(network),
        interpolation=get_interpolation(network),
    )
    if network.pretrained_cfg['architecture'] == 'rs_switchable':  # type: ignore[index]
        args['base'] = network.stock_architecture
    recorded: Mapping[str, Any] = getattr(network, '_model_args', {})
    args.update({name: recorded[name] for name in OWN_ARGUMENTS if name in recorded})
    if 'encoder_weights' in recorded:
        args['encoder_weights'] = None  # the saved weights are those of the whole network
    pools = [module.pool_type for module in network.modules() if isinstance(module, SelectAdaptivePool2d)]
    if len(pools) == 1 and pools[0] != 'avg':
        args['global_pool'] = pools[0]
    return args


def write_weights(network: nn.Module, folder: Path, storage: str) -> Dict[str, torch.Tensor]:
    """Write model.safetensors, and return the state dict that it holds; refuse what is not finite.

    Args:
        storage: 'full', 'half' (weights in float16) or 'packed' (quantised weights in their bits).
    """
    tensors = {}
    for key, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f'{key} has values that are not finite (nan or infinity): this network computes nothing '
                             'any more, as after a training that diverged. Save an earlier state of it.')
        tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)  # tied ones become two
        if storage == 'half' and tensor.is_floating_point() and tensor.ndim > 1:
            largest, tensor = tensor.abs().max().item(), tensor.half()
            if not tensor.isfinite().all():
                raise ValueError(f'{key} has values up to {largest:.3g}, float16 ends at 65504: save without half.')
        tensors[key] = tensor
    if storage == 'packed':
        return unpack_weights(load_file(pack_weights(network, folder / WEIGHTS)))
    save_tensors(tensors, folder / WEIGHTS)
    return tensors


def check_restores(network: nn.Module, folder: Path, saved: Mapping[str, torch.Tensor]) -> None:
    """Load `folder` as a user would, and raise ValueError unless it gives the network back."""
    cause = None
    with torch.random.fork_rng(devices=[]):  # a save must not change the training that it interrupts
        try:
            restored = timm.create_model(f'local-dir:{folder}', pretrained=True)
            difference = _difference(saved, restored.state_dict())
            difference = difference or _difference(_settings(network), _settings(restored))
        except Exception as error:
            cause, difference = error, f'{type(error).__name__}: {error}'.rstrip('.')
            with suppress(Exception):  # shapes say more than what loading them says
                built = timm.create_model(f'local-dir:{folder}').state_dict()
                shapes, built_shapes = ({k: tuple(t.shape) for k, t in state.items()} for state in (saved, built))
                difference = _difference(shapes, built_shapes) or difference
    if difference:
        raise ValueError(
            f'config.json would not restore this network: {difference}. It was changed after it was made, or made with '
            f'arguments that timm {timm.__version__} does not record: pass those as model_args=dict(...).') from cause


def _settings(model: nn.Module) -> Dict[str, Any]:
    """The settings that change the output and stand in no tensor."""
    names = ('stride', 'padding', 'dilation', 'groups', 'eps', 'pool_type', 'ceil_mode')
    return {f'{path}.{name}': getattr(module, name) for path, module in model.named_modules()
            for name in names if hasattr(module, name)}


def _difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Optional[str]:
    """The first entry that differs, in words."""
    for key in [*mine, *theirs]:
        if key not in mine or key not in theirs:
            return f"{key} is {'missing' if key in mine else 'new'} in the restored one"
        a, b = mine[key], theirs[key]
        if isinstance(a, torch.Tensor) and a.shape == b.shape:
            if not torch.equal(a.to(b.dtype), b):
                return f'{key} has other values'
        elif isinstance(a, torch.Tensor) or a != b:
            a, b = (tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in (a, b))
            return f'{key} is {a}, restored {b}'
    return None
