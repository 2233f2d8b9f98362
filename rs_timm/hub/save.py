"""A network -> a folder that gives it back."""
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Optional, Union
from uuid import uuid4

from torch import nn

from rs_timm.card import CardData, model_card

from .files import CARD, CONFIG, WEIGHTS, check_restores, restorable, write_config, write_weights

__all__ = ['card_text', 'save_pretrained', 'storage_of', 'write_model']


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
    _check_replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f'.{directory.name}.{uuid4().hex[:8]}')
    temporary.mkdir()
    try:
        network = write_model(model, temporary, storage_of(half, packed), model_config, model_args, card, keep_source)
        (temporary / CARD).write_text(card_text(network, card, directory.name), encoding='utf-8')
        _replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _check_replaceable(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f'{directory} is a file: name a folder.')
    others = sorted({entry.name for entry in directory.iterdir()} - {WEIGHTS, CONFIG, CARD})
    if others:
        names = ', '.join(others[:3]) + (', ...' if others[3:] else '')
        raise ValueError(f'{directory} holds other files ({names}): name a new folder, or one that save_pretrained '
                         'wrote.')


def storage_of(half: bool, packed: bool) -> str:
    """How `write_weights` stores them."""
    if half and packed:
        raise ValueError('half and packed exclude each other: packed stores what is not quantised in float16 anyway.')
    return 'packed' if packed else 'half' if half else 'full'


def write_model(
        model: nn.Module,
        folder: Path,
        storage: str,
        model_config: Optional[Dict[str, Any]],
        model_args: Optional[Dict[str, Any]],
        card: Optional[CardData],
        keep_source: bool,
) -> nn.Module:
    """Write config.json and model.safetensors, check that they restore `model`, and return what they describe."""
    data = card or CardData()
    claims = dict(license=data.license, description=data.description)
    network = restorable(model, keep_source, claims, (model_config or {}).get('pretrained_cfg', {}))
    write_config(network, folder, model_config or {}, model_args or {})
    saved = write_weights(network, folder, storage)
    check_restores(network, folder, saved)
    return network


def card_text(network: nn.Module, card: Optional[CardData], name: str, source: Optional[str] = None) -> str:
    data = card or CardData()
    cfg = network.pretrained_cfg
    data = replace(data, license=cfg.get('license'), description=cfg.get('description'))  # type: ignore
    origin = (getattr(network, 'derived_from', None) or '').partition('@')[0]
    return model_card(network, data, name, source, base_model=origin if '/' in origin else None)


def _replace(new: Path, old: Path) -> None:
    """Put the folder `new` where `old` is; whatever happens, there is a complete one."""
    if not old.exists():
        new.rename(old)
        return
    aside = new.with_name(f'{new.name}.old')
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)
