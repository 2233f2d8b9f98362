"""The nodes that choose, and blend, BatchNorm sets inside an ONNX graph.

    resolution -> weight of each set [1, S] -> rows of the tables blended [1, C of all layers] -> scale and shift
    -> one split of each for the layers

The resolution comes from the shape of the images, so that an engine that knows the shape folds all of it away.
"""
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from rs_timm.format.graph import IMAGES, PREFIX

from .tables import Tables

__all__ = ['RESOLUTION', 'Choice', 'apply_affine']

RESOLUTION = 'resolution'  # of the explicit input


def _scale_name(layer: str) -> str:
    """The tensor, float32 [1, C, 1, 1] where the layer has images, by which it multiplies."""
    return f'{layer}.scale'


def _shift_name(layer: str) -> str:
    """The tensor, of the same shape, that `layer` adds."""
    return f'{layer}.shift'


class Choice:
    """Nodes and constants, under `PREFIX`, that compute scale and shift of every layer.

    Args:
        tables: the sets.
        ranks: layer -> number of axes of what it normalises, 4 unless told otherwise.
        choice: 'shape': the resolution is that of the images; 'input': it is the input `RESOLUTION`, in pixels.
    """

    def __init__(self, tables: Tables, ranks: Mapping[str, int], choice: str) -> None:
        self.nodes: List[onnx.NodeProto] = []
        self.constants: Dict[str, onnx.TensorProto] = {}
        resolution = self._of_shape() if choice == 'shape' else RESOLUTION
        weights = self._one_set(resolution, tables) if tables.interpolation == 'nearest' else self._two_sets(
            resolution, tables)
        self._split(self._scale_and_shift(weights, tables), tables.layers, ranks)

    def _of_shape(self) -> str:
        """round(sqrt(height * width)): for a square image its side, exactly. Sizes below 2048 px are exact too."""
        shape = self._add('Shape', IMAGES)
        sides = [self._add('Cast', self._add('Gather', shape, self._constant(f'axis_{axis}', [axis], np.int64)),
                           to=onnx.TensorProto.FLOAT) for axis in (2, 3)]
        return self._add('Round', self._add('Sqrt', self._add('Mul', *sides)))

    def _two_sets(self, resolution: str, tables: Tables) -> str:
        """Weights [1, S] that fall from 1 at a set's own size to 0 at its neighbours'.

        They are the smaller of two ramps. (With 1 - |distance| OpenVINO is wrong: it drops an Abs of what comes from a
        shape, which it takes for positive.)
        """
        r = np.array(tables.resolutions, np.float64)
        above, below = np.append(r[0] + 1, r[:-1]), np.append(r[1:], r[-1] - 1)  # beyond the ends: any size will do
        clipped = self._add('Min', self._add('Max', resolution, self._constant('smallest', r[-1:])),
                            self._constant('largest', r[:1]))
        rising = self._add('Div', self._add('Sub', clipped, self._constant('below', [below])),
                           self._constant('to_below', [r - below]))
        falling = self._add('Div', self._add('Sub', self._constant('above', [above]), clipped),
                            self._constant('to_above', [above - r]))
        limits = self._constant('zero', [0.]), self._constant('one', [1.])
        return self._add('Min', self._add('Max', self._add('Min', rising, falling), limits[0]), limits[1])

    def _one_set(self, resolution: str, tables: Tables) -> str:
        """Weights [1, S]: 1 for the nearest set, the larger one at a tie."""
        r = np.array(tables.resolutions, np.float64)
        middles = (r[:-1] + r[1:]) / 2
        largest = float(np.finfo(np.float32).max)
        too_small = self._add('Less', resolution, self._constant('from', [np.append(middles, -largest)]))
        not_too_large = self._add('Less', resolution, self._constant('to', [np.insert(middles, 0, largest)]))
        one = self._add('And', self._add('Not', too_small), not_too_large)
        return self._add('Cast', one, to=onnx.TensorProto.FLOAT)

    def _scale_and_shift(self, weights: str, tables: Tables) -> Dict[str, str]:
        blended = {name: self._add('MatMul', weights, self._constant(name, table))
                   for name, table in tables.values.items() if name != 'variance'}
        if tables.interpolation == 'params':
            scale = blended['gamma'] if len(tables.resolutions) == 1 else self._add(
                'Div', blended['gamma'], self._add('Sqrt', self._variance(weights, tables.values['variance'])))
            blended = dict(
                scale=scale, shift=self._add('Sub', blended['beta'], self._add('Mul', blended['mean'], scale)))
        return blended

    def _variance(self, weights: str, table: np.ndarray) -> str:
        """Of a table whose first row, which is 1 everywhere, is not stored."""
        parts = [f'{PREFIX}weight_{part}' for part in ('first', 'others')]
        self._node('Split', [weights, self._constant('parts', [1, len(table) - 1], np.int64)], parts, 'parts', axis=1)
        return self._add('Add', self._add('MatMul', parts[1], self._constant('variance', table[1:])), parts[0])

    def _split(self, vectors: Dict[str, str], layers: Dict[str, int], ranks: Mapping[str, int]) -> None:
        channels = self._constant('channels', list(layers.values()), np.int64)
        shape = self._shape(4)
        for kind, name in (('scale', _scale_name), ('shift', _shift_name)):
            vector = self._add('Reshape', vectors[kind], shape)
            others = {layer: rank for layer, rank in ranks.items() if rank != 4}
            parts = [PREFIX + name(layer) if layer in others else name(layer) for layer in layers]
            self._node('Split', [vector, channels], parts, f'split_{kind}', axis=1)
            for layer, rank in others.items():
                self._node('Reshape', [PREFIX + name(layer), self._shape(rank)], [name(layer)], name(layer))

    def _shape(self, rank: int) -> str:
        return self._constant(f'shape_{rank}', [1, -1, *[1] * (rank - 2)], np.int64)

    def _add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f'{PREFIX}{op}_{len(self.nodes)}'
        self._node(op, inputs, [name], f'{op}_{len(self.nodes)}', **attributes)
        return name

    def _node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, outputs, name=PREFIX + name, **attributes))

    def _constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        self.constants[name] = numpy_helper.from_array(np.asarray(values, dtype), PREFIX + name)
        return PREFIX + name


def apply_affine(node: onnx.NodeProto, layer: str) -> Tuple[onnx.NodeProto, onnx.NodeProto]:
    """What takes the place of the BatchNormalization `node` of `layer`."""
    scaled = f'{node.output[0]}/scaled'
    return (
        helper.make_node('Mul', [node.input[0], _scale_name(layer)], [scaled], name=f'{node.name}/Mul'),
        helper.make_node('Add', [scaled, _shift_name(layer)], [node.output[0]], name=f'{node.name}/Add'),
    )
