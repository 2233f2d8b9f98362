"""A switchable network -> one program of `torch.export`, or one compiled by AOTInductor: torch alone runs either.

The sets are blended at every call, and the network is called with the result in place of its BatchNorms' tensors.
"""
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, ContextManager, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from timm.utils import unwrap_model
from torch import nn
from torch.fx.experimental import _config
from torch.utils._pytree import tree_leaves

from rs_timm.atomic import replacing
from rs_timm.format.info import METADATA_KEY
from rs_timm.interpolation import BN_TENSORS, set_weights

from .network import Tables, default_torch_state, make_tables, read_network

__all__ = ['export_torch']

_TOLERANCE = 1e-3  # of the largest output; float32 in another order gives about 1e-6


def export_torch(
        model: nn.Module,
        path: Union[str, 'PathLike[str]'],
        *,
        compile: bool = False,
        metadata: Optional[Mapping[str, Any]] = None,
) -> Path:
    """Write `model`, with one copy of its shared weights and all its BatchNorm sets, as one .pt2 file for torch.

    The program takes images [N, C, H, W] of any batch and size, and chooses or interpolates the set as the model does
    while it follows its input. To run it, neither rs_timm nor timm is needed.

    >>> import os, tempfile, timm
    >>> model = timm.create_model('rs_resnet18', resolutions=(96, 64)).eval()
    >>> file = export_torch(model, os.path.join(tempfile.mkdtemp(), 'model.pt2'))
    >>> program = torch.export.load(file).module()
    >>> x = torch.randn(1, 3, 80, 80)
    >>> torch.allclose(program(x), model(x), atol=1e-5)
    True

    Args:
        model: a switchable network, or a wrapper of one; it is not changed.
        path: NAME.pt2; written as a whole or not at all.
        compile: compile for this processor with AOTInductor, which needs a C++ compiler and takes minutes for a deep
            network; `torch._inductor.aoti_load_package` loads the result. Otherwise `torch.export.load` does. What was
            compiled is compared with the network at trained and other sizes, since AOTInductor has been seen to be
            wrong without a word where sizes are free (torch 2.14 on a CPU); then nothing is written.
        metadata: as in `export_onnx`. The description is JSON, in the extra file 'rs_timm' of a program, or in the
            metadata of a compiled one.

    Raises:
        ValueError: a network that is not switchable, or that torch.export cannot express for any size.
        RuntimeError: AOTInductor failed, or its package gives something else than the network.
    """
    file = Path(path)
    if file.suffix != '.pt2':
        raise ValueError(f'{file} is no name of a program of torch: name a file that ends in .pt2.')
    model = unwrap_model(model)
    with default_torch_state():
        tables = make_tables(model)
        read = read_network(model, 'shape', metadata)
        channels, description = read.info.channels, read.info.to_json()
        network = _Blended(read.plain, tables)
        program = _program(network, torch.zeros(2, channels, *(tables.resolutions[0],) * 2))
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as new:
            if compile:
                _compile(program, new, description)
                _check_compiled(new, network, _checked_sizes(tables.resolutions), channels)
            else:
                torch.export.save(program, new, extra_files={METADATA_KEY: description})
    return file


class _Blended(nn.Module):
    """A plain network with BatchNorm tensors that are blended at every call."""

    def __init__(self, plain: nn.Module, tables: Tables) -> None:
        super().__init__()
        self.plain, self.layers = plain, tables.layers
        self.interpolation, self.names = tables.interpolation, list(tables.values)
        for name in self.layers:
            bn: Any = plain.get_submodule(name)
            bn.weight, bn.bias = (nn.Parameter(torch.empty(0), requires_grad=False) for _ in range(2))
            bn.running_mean, bn.running_var = torch.empty(0), torch.empty(0)  # all come from the tables
            bn.eps = 0.  # is in their variance
        for name, values in tables.values.items():
            self.register_buffer(name, torch.from_numpy(values))
        self.register_buffer('resolutions', torch.tensor(tables.resolutions, dtype=torch.float32))

    def forward(self, images: torch.Tensor) -> Any:
        side = torch.scalar_tensor(images.shape[-2] * images.shape[-1], dtype=torch.float32).sqrt().round()
        weights = set_weights(side, self.resolutions, self.interpolation)  # of a size that has a set: 0 but for a 1
        return torch.func.functional_call(self.plain, self._tensors(weights), (images,))

    def _tensors(self, weights: torch.Tensor) -> Dict[str, torch.Tensor]:
        sizes = list(self.layers.values())
        vectors = {name: torch.split(weights @ getattr(self, name), sizes) for name in self.names}
        tensors: Dict[str, torch.Tensor] = {}
        for position, layer in enumerate(self.layers):
            parts = {name: split[position] for name, split in vectors.items()}
            if 'scale' in parts:
                scale = parts['scale']
                values = scale, parts['shift'], torch.zeros_like(scale), torch.ones_like(scale)
            else:
                values = parts['gamma'], parts['beta'], parts['mean'], parts['variance']  # with eps
            tensors.update({f'{layer}.{name}': value for name, value in zip(BN_TENSORS, values)})
        return tensors


