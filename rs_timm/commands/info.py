"""rs-timm list and info: the registered models, and what one of them is and costs at each resolution."""
import argparse
from typing import Any, Iterator

import timm
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import nn

from rs_timm.analysis import activations, madds, parameter_counts
from rs_timm.data import data_config
from rs_timm.layers import get_resolutions
from rs_timm.loading import describe_preprocessing, load_model, named_weights

from .arguments import add_model_arguments

__all__ = ['info_arguments', 'list_arguments', 'run_info', 'run_list']


def list_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm list`."""
    parser.add_argument('pattern', metavar='PATTERN', nargs='?', default='*',
                        help="part of a name, or a pattern such as '*_in1k'")
    parser.set_defaults(run=run_list)


def info_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm info`."""
    add_model_arguments(parser, weights=False)
    parser.set_defaults(run=run_info)


def run_list(args: argparse.Namespace) -> int:
    pattern = args.pattern if any(c in args.pattern for c in '*?[') else f'*{args.pattern}*'
    names = [name for name in timm.list_models(pattern, include_tags=True) if name.startswith('rs_')]
    if not names:
        raise ValueError(f"no model matches {args.pattern!r}: 'rs-timm list' shows all.")
    width = max(map(len, names))
    for name in names:
        architecture = name.partition('.')[0]
        if architecture == 'rs_switchable':
            print(f"{name:{width}}  any BatchNorm network of timm: write 'switchable:NAME'")
            continue
        default, cfg = get_pretrained_cfg(architecture), get_pretrained_cfg(name)
        print(f'{name:{width}}  {_origin(cfg)}' + (' (default)' if default and cfg and cfg.tag == default.tag else ''))
    return 0


def run_info(args: argparse.Namespace) -> int:
    model = load_model(named_weights(args.model), weights=False, resolutions=args.resolutions)
    print('\n'.join([args.model, *_facts(model), '', 'resolution   MAdds (M)   activations (M)']))
    for resolution in get_resolutions(model):
        cost = madds(model, resolution) / 1e6
        print(f'{resolution:10}{cost:12.1f}{activations(model, resolution) / 1e6:18.2f}')
    print('MAdds: multiply-adds of convolutions and linear layers. Activations: outputs of convolutions.')
    return 0


def _origin(cfg: Any) -> str:
    """Where the weights of a pretrained cfg come from, in words."""
    if cfg is None:
        return 'no weights'
    if cfg.file:
        return f'in {cfg.file}' if cfg.source == 'local-dir' else f'comes with rs_timm: {cfg.file}'
    if cfg.hf_hub_id:
        return f'downloaded from the hub: {cfg.hf_hub_id}'
    if cfg.tag == 'orig_in1k':
        return "the paper's: get the checkpoint, then rs-timm convert"
    return f'downloaded from {cfg.url}' if cfg.url else 'no weights'


def _facts(model: nn.Module) -> Iterator[str]:
    cfg = PretrainedCfg(**model.pretrained_cfg)  # type: ignore[arg-type]
    selector = model.rs_selector
    sizes = ', '.join(map(str, selector.resolutions))
    counts = parameter_counts(model)
    each = next(iter(counts.private.values()))
    yield f'weights        {_origin(cfg)}'
    if cfg.description:
        yield f'               {cfg.description}'
    if cfg.license:
        yield f'licence        {cfg.license}'
    yield f'resolutions    {sizes} (other sizes: interpolation {selector.interpolation!r})'
    yield f'preprocessing  {describe_preprocessing(data_config(model))}'
    yield f'classes        {model.num_classes}'
    yield f'parameters     {counts.total / 1e6:.2f} M = {counts.total / 2 ** 20:.2f} x 2^20'
    yield f'private BNs    {counts.private_share:.2%} of them: {each:,} for each of {len(counts.private)} resolutions'
