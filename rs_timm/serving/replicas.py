"""The HTTP application as a deployment of Ray Serve: replicas on several machines. Needs `rs_timm[ray,serve]`."""
from os import PathLike
from pathlib import Path
from typing import Any, Tuple, Union

from rs_timm.predict.on_ray import open_session

__all__ = ['deployment']


def deployment(
        model: Union[str, 'PathLike[str]'],
        replicas: Union[int, Tuple[int, int]] = 1,
        *,
        threads: int = 1,
        max_queue: int = 256,
        max_batch: int = 4,
        session: Any = None,
        **options: Any,
) -> Any:
    """A classifier as an application for `ray.serve.run`, the same as `rs-timm serve` answers with, on every replica.

    Each replica has a session, a queue and a load controller of its own, measures the costs on its machine when it
    starts, and gets the file's content from here: no other machine needs the file. Serve hands each request to one of
    the replicas with the fewest in progress; `/status` and `/metrics` tell of the replica that answers them.

    >>> from ray import serve                                                         # doctest: +SKIP
    >>> serve.run(deployment('rs_resnet50.onnx', replicas=(1, 8)), route_prefix='/')   # doctest: +SKIP

    Args:
        model: an exported file.
        replicas: how many; or (least, most): one more is started while on average more than `max_batch` requests are in
            progress on each, so that they wait.
        threads: cores of a replica.
        max_queue, max_batch: as of `create_app`.
        session: further arguments of `Session` by name, such as dict(precision='bfloat16').
        options: further arguments of `create_app`, such as target_ms.

    Raises:
        FileNotFoundError: no such file.
        ImportError: Ray Serve is not installed.
        ValueError: no replicas, or fewer at most than at least.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError(f"replicas need Ray Serve ({error}): pip install 'rs_timm[ray,serve]'.") from error
    least, most = replicas if isinstance(replicas, tuple) else (replicas, replicas)
    if not 1 <= least <= most:
        raise ValueError(f'replicas {replicas!r}: give a positive number, or (least, most).')
    content = Path(model).read_bytes()
    engine = dict(session or {}, threads=threads)

    def build() -> Any:  # in a process of the replica
        from .app import create_app
        from .queue import measure_costs

        opened = open_session(content, engine)
        return create_app(opened, measure_costs(opened, max_batch), max_queue=max_queue, max_batch=max_batch, **options)

    count: Any = dict(num_replicas=least) if least == most else dict(autoscaling_config=dict(
        min_replicas=least, max_replicas=most, target_ongoing_requests=max_batch))
    made: Any = serve.deployment(
        serve.ingress(build)(), name='rs_timm', ray_actor_options=dict(num_cpus=threads),
        max_ongoing_requests=2 * max_queue,  # all reach a queue of ours, which refuses them in time
        **count)
    return made.bind()
