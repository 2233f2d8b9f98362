"""rs-timm info: what a network is and what it costs at each resolution."""
import argparse
from typing import Any, List

from timm.data import resolve_model_data_config
from timm.models import PretrainedCfg
from torch import nn

from rs_timm.analysis import activations, madds, parameter_counts
from rs_timm.layers import get_resolutions

from ._model import add_model_arguments, describe_preprocessing, load_model, named_weights
from .listing import weights_of

__all__ = ['register', 'run']


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser('info', help='resolutions, cost, parameters, preprocessing and origin of a model')
    add_model_arguments(parser, weights=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    model = load_model(named_weights(args.model), weights=False, resolutions=args.resolutions)
    print('\n'.join([args.model, *_facts(model), '', *_costs(model)]))
    return 0


def _facts(model: nn.Module) -> List[str]:
    cfg = PretrainedCfg(**model.pretrained_cfg)  # type: ignore[arg-type]
    selector = model.rs_selector
    sizes = ', '.join(map(str, selector.resolutions))
    counts = parameter_counts(model)
    each = next(iter(counts.private.values()))
    return [
        f'weights        {weights_of(cfg)}',
        *([f'               {cfg.description}'] if cfg.description else []),
        *([f'licence        {cfg.license}'] if cfg.license else []),
        f'resolutions    {sizes} (other sizes: interpolation {selector.interpolation!r})',
        f'preprocessing  {describe_preprocessing(resolve_model_data_config(model))}',
        f'classes        {model.num_classes}',
        f'parameters     {counts.total / 1e6:.2f} M = {counts.total / 2 ** 20:.2f} x 2^20',
        f'private BNs    {counts.private_share:.2%} of them: {each:,} for each of {len(counts.private)} resolutions',
    ]


def _costs(model: nn.Module) -> List[str]:
    lines = ['resolution   MAdds (M)   activations (M)']
    for resolution in get_resolutions(model):
        cost = madds(model, resolution) / 1e6
        lines.append(f'{resolution:10}{cost:12.1f}{activations(model, resolution) / 1e6:18.2f}')
    return [*lines, 'MAdds: multiply-adds of convolutions and linear layers. Activations: outputs of convolutions.']
