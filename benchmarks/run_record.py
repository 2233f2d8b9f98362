"""What the manifest keeps of a training run: all that is needed to repeat it, with the run that it started from.

    python -m benchmarks.run_record runs/rs_resnet18    # writes runs/rs_resnet18/record.json

where the training ran, lets `benchmarks.ship_weights` work elsewhere, with a copy of that folder alone.
"""
import argparse
import json
import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Dict, Iterator, Sequence

import torch

from benchmarks.store import read
from rs_timm.models import file_sha256, manifest
from rs_timm.runtime.policy.machine import describe_machine
from rs_timm.training import RECIPES, Recipe

_KEPT = 'record.json'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('run', type=Path, help="output folder of 'rs-timm train'")
    parser.add_argument('--hardware', nargs='+', default=[hardware_here()], metavar='TEXT',
                        help='that it was trained on, then that of the stage before (default: %(default)s)')
    args = parser.parse_args()
    path = args.run / _KEPT
    path.write_text(json.dumps(_record_from_logs(args.run, args.hardware), indent=2) + '\n', encoding='utf-8')
    print(f'wrote {path}')


def hardware_here() -> str:
    """This machine in one line, for a run that took place on it."""
    machine = describe_machine()
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {machine['cores']} cores"
    kinds = ', '.join(machine['instructions']) or machine['architecture']
    return f"{machine['cores']} cores, {machine['cpu']} ({kinds})"


def record_of(run: Path, hardware: Sequence[str]) -> Dict[str, Any]:
    """Of an output folder of `rs-timm train`: what ran, where, for how long, to what end.

    Args:
        run: the folder, with recipe.json and log.csv, or with the record.json that was made of them.
        hardware: that it ran on, then that of the run it started from, and so on; the last one stands for all before.
            A record.json says it itself.

    Returns:
        'command', 'name' (the closest recipe), 'settings' (those that are not the defaults of a recipe), 'epochs',
        'minutes' (of training by the clock; evaluation is left out, pauses of the process are not), 'hardware', 'top1'
        (in the last epoch, in percent) and, for a run that started from another one or from shipped weights, 'init':
        the same of that one, and the sha256 of its weights.

    Raises:
        ValueError: weights that the run started from are not of a run, so that nobody can say what they are.
    """
    if (run / _KEPT).is_file():
        return json.loads((run / _KEPT).read_text(encoding='utf-8'))
    return _record_from_logs(run, hardware)


def _record_from_logs(run: Path, hardware: Sequence[str]) -> Dict[str, Any]:
    ran = json.loads((run / 'recipe.json').read_text(encoding='utf-8'))
    model, init = ran.pop('model'), ran.pop('init')
    rows = read(run / 'log.csv')
    seconds = {row['epoch']: float(row['seconds']) for row in rows}
    recipe = Recipe(**{key: tuple(value) if isinstance(value, list) else value for key, value in ran.items()})
    name = min(RECIPES, key=lambda name: (
        len(recipe.differences(asdict(RECIPES[name]()))), bool(RECIPES[name].goes_on_from) is not bool(init)))
    record = dict(
        command=_command(model, recipe, name, bool(init)),
        name=name,
        settings={field: mine for field, (mine, _) in recipe.differences(asdict(Recipe())).items()},
        epochs=recipe.epochs,
        minutes=round(sum(seconds.values()) / 60, 1),
        hardware=hardware[0],
        top1={row['resolution']: round(float(row['top1']), 2) for row in rows if row['epoch'] == rows[-1]['epoch']},
    )
    return dict(record, init=_record_of_start(init, hardware[1:] or hardware)) if init else record


def _record_of_start(init: str, hardware: Sequence[str]) -> Dict[str, Any]:
    shipped = manifest().get(init)
    if shipped:
        return dict(shipped['recipe'], sha256=shipped['sha256'])
    path = Path(init)
    runs = [folder for folder in (path.parent, path.parent.parent) if (folder / 'recipe.json').is_file()]
    if not (path.is_file() and runs):
        raise ValueError(f'the run started from {init!r}, which is no file in an output folder of rs-timm train, seen '
                         'from here: origin and licence of these weights are not known. Run this where the training '
                         'was started.')
    return dict(record_of(runs[0], hardware), sha256=file_sha256(path))


def _command(model: str, recipe: Recipe, name: str, second: bool) -> str:
    """The arguments that make `recipe` of the recipe `name` again."""
    words = ['rs-timm', 'train', model, '--data', 'DIR', '--recipe', name]
    words += ['--init', 'WEIGHTS'] if second else []
    changed = recipe.differences(asdict(RECIPES[name]()))
    for field in (field.name for field in fields(Recipe) if field.name in changed):
        name, value = field.replace('_', '-'), changed[field][0]
        if isinstance(value, bool):
            words.append(f'--{name}' if value else f'--no-{name}')
        else:
            words += [f'--{name}', *map(str, value if isinstance(value, tuple) else (value,))]
    return shlex.join(words)


def stages_of(record: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    """The records of a run and of those before it, the first one first."""
    if 'init' in record:
        yield from stages_of(record['init'])
    yield record


if __name__ == '__main__':
    main()
