"""Markdown tables, and how a figure that nobody measured is written."""
from typing import Iterable, Sequence

__all__ = ['NOT_MEASURED', 'measured_or_note', 'table']

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


def measured_or_note(
        header: Sequence[str],
        rows: Iterable[Sequence[str]],
        labels: int = 1,
        foot: Sequence[Sequence[str]] = (),
) -> str:
    """A Markdown table, or one line in its place if nobody measured any of it.

    >>> print(measured_or_note(['size', 'top-1'], [['96', NOT_MEASURED]]))
    Table: not measured.

    Args:
        header: headings.
        rows: what could be measured.
        labels: how many columns in front are not measured but named or counted.
        foot: further rows of what is not measured.
    """
    lines = list(rows)
    if {cell for line in lines for cell in line[labels:]} <= {NOT_MEASURED, ''}:
        return f'Table: {NOT_MEASURED}.'
    return table(header, [*lines, *foot])
