"""The ONNX graph of a switchable network: what chooses its BatchNorm sets in front, the traced network behind.

    resolution -> weight of each set [1, S] -> rows of the tables blended [1, C of all layers] -> scale and shift
    -> one split of each for the layers

The resolution comes from the shape of the images, so that an engine that knows the shape folds all of it away.
"""
import io
import warnings
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from rs_timm import __version__
from rs_timm.format.graph import IMAGES, PREFIX, set_info

from .network import Tables, make_tables, read_network

__all__ = ['RESOLUTION', 'Choice', 'SwitchableGraph']

RESOLUTION = 'resolution'  # of the explicit input
_OPSETS = range(13, 21)  # from the first with the operators of the choice, to the last that the exporter knows
_CHOICES = ('shape', 'input')


class SwitchableGraph:
    """A switchable network, from which `build` makes models; torch is in its default state meanwhile.

    Args:
        model: unwrapped.
        choice, metadata, opset: as in `export_onnx`.
    """

    def __init__(self, model: nn.Module, choice: str, metadata: Optional[Mapping[str, Any]], opset: int) -> None:
        if choice not in _CHOICES:
            raise ValueError(f"choice {choice!r} is unknown: use one of {', '.join(_CHOICES)}.")
        if opset not in _OPSETS:
            raise ValueError(f'opset {opset} is not one of {_OPSETS[0]} to {_OPSETS[-1]}.')
        self.choice, self.opset = choice, opset
        self.tables: Tables = make_tables(model)
        self.network = read_network(model, choice, metadata)
        # gamma of each layer is its number: the exporter may rename and merge tensors, their values stay
        for number, name in enumerate(self.tables.layers):
            bn: Any = self.network.plain.get_submodule(name)
            bn.weight, bn.bias = (nn.Parameter(torch.full_like(bn.running_mean, value), requires_grad=False)
                                  for value in (number, 0))

    def build(self, resolution: int, any_size: bool = False) -> onnx.ModelProto:
        """The model as traced at `resolution` px, which with `any_size` must be that of all sizes.

        Raises:
            ValueError: the exporter cannot express the network, or no one graph holds for all sizes.
        """
        traced = self._trace(resolution, resolution, any_size)
        if any_size:
            largest = self.tables.resolutions[0]
            for sides in ((largest, largest), (resolution + 1, largest + 3)):  # the second with odd sides
                self._check(traced, *sides)
        choice = Choice(self.tables, self.network.ranks, self.choice)
        graph = onnx.GraphProto(name=self.network.info.name)
        graph.node.extend(choice.nodes)
        for node, layer in zip(traced.nodes, traced.layers):
            graph.node.extend([node] if layer is None else _apply_affine(node, layer))
        read = {name for node in graph.node for name in node.input}
        graph.initializer.extend(choice.constants.values())
        graph.initializer.extend(tensor for name, tensor in traced.constants.items() if name in read)
        graph.input.append(_tensor(IMAGES, ['batch', self.network.info.channels, 'height', 'width']))
        if self.choice == 'input':
            graph.input.append(_tensor(RESOLUTION, []))
        for name, output in self.network.outputs.items():
            free = (f'{name}_{axis}' for axis in range(2, output.ndim))
            graph.output.append(_tensor(name, ['batch', *output.shape[1:2], *free]))
        proto = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid('', self.opset)],
            ir_version=traced.ir_version,
            producer_name='rs_timm',
            producer_version=__version__,
        )
        set_info(proto, self.network.info)
        return proto

    def _trace(self, height: int, width: int, any_size: bool = True) -> '_Traced':
        """The graph that two images go through; with `any_size` as far as possible that of all sizes.

        The exporter is torch's TorchScript-based one. The newer one (dynamo=True) took 10 to 40 times as long on
        networks of dynamic height and width, and did not get through those that pad as TensorFlow does; where both
        end, the graph is the same.
        """
        plain, names, buffer = self.network.plain, list(self.network.outputs), io.BytesIO()
        batch = {0: 'batch'}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # deprecation, and sizes that become constants: _check sees those
            try:
                torch.onnx.export(
                    plain,
                    (torch.zeros(2, self.network.info.channels, height, width),),
                    buffer,  # type: ignore[arg-type]
                    input_names=[IMAGES],
                    output_names=names,
                    opset_version=self.opset,
                    dynamic_axes={
                        IMAGES: {0: 'batch', 2: 'height', 3: 'width'} if any_size else batch,
                        **dict.fromkeys(names, batch),
                    },
                    training=torch.onnx.TrainingMode.PRESERVE,  # else BatchNorms are folded away
                    dynamo=False,
                )
            except Exception as error:  # the exporter, and what it calls, raise many kinds
                reason = str(error).strip().partition('\n')[0][:200]
                raise ValueError(
                    f'torch cannot export {type(plain).__name__} to ONNX opset {self.opset} for '
                    f'{"any size" if any_size else "this size"}: {reason}') from error
        model = onnx.load_from_string(buffer.getvalue())
        nodes, constants = _tidy(model.graph)
        numbers = [int(numpy_helper.to_array(constants[node.input[1]])[0])
                   if node.op_type == 'BatchNormalization' else None for node in nodes]
        layers = list(self.tables.layers)
        return _Traced(nodes, [None if n is None else layers[n] for n in numbers], constants, model.ir_version)

    def _check(self, traced: '_Traced', height: int, width: int) -> None:
        """Trace again at another size: a network whose code computes with sizes in Python leaves other constants.

        Sizes that the network itself does not take are passed over.
        """
        try:
            self.network.plain(torch.zeros(2, self.network.info.channels, height, width))
        except Exception:  # any kind: layers that do not fit together
            return
        again = self._trace(height, width)
        if again.nodes != traced.nodes or again.constants != traced.constants:
            raise ValueError(
                f'{type(self.network.plain).__name__} computes with the size of its input in Python, so that its graph '
                f'at {height} x {width} px is another one: no one file holds for all sizes. Export one file a '
                'resolution (rs_timm.export.split_onnx, rs-timm export --plain).')


