"""Does a plan find what an exhaustive search finds, in how much of its time, and is its p95 kept afterwards?

All engines, precisions and sizes of one network are measured to the end. What `rs-timm plan` would have measured, which
stops those early that are behind, is a part of that: it is run over the kept measurements, and counts the time of those
that it asks for. Then, for budgets from the fastest to the slowest point of the exhaustive search: what each of the two
chooses, by how many points of accuracy (of the exhaustive search) they differ, and the p95 of what the plan chose,
measured anew.

    python -m benchmarks.plan --data DIR --work FOLDER [--model rs_efficientnet_lite0] [--pictures 1000] [--trials 20]

DIR holds val/CLASS/*, and train/CLASS/* to calibrate int8 with. FOLDER keeps the exported file, the int8 networks and
what was measured: a run that was stopped goes on. The time of a search is that of measuring; opening, compiling and
calibrating, which both need alike, are apart.
"""
import argparse
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import numpy as np

from benchmarks.environment import RESULTS
from benchmarks.runtime.networks import environment, labelled, load
from benchmarks.store import put, read, text
from rs_timm.data import ImageFiles
from rs_timm.runtime import Plan, make_plan, measure_latency, read_info
from rs_timm.runtime.planned import PlannedSession
from rs_timm.runtime.policy.plan_plot import plot_plan

UNIT = ('model', 'part', 'case')
SEARCHES = {'exhaustive': None, 'plan': 1.}  # name -> tolerance
_CALIBRATION = 300


def main(arguments: Optional[Sequence[str]] = None) -> None:
    args = _parse(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    file = args.work / f'{args.model}.onnx'
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            os.replace(load(args.model, Path(folder)).file, file)
    pictures, targets = labelled(args.data / 'val', read_info(file).label_names, args.pictures)
    plans = {name: _search(args, file, name, pictures, targets) for name in SEARCHES}
    plot_plan(plans['plan'], args.out.with_name('plan.png'))
    _trials(args, plans['exhaustive'], plans['plan'])
    rows = read(args.out, model=args.model, part='trial')
    kept, lost = sum(row['kept'] == 'True' for row in rows), max(float(row['lost']) for row in rows)
    times = {row['case']: float(row['seconds']) for row in read(args.out, model=args.model, part='search')}
    share = times['plan'] / times['exhaustive']
    print(f'# {share:.2f} of the time; at most {lost:.2f} points lost; p95 kept in {kept} '
          f'of {len(rows)} trials')


def _columns(args: argparse.Namespace) -> Dict[str, Any]:
    return dict(model=args.model, load=os.getloadavg()[0], **environment(args.threads))


def _search(
        args: argparse.Namespace,
        file: Path,
        name: str,
        pictures: Sequence[Path],
        targets: np.ndarray,
) -> Plan:
    """The plan of a search, measured if it is not there."""
    out = args.work / f'{name}.json'
    if out.exists() and read(args.out, model=args.model, part='search', case=name) and not args.again:
        return Plan.load(out)
    networks = args.work / 'networks'
    calibration = ImageFiles(args.data / 'train', 0).files[:_CALIBRATION]
    plan = make_plan(
        [file], pictures, targets.tolist(), engines=args.engines, precisions=args.precisions, sizes=args.sizes,
        threads=args.threads, calibration=calibration, networks=networks, tolerance=SEARCHES[name],
        log=args.work / 'measured.jsonl', note=lambda text: print(f'# {text}'), progress=True)
    plan.save(out)
    print(plan)
    sizes = sorted({point.resolution for point in (*plan.points, *plan.dropped)}, reverse=True)
    row = dict(part='search', case=name, seconds=plan.seconds, sizes=' '.join(map(str, sizes)), pictures=plan.pictures,
               points=len(plan.points), dropped=len(plan.dropped),
               answers=sum(point.pictures for point in (*plan.points, *plan.dropped)))
    put(args.out, [dict(row, **_columns(args))], UNIT)
    return plan


def _trials(args: argparse.Namespace, exhaustive: Plan, plan: Plan) -> None:
    """For each budget: the two choices, and the p95 of the plan's, measured anew."""
    accuracy = {point.name: point.accuracy for point in exhaustive.points}
    limits = [point.limit() for point in exhaustive.points]
    done = {row['case'] for row in read(args.out, model=args.model, part='trial')}
    session: Any = PlannedSession(plan)
    for number, ms in enumerate(np.geomspace(min(limits), max(limits), args.trials)):
        if str(number) in done and not args.again:
            continue
        best = exhaustive.choose(ms=ms)
        session.set_budget(ms=ms, if_none='smallest')
        size = session.resolution
        timing = measure_latency(session, (size,), repeats=args.repeats).row(size).network
        row = dict(part='trial', case=str(number), budget_ms=float(ms), exhaustive=best.name, chosen=session.point.name,
                   lost=accuracy[best.name] - accuracy[session.point.name], p95_ms=timing.p95_ms,
                   kept=timing.p95_ms <= ms)
        put(args.out, [dict(row, **_columns(args))], UNIT)
        print(', '.join(f'{name} {text(value)}' for name, value in row.items()), flush=True)


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='folder with val/CLASS/* and train/CLASS/*')
    parser.add_argument('--work', type=Path, required=True, help='keeps networks and measurements')
    parser.add_argument('--model', default='rs_efficientnet_lite0')
    parser.add_argument('--engines', nargs='+')
    parser.add_argument('--precisions', nargs='+')
    parser.add_argument('--sizes', type=int, nargs='+')
    parser.add_argument('--pictures', type=int, default=1000)
    parser.add_argument('--trials', type=int, default=20)
    parser.add_argument('--repeats', type=int, default=100, help='calls that a p95 is measured anew with')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--again', action='store_true', help='measure what is in the table, too')
    parser.add_argument('--out', type=Path, default=RESULTS / 'plan.csv')
    return parser.parse_args(arguments)


if __name__ == '__main__':
    main()
