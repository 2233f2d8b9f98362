"""Batches of a collection through sessions on a Ray cluster: Ray Data hands them out, and again what a machine lost.

The process that asks writes the rows, so that the file, resuming and the order are those of one machine.
"""
import json
import logging
import pickle
import shutil
import tempfile
import weakref
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence

from PIL import Image

from rs_timm.runtime.session import Session

from .batch import Work, predict_batches
from .collection import Collection
from .rows import Row, json_of, row_of

__all__ = ['connected', 'open_session', 'predict_on_ray']

_TOGETHER = 4  # batches that a worker gets at a time, so that it reads ahead


@contextmanager
def connected(address: Optional[str] = None) -> Iterator[None]:
    """Connect to a cluster; Ray's own choice of port and logs. A connection that is there is used, and stays.

    Args:
        address: of the cluster; None: that of RAY_ADDRESS, else one on this machine that ends with the block.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: there is no such cluster.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(f"a Ray cluster needs Ray Data ({error}): pip install 'rs_timm[ray]'.") from error
    if ray.is_initialized():
        yield
        return
    ray.init(address, include_dashboard=None if address else False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def predict_on_ray(
        open_session: Callable[[], Session],
        pictures: Collection,
        work: Work,
        batches: Iterable[Sequence[int]],
        cores: int = 1,
        workers: Optional[int] = None,
) -> Iterator[List[Row]]:
    """Rows of batches of positions, in the order in which they come.

    Args:
        open_session: makes a worker's session; it is sent there.
        pictures: their paths have to be there on all machines.
        work: what is asked of the network.
        batches: of positions.
        cores: of a worker.
        workers: processes, each with a session; None: as many as the cluster has cores for.
    """
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # there is one of ours
    context.print_on_execution_start = False
    items, batches = [], list(batches)
    for start in range(0, len(batches), _TOGETHER):
        some = batches[start:start + _TOGETHER]
        part = pictures.part([position for batch in some for position in batch])
        items.append({'work': pickle.dumps((part, [len(batch) for batch in some]))})
    fitting = max(1, int(ray.cluster_resources().get('CPU', 1) // cores))
    size = min(workers or fitting, len(items))
    rows = ray.data.from_items(items, override_num_blocks=len(items)).flat_map(
        _Worker, fn_constructor_args=(open_session, work), num_cpus=cores,
        compute=ray.data.ActorPoolStrategy(size=size))
    for row in rows.iter_rows():
        yield [row_of(values) for values in json.loads(row['rows'])]


class _Worker:
    """A session in a process of Ray's."""

    def __init__(self, open_session: Callable[[], Session], work: Work) -> None:
        self._session, self._work = open_session(), work

    def __call__(self, item: Dict[str, Any]) -> List[Dict[str, str]]:
        pictures, lengths = pickle.loads(item['work'])
        ends = [sum(lengths[:index + 1]) for index in range(len(lengths))]
        batches = [range(end - length, end) for end, length in zip(ends, lengths)]
        return [{'rows': json_of([asdict(row) for row in rows])}
                for rows in predict_batches(self._session, pictures, self._work, batches)]


def open_session(model: bytes, options: Dict[str, Any]) -> Session:
    """A `Session` of an exported file's content, on a machine that has not the file; `options` as for a `Session`."""
    folder = tempfile.mkdtemp(prefix='rs_timm_')
    path = Path(folder, 'model.onnx')
    path.write_bytes(model)
    session = Session(path, **options)
    Image.MAX_IMAGE_PIXELS = session.max_pixels  # Pillow's own bound gives way: the process is this session's
    weakref.finalize(session, shutil.rmtree, folder, ignore_errors=True)
    return session
