"""A page of HTML in one file: no script, no link to anywhere, readable on a phone. All text is escaped."""
import base64
from html import escape
from typing import Iterable, Sequence, Union

__all__ = ['Html', 'details', 'page', 'paragraph', 'picture', 'section', 'table']

_STYLE = '''
body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 0 auto; padding: 0 1rem 3rem; color: #1a1a1a;
       background: #fff }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin-top: 2.2rem }
p { overflow-wrap: anywhere }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.25rem 0.5rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { white-space: normal; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; padding-left: 0;
                                white-space: normal; min-width: 5.5rem; max-width: 9rem }
img { max-width: 100%; height: auto; display: block; margin: 0.8rem 0 }
summary { cursor: pointer; padding: 0.5rem 0 }
small { color: #555 }
'''


class Html(str):
    """Text that is HTML already; every other string is escaped when it gets into a page.

    >>> paragraph('a < b')
    '<p>a &lt; b</p>'
    >>> paragraph(Html('<b>bold</b>'))
    '<p><b>bold</b></p>'
    """


def _html(content: Union[str, Html]) -> Html:
    return content if isinstance(content, Html) else Html(escape(content))


def page(title: str, parts: Iterable[Html]) -> str:
    """A whole document with a heading and its parts."""
    head = ('<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{escape(title)}</title>\n<style>{_STYLE}</style>')
    body = '\n'.join([f'<h1>{escape(title)}</h1>', *parts])
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def section(title: str, *parts: Html) -> Html:
    """A heading and what stands below it."""
    return Html('\n'.join([f'<section>\n<h2>{escape(title)}</h2>', *parts, '</section>']))


def paragraph(text: Union[str, Html]) -> Html:
    return Html(f'<p>{_html(text)}</p>')


def details(summary: str, content: Html) -> Html:
    """What is shown when a reader touches the summary; works without a script."""
    return Html(f'<details>\n<summary>{escape(summary)}</summary>\n{content}\n</details>')


def table(
        header: Sequence[str],
        rows: Iterable[Sequence[str]],
        shades: Union[None, Sequence[Sequence[float]]] = None,
) -> Html:
    """A table that scrolls sideways on a narrow screen under its first column, which holds names and stays.

    Args:
        header: names of the columns.
        rows: cells.
        shades: how strongly to colour each cell, 0 to 1, in the shape of `rows`.
    """
    names = (escape(cell).replace('top-', 'top&#8209;') for cell in header)  # headings break at spaces alone
    lines = ['<tr>' + ''.join(f'<th>{name}</th>' for name in names) + '</tr>']
    for i, row in enumerate(rows):
        cells = (f'<td{_background(shades[i][j]) if shades else ""}>{_html(cell)}</td>' for j, cell in enumerate(row))
        lines.append(f'<tr>{"".join(cells)}</tr>')
    body = '\n'.join(lines)
    return Html(f'<div class="scroll">\n<table>\n{body}\n</table>\n</div>')


def _background(shade: float) -> str:
    return f' style="background: rgba(214, 69, 65, {min(max(shade, 0.), 1.):.2f})"' if shade > 0 else ''


def picture(data: bytes, description: str) -> Html:
    """A PNG in the page itself, with a description for those who cannot see it."""
    encoded = base64.b64encode(data).decode()
    return Html(f'<img alt="{escape(description)}" src="data:image/png;base64,{encoded}">')
