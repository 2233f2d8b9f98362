"""The report of rs-timm analyze: one file, no script, everything escaped, and its figures are those of the analysis."""
import base64
import csv
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import timm
import torch
from matplotlib.figure import Figure
from PIL import Image
from training_run import make_pictures

import rs_timm
from rs_timm.analysis import Prediction, Predictions, complementarity, predict, sufficient_resolution
from rs_timm.analysis.report import (
    Html,
    Subject,
    analysis_page,
    details,
    page,
    paragraph,
    picture,
    section,
    table,
)
from rs_timm.cli import main
from rs_timm.data import create_multires_loader
from rs_timm.hub import save_pretrained

SIZES = (64, 48, 32)
NASTY = '<script>alert("1")</script> & $x$'
VOID = {'meta', 'img', 'br'}


class Parser(HTMLParser):
    """Checks that tags are closed in order, and collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.cells = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] in ('td', 'th'):
            self.cells.append(data)


def predictions(classes=30, count=300):
    generator = np.random.default_rng(0)
    target = generator.integers(0, classes, count)
    at = {}
    for size, share in zip(SIZES, (0.9, 0.8, 0.6)):
        label = np.where(generator.random(count) < share, target, (target + 1) % classes)
        confidence = generator.uniform(0.3, 1., count).astype(np.float32)
        at[size] = Prediction(label, confidence, np.ones(count, dtype=bool), np.ones(count, dtype=np.float32))
    return Predictions(target, at)


def subject(classes=30, **changes):
    means = {'bn1': {r: dict(weight=1., bias=0., running_mean=0.1, running_var=1. + r / 100) for r in SIZES[:2]}}
    given = dict(name=NASTY, facts=[NASTY], trained=SIZES[:2], madds={r: r ** 2 * 1e3 for r in SIZES},
                 class_names=[f'{NASTY} {i}' for i in range(classes)], norms=means)
    return Subject(**{**given, **changes})


def test_elements_escape_what_they_are_given():
    parts = [section(NASTY, paragraph(NASTY), table([NASTY], [[NASTY]]), details(NASTY, paragraph(NASTY)),
                     picture(Figure((1, 1)), NASTY))]
    made = page(NASTY, parts)
    parsed = Parser(made)
    assert '<script' not in made and 'script' not in parsed.tags
    assert ''.join(parsed.text).count(NASTY) == 8  # title twice, heading, text, two cells, summary and what it hides
    assert dict(parsed.attributes)['alt'] == NASTY
    assert paragraph(Html('<b>x</b>')) == '<p><b>x</b></p>'


def test_the_page_needs_nothing_but_itself():
    made = analysis_page(subject(), predictions())
    parsed = Parser(made)
    assert not {'script', 'link', 'iframe', 'object', 'form'} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith('on') or name == 'href']
    assert 'http' not in made and '@import' not in made and 'url(' not in made
    assert ('name', 'viewport') in parsed.attributes and ('lang', 'en') in parsed.attributes
    sources = [value for name, value in parsed.attributes if name == 'src']
    assert len(sources) == 5 == len([1 for name, value in parsed.attributes if name == 'alt' and value])
    for source in sources:
        kind, _, data = source.partition(';base64,')
        with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
            assert kind == 'data:image/png' and shown.format == 'PNG' and 600 < shown.width < 800  # of a phone, sharp
    assert made.count('class="scroll"') == made.count('<table>')  # wide tables scroll, the page does not


def test_its_figures_are_those_of_the_analysis():
    said = predictions()
    cells = Parser(analysis_page(subject(), said)).cells
    for size in SIZES:
        assert f'{said.accuracy(size)["top1"]:.1f}' in cells
    for row in complementarity(said.rights()).values():
        assert all(f'{share:.1f}' in cells for share in row.values())
    smallest = sufficient_resolution(said.rights())
    assert f'{100 * (smallest == 32).mean():.1f}' in cells and f'{100 * (smallest > 0).mean():.1f}' in cells
    assert '32 px (not trained)' in cells and '64 px' in cells


def test_classes_stand_in_the_order_of_their_loss():
    said = predictions()
    right = said.rights()
    made = analysis_page(subject(), said)
    hidden = made[made.index('<details>'):made.index('</details>')]
    header, *rows = [Parser(line).cells for line in re.findall('<tr>.*</tr>', hidden)]
    changes = [int(row[header.index('change')]) for row in rows]
    assert len(changes) == 30 and changes == sorted(changes)
    own = said.target == 3
    expected = f'{100 * (right[32][own].mean() - right[64][own].mean()):+.0f}'
    row = next(line for line in hidden.splitlines() if f'{page_text(NASTY)} 3</td>' in line)
    assert f'<td>{expected}</td>' in row and f'<td>{own.sum()}</td>' in row


def page_text(text):
    return paragraph(text)[3:-4]


def test_small_cases():
    """One size, classes without pictures, a plain network, nothing right."""
    said = predictions(classes=3, count=6)
    one = Predictions(said.target, {64: said.at[64]})
    made = analysis_page(subject(class_names=['a', 'b', 'c', 'never seen'], norms={}), one)
    assert 'Only one resolution' in made and '<details>' not in made and 'never seen' not in made
    wrong = Prediction(said.target + 1, said.at[64].confidence, said.at[64].in_top5, said.at[64].loss)
    assert '100.0' in analysis_page(subject(classes=5), Predictions(said.target, {64: wrong, 48: wrong, 32: wrong}))


# The command

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp('pictures'), classes=3, train_each=1, val_each=4)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    torch.manual_seed(0)
    network = rs_timm.switchable('test_resnet', SIZES, num_classes=3)
    folder = tmp_path_factory.mktemp('model') / 'rs'
    save_pretrained(network, folder)
    return folder


def run(data, model, *options):
    return main(['analyze', str(model), '--data', str(data), '--workers', '0', '--device', 'cpu', *map(str, options)])


def test_the_command_writes_a_page_and_a_table(data, model, tmp_path, capsys):
    out, rows = tmp_path / 'page.html', tmp_path / 'rows.csv'
    assert run(data, model, '--out', out, '--csv', rows, '--sizes', 64, 40) == 0
    assert capsys.readouterr().out.splitlines() == [f'wrote {out}', f'wrote {rows}']
    network = timm.create_model(f'local-dir:{model}', pretrained=True)
    loader = create_multires_loader(data, (64, 40), split='val', batch_size=5, num_workers=0)
    said = predict(network, loader, (64, 40))
    cells = Parser(out.read_text()).cells
    assert f'{said.accuracy(40)["top1"]:.1f}' in cells and 'class0' in cells and '40 px (not trained)' in cells
    with rows.open() as stream:
        table = list(csv.DictReader(stream))
    assert [int(row['label_40']) for row in table] == said.at[40].label.tolist()
    assert all(row['picture'] == f"class{row['target']}/{i % 4}.png" for i, row in enumerate(table))


def test_what_the_command_refuses(data, model, tmp_path, capsys):
    there = tmp_path / 'there.html'
    there.write_text('mine')
    assert run(data, model, '--out', there) == 2 and there.read_text() == 'mine'
    assert '--force to replace it' in capsys.readouterr().err
    assert run(data, model, '--out', tmp_path / 'no/page.html') == 2
    assert 'there is no folder' in capsys.readouterr().err
    assert run(data, model, '--out', tmp_path) == 2 and 'is a folder' in capsys.readouterr().err
    assert run(tmp_path, model, '--out', tmp_path / 'page.html') == 2
    assert capsys.readouterr().err.count('\n') == 1
    assert run(data, model, '--out', there, '--force') == 0 and there.read_text().startswith('<!DOCTYPE html>')


def test_names_of_folders_that_are_no_text(model, tmp_path, capsys):
    data = make_pictures(tmp_path / os.fsdecode(b'caf\xe9'), classes=3, train_each=1, val_each=2)
    (data / 'val/class1').rename(data / 'val' / os.fsdecode(b'class\xff'))
    out, rows = tmp_path / 'page.html', tmp_path / 'rows.csv'
    assert run(data, model, '--out', out, '--csv', rows) == 0, capsys.readouterr().err
    page = Parser(out.read_text(encoding='utf-8'))
    assert r'class\udcff' in page.cells and r'caf\udce9' in ''.join(page.text)
    assert r'class\udcff' in rows.read_text(encoding='utf-8')


def test_damaged_pictures_are_left_out_and_counted(model, tmp_path, capsys):
    data = make_pictures(tmp_path / 'pictures', classes=3, train_each=1, val_each=2)
    (data / 'val/class1/0.png').write_bytes(b'nothing')
    out, rows = tmp_path / 'page.html', tmp_path / 'rows.csv'
    assert run(data, model, '--out', out) == 2
    assert run(data, model, '--out', out, '--csv', rows, '--skip-corrupt') == 0
    assert '1 pictures could not be read' in out.read_text() and '5 labelled pictures' in out.read_text()
    assert 'skipped' in capsys.readouterr().err
    with rows.open() as stream:
        assert [row['picture'] for row in csv.DictReader(stream)] == list('01234')  # which is which is not known
