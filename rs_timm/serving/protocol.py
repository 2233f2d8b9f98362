"""Tensors of the Open Inference Protocol v2: in JSON, and behind the JSON in binary.

https://github.com/kserve/open-inference-protocol and Triton's extension "binary tensor data".
"""
import json
from typing import Any, Dict, Mapping, Optional, Tuple

import numpy as np

__all__ = ['INPUT', 'OUTPUT', 'read_request', 'write_response']

INPUT, OUTPUT = 'images', 'logits'


def read_request(body: bytes, header_length: Optional[str], channels: int, max_batch: int) -> Tuple[
        np.ndarray, Dict[str, Any], bool]:
    """The batch, the whole request, and whether the answer is to be binary.

    Args:
        body: JSON, and behind it the binary data.
        header_length: bytes of JSON, as the header Inference-Header-Content-Length says; None: all.
        channels: of a picture.
        max_batch: pictures that are taken at most.

    Raises:
        ValueError: what is wrong with the request.
    """
    try:
        length = len(body) if header_length is None else int(header_length)
        request: Any = json.loads(body[:length]) if 0 <= length <= len(body) else None
    except ValueError as error:
        raise ValueError(f'the request is no JSON: {error}') from error
    inputs = request.get('inputs') if isinstance(request, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise ValueError(f'the request has to have one input, {INPUT!r}')
    (tensor,) = inputs
    name, datatype, shape = (tensor.get(key) for key in ('name', 'datatype', 'shape'))
    if name != INPUT or datatype != 'FP32':
        raise ValueError(f'input {name!r} of {datatype!r}: give {INPUT!r} of FP32')
    if (not isinstance(shape, list) or len(shape) != 4 or not all(type(side) is int and side > 0 for side in shape)
            or shape[1] != channels or shape[2] != shape[3] or shape[0] > max_batch or shape[2] > 4096):
        raise ValueError(f'shape {shape!r}: expected [N, {channels}, r, r] with N from 1 to {max_batch}, r up to 4096')
    count = int(np.prod(shape))
    size = _parameters(tensor).get('binary_data_size')
    if size is None:
        data = tensor.get('data')
        try:
            x = np.asarray(data, np.float32).reshape(-1)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f'data of {INPUT!r} are no numbers') from error
    elif size != 4 * count or len(body) - length != size:
        raise ValueError(f'{len(body) - length} bytes of binary data, of which binary_data_size says {size!r}; the '
                         f'shape needs {4 * count}')
    else:
        x = np.frombuffer(body, '<f4', count, length).astype(np.float32)
    if x.size != count:
        raise ValueError(f'{x.size} numbers for a shape that has {count}')
    if not np.isfinite(x).all():
        raise ValueError(f'data of {INPUT!r} are not all finite')
    binary = bool(_parameters(request).get('binary_data_output'))
    for output in request.get('outputs') or ():
        if not isinstance(output, dict) or output.get('name') != OUTPUT:
            raise ValueError(f'there is one output, {OUTPUT!r}')
        binary = bool(_parameters(output).get('binary_data', binary))
    return x.reshape(shape), request, binary


def write_response(
        logits: np.ndarray,
        model: str,
        request: Mapping[str, Any],
        parameters: Mapping[str, Any],
        binary: bool,
) -> Tuple[bytes, Dict[str, str]]:
    """Body and headers of an answer."""
    output: Dict[str, Any] = dict(name=OUTPUT, datatype='FP32', shape=list(logits.shape))
    data = np.ascontiguousarray(logits, '<f4')
    if binary:
        output['parameters'] = dict(binary_data_size=data.nbytes)
    else:
        output['data'] = [float(value) for value in data.reshape(-1)]
    response: Dict[str, Any] = dict(model_name=model, model_version='1', parameters=dict(parameters), outputs=[output])
    if isinstance(request.get('id'), str):
        response['id'] = request['id']
    header = json.dumps(response, allow_nan=False).encode()
    if not binary:
        return header, {'Content-Type': 'application/json'}
    return header + data.tobytes(), {
        'Content-Type': 'application/octet-stream', 'Inference-Header-Content-Length': str(len(header))}


def _parameters(of: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = of.get('parameters') or {}
    if not isinstance(parameters, dict):
        raise ValueError(f'parameters {parameters!r}: an object is expected')
    return parameters
