"""The generated parts of docs/paper.md and the one of README.md."""
from typing import Callable, Dict

from benchmarks import environment
from benchmarks.paper import effects, pictures, tables
from benchmarks.paper.aggregate import Results, load, shown_presets
from benchmarks.paper.listing import ladder_table, runs_table
from benchmarks.paper.pilot import pilot_results, pilot_table
from benchmarks.paper.quantised import table_3
from benchmarks.paper.segmentation import cost_of_resnet101, table_7

__all__ = ['SECTIONS']

_FROM_DOCS, _FROM_ROOT = '../benchmarks/results', 'benchmarks/results'
Part = Callable[[Results], str]


def _picture(name: str) -> Part:
    return lambda results: pictures.markdown(name, results, _FROM_DOCS)


def _section(*parts: Part) -> Callable[[], str]:
    """The parts, for the small preset and for every preset of ImageNet of which there are results."""
    def write() -> str:
        return '\n\n'.join(part(results) for results in shown_presets(environment.RESULTS) for part in parts)

    return write


def readme_section() -> str:
    """Table 2 without top-5, and Figure 1."""
    results = load('small', environment.RESULTS)
    return '\n\n'.join([
        tables.table_2_small(results),
        pictures.markdown('figure1', results, _FROM_ROOT),
        'All tables and figures, the paper\'s beside them, and the runs behind them: [docs/paper.md](docs/paper.md).',
    ])


def ladder_section() -> str:
    """From ordinary weights."""
    results = load('ladder', environment.RESULTS)
    return f"{ladder_table(results)}\n\n{pictures.markdown('ladder', results, _FROM_DOCS)}"


def pilot_section() -> str:
    """The choice of the learning rate."""
    return pilot_table(environment.RESULTS)


def rates_section() -> str:
    """What the rate of private BatchNorms does."""
    return tables.rates_table(load('small', environment.RESULTS))


def quantised_section() -> str:
    """Table 3."""
    return table_3(load('quantised', environment.RESULTS))


def segmentation_section() -> str:
    """Table 7, and what the paper's own network costs."""
    results = load('camvid', environment.RESULTS)
    return f'{table_7(results)}\n\n{cost_of_resnet101(results)}'


def runs_section() -> str:
    """All planned runs."""
    folder = environment.RESULTS
    found = [*shown_presets(folder), load('ladder', folder), pilot_results(folder),
             *(load(name, folder) for name in ('quantised', 'camvid'))]
    return '\n\n'.join(map(runs_table, found))


SECTIONS: Dict[str, Callable[[], str]] = {
    'paper': readme_section,
    'paper_table2': _section(_picture('figure1'), tables.table_2),
    'paper_figure4': _section(_picture('figure4'), tables.figure_4_table),
    'paper_dense': _section(_picture('dense'), tables.measured_on, tables.dense_table),
    'paper_table1': _section(tables.table_1),
    'paper_table5': _section(tables.table_5),
    'paper_table6': _section(tables.table_6),
    'paper_table8': _section(tables.table_8),
    'paper_figure3': _section(_picture('figure3'), effects.features_table),
    'paper_figure9': _section(_picture('figure9'), effects.effects_table),
    'paper_figure6': _section(_picture('figure6'), effects.norms_table),
    'paper_alpha': _section(_picture('alpha'), effects.alpha_table),
    'paper_ladder': ladder_section,
    'paper_table3': quantised_section,
    'paper_table7': segmentation_section,
    'paper_pilot': pilot_section,
    'paper_rates': rates_section,
    'paper_runs': runs_section,
}
