"""What a quantised training step costs and what a quantised file takes, from the CSV files."""
from typing import Callable, Dict

from benchmarks import environment
from benchmarks.markdown import NOT_MEASURED, table
from benchmarks.runtime.table import read

__all__ = ['SECTIONS']


def cost_section() -> str:
    """Seconds of a step, quantised and not, and their ratio."""
    rows = read(environment.RESULTS / 'quantization_cost.csv')
    if not rows:
        return NOT_MEASURED
    lines = [[f"`{row['model']}`", row['against'], row['dtype'], f"{float(row['quantised_s']):.2f}",
              f"{float(row['full_s']):.2f}", f"{float(row['ratio']):.2f}"] for row in rows]
    first = rows[0]
    return (f"{table(['network', 'against', 'dtype', 'step, s', 'full precision, s', 'ratio'], lines)}\n\nBatch "
            f"{first['batch']} at {first['sizes'].replace(' ', ', ')} px, medians of {first['rounds']} rounds; "
            f"{first['device']}, {first['threads']} threads, torch {first['torch']}, timm {first['timm']}.")


def size_section() -> str:
    """Bytes of one switchable network and of separate ones, packed, with the classifier in int8."""
    rows = [row for row in read(environment.RESULTS / 'quantization_size.csv') if row['head'] == 'int8']
    if not rows:
        return NOT_MEASURED
    lines = [[f"`{row['model']}`", row['classes'], f"{int(row['full_bytes']) / 1e6:.2f}",
              f"{int(row['packed_bytes']) / 1e6:.2f}", row['times_smaller'],
              f"{int(row['separate_packed_bytes']) / 1e6:.2f}", row['separate_over_switchable']] for row in rows]
    count = len(rows[0]['resolutions'].split(' '))
    header = ['network', 'classes', 'float32 file, MB', 'packed, MB', 'times smaller',
              f'{count} separate packed networks, MB', 'times the switchable one']
    return table(header, lines)


SECTIONS: Dict[str, Callable[[], str]] = {'quantization_cost': cost_section, 'quantization_size': size_section}
