"""Markdown tables, and how a figure that nobody measured is written."""
from typing import Iterable, Sequence

__all__ = ['NOT_MEASURED', 'table']

NOT_MEASURED = 'not measured'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(['size', 'top-1'], [['96', '61.5']]))
    | size | top-1 |
    | --- | --- |
    | 96 | 61.5 |
    """
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
