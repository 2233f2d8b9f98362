"""Registered models, and the way to make any timm network one. Importing this registers them."""
from . import rs_efficientnet_lite, rs_mobilenetv2, rs_resnet, rs_resnet_lq, rs_switchable
from ._builder import OWN_ARGUMENTS, build_switchable
from ._checkpoint import PAPER_PREPROCESSING, checkpoint_filter_fn, is_paper_layout
from ._manifest import file_sha256, manifest, manifest_cfgs, weights_dir
from ._saved import check_model_args, comparing_digests, read_bytes, read_config, tensor_digest
from ._switchable import DEFAULT_RESOLUTIONS, SwitchableMixin, pack, switchable

__all__ = [
    'DEFAULT_RESOLUTIONS',
    'OWN_ARGUMENTS',
    'PAPER_PREPROCESSING',
    'SwitchableMixin',
    'build_switchable',
    'check_model_args',
    'checkpoint_filter_fn',
    'comparing_digests',
    'file_sha256',
    'is_paper_layout',
    'manifest',
    'manifest_cfgs',
    'pack',
    'read_bytes',
    'read_config',
    'rs_efficientnet_lite',
    'rs_mobilenetv2',
    'rs_resnet',
    'rs_resnet_lq',
    'rs_switchable',
    'switchable',
    'tensor_digest',
    'weights_dir',
]
