"""`python -m rs_timm.run [--mred MODE] SCRIPT.py ARGS...`: run an unmodified script of timm with the `rs_*` models.

timm's `validate.py`, `benchmark.py`, `inference.py`, `onnx_export.py` and `train.py` are not part of its wheel: clone
https://github.com/huggingface/pytorch-image-models. Scripts that the script starts with Python, as `bulk_runner.py`
does, have the models too. As the models follow their input, `--img-size 160` runs the
BatchNorm set for 160 pixels, with the crop of that size unless `--crop-pct` is given. For several processes:
`torchrun --nproc_per_node 4 -m rs_timm.run train.py ...`.

`--mred full` before `train.py` trains all resolutions of the model at once, as `rs-timm train --mred full` does; the
script loads and augments pictures of the largest size (`--img-size 224`), and the others are reduced from those.
"""
import os
import runpy
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ContextManager, Dict, Iterator, List, Optional

import rs_timm
from rs_timm.crops import crop_at, crops_of

__all__ = ['main']

_USAGE = 'usage: python -m rs_timm.run [--mred MODE] SCRIPT.py [ARGS...]'


def main(argv: Optional[List[str]] = None) -> None:
    """Run the script `argv[0]` as `__main__`, as `python SCRIPT.py ARGS...` would.

    Args:
        argv: script and its arguments, perhaps with --mred MODE before them; None takes those of this process.

    Raises:
        SystemExit: with status 2 where there is no such script, or whatever the script exits with.
        ValueError: an unknown mode.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    context: ContextManager[None] = nullcontext()
    if argv[:1] == ['--mred'] and len(argv) > 1:
        from rs_timm.training.script_task import mred_in_scripts
        context, argv = mred_in_scripts(argv[1]), argv[2:]
    if not argv or argv[0] in ('-h', '--help'):
        print(__doc__ if argv else _USAGE, file=sys.stdout if argv else sys.stderr)
        sys.exit(0 if argv else 2)
    script = argv[0]
    if not os.path.isfile(script):
        print(f"{_USAGE}\n{script}: no such file. timm's scripts come with its source: git clone "
              'https://github.com/huggingface/pytorch-image-models', file=sys.stderr)
        sys.exit(2)
    sys.argv = argv
    _set_path(script)
    with context, _models_in_children(), _crops_by_size():
        runpy.run_path(script, run_name='__main__')


def _set_path(script: str) -> None:
    """The script's folder in the place of the current one; rs_timm stays importable, for spawned processes too."""
    folder, home = os.path.dirname(os.path.abspath(script)), os.path.dirname(rs_timm.__path__[0])
    sys.path[:1] = [folder]
    if home not in sys.path:
        sys.path.append(home)


@contextmanager
def _crops_by_size() -> Iterator[None]:
    """A context in which timm's scripts take the crop of `--img-size`, where the model has crops of its own."""
    import timm.data
    from timm.utils import unwrap_model

    original = timm.data.resolve_data_config

    def resolve(args: Any = None, *others: Any, **named: Any) -> Dict[str, Any]:
        config = original(args, *others, **named)
        model = named.get('model', others[1] if len(others) > 1 else None)
        crops = crops_of(unwrap_model(model)) if model is not None else None
        if crops and not (args or {}).get('crop_pct'):
            config['crop_pct'] = crop_at(crops, config['input_size'][-1])
        return config

    timm.data.resolve_data_config = timm.data.config.resolve_data_config = resolve
    try:
        yield
    finally:
        timm.data.resolve_data_config = timm.data.config.resolve_data_config = original


# What Python runs by itself in a process that the script starts; another sitecustomize comes to its turn first.
_SITECUSTOMIZE = '''
import sys
sys.path.remove({folder!r})
this = sys.modules.pop('sitecustomize')
try:
    import sitecustomize
except ImportError:
    sys.modules['sitecustomize'] = this
import rs_timm
'''


@contextmanager
def _models_in_children() -> Iterator[None]:
    """A context in which a Python that this one starts registers the models as soon as it imports timm."""
    before = os.environ.get('PYTHONPATH')
    with TemporaryDirectory() as folder:
        Path(folder, 'sitecustomize.py').write_text(_SITECUSTOMIZE.format(folder=folder))
        paths = (folder, before, os.path.dirname(rs_timm.__path__[0]))
        os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, paths))
        try:
            yield
        finally:
            del os.environ['PYTHONPATH']
            if before is not None:
                os.environ['PYTHONPATH'] = before


if __name__ == '__main__':
    main()
