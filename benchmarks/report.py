"""Write the generated parts of README.md, MODEL_CARD.md and docs/*.md, and the plots: `python -m benchmarks.report`.

A generated part stands between `<!-- report:NAME -->` and `<!-- /report:NAME -->`. Figures come from counting or from
benchmarks/results/*.csv; what nobody measured says so. Plots go beside the CSV files, as PNG and SVG.
"""
import re
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Sequence

import timm

import rs_timm  # noqa: F401 (registers the models)
from benchmarks.adaptation import SECTIONS as ADAPTATION
from benchmarks.adapted import SECTIONS as ADAPTED
from benchmarks.environment import RESULTS
from benchmarks.finetune import SECTIONS as FINETUNE
from benchmarks.paper.pictures import write_pictures
from benchmarks.paper.sections import SECTIONS as PAPER
from benchmarks.run_record import stages_of
from benchmarks.runtime.figures import write_figures
from benchmarks.runtime.sections import SECTIONS as RUNTIME
from benchmarks.store import NOT_MEASURED, Row, markdown, section
from benchmarks.training_sections import SECTIONS as TRAINING
from benchmarks.training_sections import plot
from rs_timm.analysis import madds, parameter_counts
from rs_timm.models import manifest, weights_dir

ROOT = Path(__file__).resolve().parent.parent
_MARK = re.compile(r'<!-- report:(\w+) -->')
DOCUMENTS = ('README.md', 'MODEL_CARD.md', *sorted(
    f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md') if _MARK.search(path.read_text(encoding='utf-8'))))
MODELS = ('rs_resnet18', 'rs_resnet34', 'rs_resnet50', 'rs_resnet101', 'rs_mobilenetv2', 'rs_efficientnet_lite0')


def cost_section() -> str:
    """Multiply-adds and parameters of the registered models; counted, not measured."""
    rows = []
    for name in MODELS:
        model = timm.create_model(name, device='meta', num_classes=1000)
        counts = parameter_counts(model)
        rows.append([
            f'`{name}`',
            *(f'{madds(model, r) / 1e6:.1f}' for r in model.resolutions),
            f'{counts.total / 1e6:.2f} ({counts.total / 2 ** 20:.2f})',
            f'{100 * counts.private_share:.2f} %',
        ])
    header = ['model', *(f'{r} px' for r in model.resolutions), 'parameters, millions (2^20)', 'in private BatchNorms']
    return ('Multiply-adds per image in millions (convolutions and linear layers), and parameters with 1000 classes:\n'
            '\n' + markdown(header, rows))


def weights_section() -> str:
    """The shipped weights and their top-1, as benchmarks/ship_imagenet.py and ship_weights.py measured it."""
    entries = manifest()
    with_crops = {name: entry for name, entry in entries.items() if 'crops' in entry}
    trained = {name: entry for name, entry in entries.items() if 'recipe' in entry}
    parts = [_imagenet_weights(with_crops)] if with_crops else []
    parts += [_trained_weights(trained)] if trained else []
    return '\n\n'.join(parts) or 'None yet.'


def _imagenet_weights(entries: Mapping[str, Dict[str, Any]]) -> str:
    sizes = sorted({int(r) for entry in entries.values() for r in entry['crops']}, reverse=True)
    rows = [[
        f'`{name}`',
        *(f"{_percent(entry['top1'].get(str(r)))} ({entry['crops'][str(r)]})" if str(r) in entry['crops'] else '-'
          for r in sizes),
        _megabytes(entry),
    ] for name, entry in entries.items()]
    header = ['weights for the 1000 classes of ImageNet', *(f'{r} px' for r in sizes), 'file']
    note = 'In brackets the crop of each size: its side over the shorter side of the resized picture.'
    measured = next((entry['measured'] for entry in entries.values() if 'measured' in entry), None)
    if measured is None:
        return f'{markdown(header, rows)}\n\n{note}'
    return (f"{markdown(header, rows)}\n\nTop-1 in percent on {measured['data']} ({measured['pictures']} pictures, on "
            f"which nothing was chosen), weights in {measured['weights']}, run on {environment_of(measured)}. {note}")


def _trained_weights(entries: Mapping[str, Dict[str, Any]]) -> str:
    sizes = sorted({int(r) for entry in entries.values() for r in entry['top1'] if r != 'ensemble'}, reverse=True)
    rows = [[
        f'`{name}`',
        *(_percent(entry['top1'].get(str(row))) for row in (*sizes, 'ensemble')),
        _megabytes(entry),
    ] for name, entry in entries.items()]
    header = ['weights', *(f'{r} px' for r in sizes), 'ensemble of all sizes', 'file']
    measured = next(iter(entries.values()))['measured']
    places = '; '.join(dict.fromkeys(environment_of(entry['measured']) for entry in entries.values()))
    runs = '\n'.join(f'* `{name}`: {_training_of(entry["recipe"])}' for name, entry in entries.items())
    return (f"{markdown(header, rows)}\n\n{runs}\n\nTop-1 in percent on {measured['data']} ({measured['pictures']} "
            f'pictures, ten classes); the weights as shipped, in float16, run on {places}.')


def _percent(value: Optional[float]) -> str:
    return NOT_MEASURED if value is None else f'{value:.1f}'


def _megabytes(entry: Dict[str, Any]) -> str:
    return f"{(weights_dir() / entry['file']).stat().st_size / 1e6:.1f} MB"


def _training_of(record: Dict[str, Any]) -> str:
    places = [f"{', then '.join(chain.from_iterable(map(_steps_of, stages)))}; {hardware}"
              for hardware, stages in groupby(stages_of(record), itemgetter('hardware'))]
    return f"from random weights, {'. Then '.join(places)}."


def _steps_of(stage: Dict[str, Any]) -> Iterator[str]:
    epochs, minutes = stage['epochs'], round(stage['minutes'])
    yield f"{epochs} epoch{'s' * (epochs > 1)} of `{stage['name']}` ({minutes} minute{'s' * (minutes != 1)})"
    if stage.get('recalibrated'):
        yield f"BatchNorm statistics of {stage['recalibrated']} training pictures"


def environment_of(row: Dict[str, str]) -> str:
    return f"{row['device']}, {row['dtype']}, {row['threads']} threads, torch {row['torch']}, timm {row['timm']}"


@section('switch_cost')
def switch_section(rows: Sequence[Row]) -> str:
    """The time of a switch, and the forward time of a switchable network against stock timm, one row a model."""
    lines = []
    for name in dict.fromkeys(row['model'] for row in rows):
        own = [row for row in rows if row['model'] == name]
        switch = [row for row in own if row['question'] == 'switch against load']
        ratios = [float(row['ratio']) for row in own if row['question'].startswith('forward')]
        lines.append([
            f'`{name}`',
            ', '.join(f"{1e3 * float(row['rs_ms']):.1f} ({row['resolution']})" for row in switch),
            ', '.join(f"{float(row['other_ms']):.1f}" for row in switch),
            f'{min(ratios):.3f} to {max(ratios):.3f}, median {median(ratios):.3f}',
        ])
    header = ['model', '`set_resolution`, us', 'loading another network from disk, ms', 'forward time / stock timm']
    return (f'{markdown(header, lines)}\n\nMedians over interleaved rounds of one run; forward at batch 1 and 32, at '
            f'224 and 96 px, following the input and pinned; eager; {environment_of(rows[0])}.')


@section('soak')
def soak_section(rows: Sequence[Row]) -> str:
    """What became of damaged files, kills, threads and pairs, before and now."""
    outcomes = ('tried', 'clear', 'right', 'wrong', 'raw', 'hang')
    lines = []
    for about in dict.fromkeys(row['about'] for row in rows):
        found = {row['when']: row for row in rows if row['about'] == about}
        lines.append([about, *(found[when][outcome] if when in found else '' for when in ('before', 'now')
                               for outcome in outcomes)])
    commits = '; '.join(f'{when}: commit {", ".join(sorted({row["commit"] for row in rows if row["when"] == when}))}'
                        for when in ('before', 'now'))
    return (markdown(['', *(f'{when}: {outcome}' for when in ('before', 'now') for outcome in outcomes)], lines)
            + f'\n\n{commits}.')


SECTIONS: Dict[str, Callable[[], str]] = {
    'cost': cost_section,
    'weights': weights_section,
    'switch': switch_section,
    'soak': soak_section,
    **RUNTIME,
    **TRAINING,
    **PAPER,
    **ADAPTATION,
    **ADAPTED,
    **FINETUNE,
}


def render(text: str) -> str:
    """`text` with every generated part made anew."""
    def replace(match: 're.Match[str]') -> str:
        name = match[1]
        if name not in SECTIONS:
            raise ValueError(f"generated part {name!r} is unknown: there are {', '.join(SECTIONS)}.")
        return f'<!-- report:{name} -->\n{SECTIONS[name]()}\n<!-- /report:{name} -->'

    return re.sub(r'<!-- report:(\w+) -->.*?<!-- /report:\1 -->', replace, text, flags=re.DOTALL)


def main() -> None:
    for document in DOCUMENTS:
        path = ROOT / document
        path.write_text(render(path.read_text(encoding='utf-8')), encoding='utf-8')
        print(f'wrote {document}')
    for name in [*write_pictures(RESULTS), *write_figures(RESULTS), *plot()]:
        print(f'drew {name}')


if __name__ == '__main__':
    main()