def _program(network: _Blended, example: torch.Tensor) -> Any:
    any_size = getattr(torch.export.Dim, 'DYNAMIC', None)
    if any_size is None:
        raise ValueError(f'torch {torch.__version__} exports no programs of any size: that came with torch 2.6.')
    try:
        with _no_special_sizes():
            return torch.export.export(network, (example,), dynamic_shapes=({0: any_size, 2: any_size, 3: any_size},))
    except Exception as error:  # many kinds
        reason = ' '.join(str(error).split())[:300]
        raise ValueError(
            f'torch.export cannot express {type(network.plain).__name__} for any size: {reason}') from error


def _no_special_sizes() -> ContextManager[Any]:
    """Let a program take images so small that some side inside the network is 1, as it is not in the example."""
    if not hasattr(_config, 'backed_size_oblivious'):  # torch before 2.7
        return nullcontext()
    return _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


def _compile(program: Any, file: Path, description: str) -> None:
    from torch import _inductor

    try:
        _inductor.aoti_compile_and_package(
            program,
            package_path=str(file),
            inductor_configs={'aot_inductor.metadata': {METADATA_KEY: description}},
        )
    except Exception as error:
        reason = ' '.join(str(error).split())[:300]
        raise RuntimeError(f'AOTInductor, which needs a C++ compiler, failed: {reason}') from error


def _checked_sizes(resolutions: Sequence[int]) -> List[Tuple[int, int, int]]:
    """Batch, height and width of images that tell whether a package holds for all.

    >>> _checked_sizes((64, 48))
    [(1, 64, 64), (2, 48, 48), (3, 49, 49), (1, 57, 57), (2, 48, 65)]
    """
    smallest, largest = resolutions[-1], resolutions[0]
    odd = [(smallest + 1,) * 2, ((smallest + largest) // 2 + 1,) * 2, (smallest, largest + 1)]
    sides = [*((r, r) for r in resolutions), *odd]
    return [(1 + number % 3, height, width) for number, (height, width) in enumerate(sides)]


def _check_compiled(file: Path, network: nn.Module, sizes: Sequence[Tuple[int, int, int]], channels: int) -> None:
    """Raise RuntimeError unless the package in `file` gives what `network` gives for images of `sizes`."""
    from torch import _inductor

    compiled = _inductor.aoti_load_package(str(file))
    for batch, height, width in sizes:
        generator = torch.Generator().manual_seed(height)
        images = torch.randn(batch, channels, height, width, generator=generator)
        pairs = zip(tree_leaves(network(images)), tree_leaves(compiled(images)), strict=True)
        relative = [(a - b).abs().max() / a.abs().max().clamp(min=1e-12) for a, b in pairs]
        difference = torch.stack(relative).max().item()  # unlike Python's max, it keeps a nan
        if not difference < _TOLERANCE:  # nan is no agreement either
            raise RuntimeError(
                f'AOTInductor of torch {torch.__version__} compiled another network: for {batch} images of {height} x '
                f'{width} px the output is off by {difference:.2g} of its largest value. Nothing was written. Take '
                'compile=False, whose program torch runs as it is, or compile one plain network a resolution, of fixed '
                'size: rs_timm.extract(model, resolution).')