@dataclass(frozen=True)
class _Traced:
    """A graph as the exporter wrote it, tidied.

    Attributes:
        nodes: in order of execution.
        layers: for each node the layer whose BatchNormalization it is, or None.
        constants: by name.
        ir_version: of the format.
    """

    nodes: List[onnx.NodeProto]
    layers: List[Optional[str]]
    constants: Dict[str, onnx.TensorProto]
    ir_version: int


def _tidy(graph: onnx.GraphProto) -> Tuple[List[onnx.NodeProto], Dict[str, onnx.TensorProto]]:
    """Nodes that compute, and constants: each value stored once, and read without a detour."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    source = {name: name for name in constants}
    stored: Dict[bytes, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == 'Identity' and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        elif node.op_type == 'Constant' and node.attribute[0].name == 'value':
            tensor = node.attribute[0].t
            source[node.output[0]] = name = stored.setdefault(tensor.SerializeToString(), node.output[0])
            constants.setdefault(name, tensor).name = name
        else:
            node.input[:] = [source.get(name, name) for name in node.input]
            kept.append(node)
    return kept, constants


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
        weights = (self._one_set if tables.interpolation == 'nearest' else self._two_sets)(resolution, tables)
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
        if tables.interpolation != 'params':
            return blended
        scale = blended['gamma']
        if len(tables.resolutions) > 1:  # the first row of the variances is 1 everywhere, and not stored
            first, others = (f'{PREFIX}weight_{part}' for part in ('first', 'others'))
            table = tables.values['variance'][1:]
            parts = self._constant('parts', [1, len(table)], np.int64)
            self._node('Split', [weights, parts], [first, others], 'parts', axis=1)
            variance = self._add('Add', self._add('MatMul', others, self._constant('variance', table)), first)
            scale = self._add('Div', scale, self._add('Sqrt', variance))
        return dict(scale=scale, shift=self._add('Sub', blended['beta'], self._add('Mul', blended['mean'], scale)))

    def _split(self, vectors: Dict[str, str], layers: Dict[str, int], ranks: Mapping[str, int]) -> None:
        channels = self._constant('channels', list(layers.values()), np.int64)
        others = {layer: rank for layer, rank in ranks.items() if rank != 4}
        for kind in ('scale', 'shift'):
            vector = self._add('Reshape', vectors[kind], self._shape(4))
            parts = [f'{PREFIX if layer in others else ""}{layer}.{kind}' for layer in layers]
            self._node('Split', [vector, channels], parts, f'split_{kind}', axis=1)
            for layer, rank in others.items():
                name = f'{layer}.{kind}'
                self._node('Reshape', [PREFIX + name, self._shape(rank)], [name], name)

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


def _apply_affine(node: onnx.NodeProto, layer: str) -> Tuple[onnx.NodeProto, onnx.NodeProto]:
    """Make the nodes that take the place of the BatchNormalization `node` of `layer`."""
    scaled = f'{node.output[0]}/scaled'
    return (
        helper.make_node('Mul', [node.input[0], f'{layer}.scale'], [scaled], name=f'{node.name}/Mul'),
        helper.make_node('Add', [scaled, f'{layer}.shift'], [node.output[0]], name=f'{node.name}/Add'),
    )


def _tensor(name: str, shape: Sequence[Union[int, str]]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
