"""The paper's tables and pictures say what the results say: against brute force over the CSV files."""
import csv
import re
from dataclasses import replace
from shutil import copytree
from statistics import mean, stdev

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from paper_rows import LAYERS, PICTURES, gap, rights, top1, write_job, write_preset

from benchmarks import environment, presets, report
from benchmarks.paper import curves, pictures
from benchmarks.paper.samples import PAPER_PRESETS, load, madds_of
from benchmarks.paper.sections import SECTIONS, pilot_choice, pilot_samples
from benchmarks.presets import PRESETS
from benchmarks.published import FAMILIES, MADDS, RESOLUTIONS, TABLE_1, TABLE_2, TABLE_4, TOP1, market
from benchmarks.runs import TRIALS, jobs, runs, settings
from benchmarks.store import RUNS, save_figure

SMALL = PRESETS['small']
SIZES = SMALL.resolutions
NOT = 'not measured'


OTHERS = ('quantised', 'quantised_equal_starts', 'camvid_pilot', 'camvid')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Results of everything that is planned at small scale."""
    folder = tmp_path_factory.mktemp('results')
    for preset in ('small', 'ladder', 'pilot', 'brief', *OTHERS):
        write_preset(folder, preset)
    return folder


@pytest.fixture
def section(monkeypatch):
    """Writes a section from the results in a folder."""
    def write(folder, name):
        monkeypatch.setattr(environment, 'RESULTS', folder)
        return SECTIONS[name]()

    return write


def tables(text):
    """The tables of a text: [{first cell: {heading: cell}}]."""
    found = []
    for block in re.findall(r'(?:^\|.*\|\n?)+', text, flags=re.MULTILINE):
        header, _, *lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in block.splitlines()]
        found.append({line[0]: dict(zip(header[1:], line[1:])) for line in lines})
    return found


def measured(folder, name, resolution, column='top1', sets='own', preset='small'):
    """The values in the CSV file, read without the code under test."""
    with (folder / 'paper_accuracy.csv').open() as stream:
        return [float(row[column]) for row in csv.DictReader(stream) if (
            row['preset'], row['run'], row['resolution'], row['sets']) == (preset, name, str(resolution), sets)]


def text_of(values):
    return f'{mean(values):.1f}' + (f' ± {stdev(values):.1f}' if len(values) > 1 else '')


def with_gain(values, base):
    return f'{text_of(values)} ({mean(values) - mean(base):+.1f})'


# Tables

def test_table_2_against_brute_force(whole, section):
    found = tables(section(whole, 'paper_table2'))
    for table, column in zip(found, ('top1', 'top5')):
        for size in SIZES:
            base = measured(whole, f'individual_{size}', size, column)
            assert len(base) == 2
            row = table[f'{size} px']
            assert row['MAdds, M'] == f'{madds_of(SMALL, size):.1f}'
            assert row['I-Nets'] == text_of(base)
            for label, name in (('I-128', 'individual_128'), ('parallel', 'parallel'), ('RS-Net', 'rs_net')):
                assert row[label] == with_gain(measured(whole, name, size, column), base)
    count = 11 * 2 ** 20
    assert found[0]['parameters, millions (2^20)'] == {
        'MAdds, M': '', 'I-Nets': f'{5 * count / 1e6:.2f} (55.00)',
        **dict.fromkeys(('I-128', 'parallel', 'RS-Net'), f'{count / 1000000.0:.2f} (11.00)')}
    top5 = found[3]['96 px']  # published
    assert top5['RS-Net'].startswith('85.3 (+1.2') and top5['MAdds, M'] == '335'
    small, = tables(section(whole, 'paper'))
    assert small == {size: row for size, row in found[0].items() if size.endswith('px')}


@pytest.mark.parametrize('name, columns', {
    'paper_table5': {'full MRED': 'rs_net', 'vanilla MRED': 'vanilla', 'only from the largest': 'largest',
                     'only from all larger ones': 'larger'},
    'paper_table6': {'several resolutions, one crop': 'rs_net', 'several resolutions, several crops': 'multi_crop',
                     'one resolution, several crops': 'single_resolution_{}', 'one resolution, one crop':
                     'individual_{}'},
    'paper_figure4': {'I-Nets': 'individual_{}', 'parallel, shared BNs': 'shared_bn', 'parallel, private BNs':
                      'parallel', 'RS-Net': 'rs_net'},
    'paper_rates': {'I-Nets': 'individual_{}', 'parallel, one rate': 'one_rate_parallel', 'parallel': 'parallel',
                    'RS-Net, one rate': 'one_rate_rs_net', 'RS-Net': 'rs_net'},
}.items())
def test_comparisons_against_brute_force(whole, section, name, columns):
    ours, *theirs = tables(section(whole, name))
    for size in SIZES:
        base, *others = (measured(whole, run.format(size), size) for run in columns.values())
        expected = [text_of(base), *(with_gain(other, base) for other in others)]
        assert ours[f'{size} px'] == dict(zip(columns, expected))
    assert [list(table['224 px']) for table in theirs] == ([] if name == 'paper_rates' else [list(columns)])


def test_distillations_against_brute_force(whole, section):
    with (whole / 'paper_accuracy.csv').open() as stream:
        top1 = {(row['run'], row['seed'], row['resolution']): float(row['top1']) for row in csv.DictReader(stream)
                if (row['preset'], row['sets']) == ('brief', 'own')}
    table, = tables(section(whole, 'paper_distillations'))
    named = {'full MRED': 'rs_net', 'vanilla MRED': 'vanilla', 'none (parallel)': 'parallel',
             'full, temperature 2': 'temperature2', 'full, teachers are a moving average of the network': 'ema_teacher'}
    assert len(table) == 5 + len(TRIALS)
    for label, name in named.items():
        row = table[label]
        seeds = [seed for seed in '01' if (name, seed, '64') in top1]
        assert row['seeds'] == str(len(seeds)) and len(seeds) == (2 if name in ('rs_net', 'parallel') else 1)
        for size in (64, 48, 32):
            assert row[f'{size} px'] == text_of([top1[name, seed, str(size)] for seed in seeds])
        gain = mean(top1[name, seed, size] - top1['rs_net', seed, size]
                    for seed in seeds for size in ('64', '48', '32'))
        assert row['mean difference from full MRED'] == f'{round(gain, 1) + 0.:+.1f}'


def test_the_brief_preset_shows_table_6_and_figures_5_and_9_without_the_papers(whole, section):
    table, = tables(section(whole, 'paper_table6_brief'))
    for size in (64, 48, 32):
        base = measured(whole, 'rs_net', size, preset='brief')
        own = measured(whole, f'single_resolution_{size}', size, preset='brief')
        assert table[f'{size} px']['one resolution, several crops'] == with_gain(own, base)
    small, large = tables(section(whole, 'paper_figure9_brief'))
    for found, begin in ((small, ''), (large, 'crop30_')):
        assert list(found) == ['I-Nets, top-1', '64 & 48', '64 & 32', '64 & 48 & 32']
        gain = mean(measured(whole, f'{begin}parallel_64_32', 64, preset='brief')) - mean(
            measured(whole, f'{begin}individual_64', 64, preset='brief'))
        assert found['64 & 32']['64 px'] == f'{gain:+.1f}' and found['64 & 32']['48 px'] == ''


def test_dense_sizes_against_brute_force(whole, section):
    table, = tables(section(whole, 'paper_dense'))
    assert list(table) == [f'{size} px' for size in SMALL.dense]
    for size in SMALL.dense:
        row = table[f'{size} px']
        assert [row[f'I-{r}'] for r in SIZES] == [text_of(measured(whole, f'individual_{r}', size)) for r in SIZES]
        for sets, label in (('own', 'RS-Net, own sets'), *((s, s) for s in curves.INTERPOLATIONS)):
            values = measured(whole, 'rs_net', size, sets=sets)
            assert row[label] == (text_of(values) if (sets == 'own') == (size in SIZES) else '')


def test_table_1_against_brute_force(whole, section):
    found = tables(section(whole, 'paper_table1'))
    for table, (name, published) in zip(found, (('individual_{}', 'individual'), ('parallel', 'parallel'),
                                                ('rs_net', 'rs_net'))):
        for a, their_a in zip(SIZES, TABLE_1[published]):
            row = table[f'{a} px']
            for b in SIZES:
                shares = []
                for seed in (0, 1):
                    first, second = (rights(name.format(r), r, seed, top1(name.format(r), r, seed, 128))
                                     for r in (a, b))
                    shares.append(100 * sum(x and not y for x, y in zip(first, second)) / PICTURES)
                assert row[f'wrong at {b} px'] == ('' if a == b else text_of(shares))
            assert row['paper: right at'] == f'{their_a} px'
            theirs = [row[f'{r} px'] for r in TABLE_1[published]]
            assert [float(cell) for cell in theirs if cell] == list(TABLE_1[published][their_a])
            assert theirs.index('') == list(SIZES).index(a)


def test_pictures_of_different_numbers_are_not_compared(tmp_path):
    write_preset(tmp_path, 'small', ['parallel', 'individual_128'], seed=0)
    path = tmp_path / 'paper_right.csv'
    path.write_text(path.read_text().replace(f',{PICTURES},', f',{PICTURES - 8},', 1))
    with pytest.raises(ValueError, match='individual_128 and parallel of seed 0 were measured on 392 and 400.*--again'):
        load('small', tmp_path).wrong_elsewhere(('individual_128', 256), ('parallel', 128))


def test_far_sizes_use_interpolated_sets(whole, section):
    ours, theirs = tables(section(whole, 'paper_table8'))
    for size in SMALL.far:
        heading = f'{size} px ({size / 128:.2f})'
        assert ours['I-128'][heading] == text_of(measured(whole, 'individual_128', size))
        sets = 'own' if size == 128 else 'params'
        assert ours['RS-Net'][heading] == text_of(measured(whole, 'rs_net', size, sets=sets))
    assert theirs['FixRes']['384 px (1.71)'] == '79.0'


def test_interaction_against_brute_force(whole, section):
    text = section(whole, 'paper_figure9')
    assert '+1.6 at 224 px, -0.8 at 96 px' in text  # Section 4.3
    for table, begin in zip(tables(text), ('', 'crop30_')):
        assert table['I-Nets, top-1'] == {
            f'{size} px': text_of(measured(whole, f'{begin}individual_{size}', size)) for size in SIZES}
        combinations = {label: tuple(map(int, label.split(' & '))) for label in table if '&' in label}
        assert len(combinations) == 7 and SIZES in combinations.values()
        assert [len(sizes) for sizes in combinations.values()] == [2, 2, 2, 2, 3, 4, 5]
        for label, sizes in combinations.items():
            name = 'parallel' if not begin and sizes == SIZES else f'{begin}parallel_' + '_'.join(map(str, sizes))
            for size in SIZES:
                gain = '' if size not in sizes else '{:+.1f}'.format(
                    mean(measured(whole, name, size)) - mean(measured(whole, f'{begin}individual_{size}', size)))
                assert table[label][f'{size} px'] == gain.replace('-0.0', '+0.0')


def test_the_area_between_distributions(whole, section):
    """Features of training crops are larger by a factor 1 + gap, so that the area is the gap times the mean."""
    table, = tables(section(whole, 'paper_figure3'))
    for size in (128, 64):
        row = table[f'{size} px']
        assert float(row['I-Net of this size']) == pytest.approx(100 * gap('individual', size == 64), abs=0.051)
        assert float(row['parallel']) == pytest.approx(100 * gap('parallel', size == 64), abs=0.051)


def test_blocks_in_order(whole, section):
    """Running means are a parabola over the sizes in every second BatchNorm, and rise or fall everywhere else."""
    table, = tables(section(whole, 'paper_figure6'))
    blocks = [layer for layer in LAYERS if layer.endswith('.bn1')]
    assert table['mean µ'] == {'bn1 of a block': f'{len(blocks)} of {len(blocks)}', 'bn2 of a block': '0 of 8'}
    for words in ('scale γ', 'bias β', 'variance σ²'):
        assert set(table[words].values()) == {'8 of 8'}
    by_size = curves.norms(load('small', whole))['bn2']['weight']
    assert list(by_size) == list(SIZES) and len(by_size[128]) == 8  # neither stem nor shortcut


def test_alpha_at_the_end(whole, section):
    text = section(whole, 'paper_alpha')
    ours, theirs = tables(text)
    ends = [np.exp(np.linspace(2, 0, 5) * (1 + 0.1 * seed)) for seed in (0, 1)]
    weights = np.array([end / end.sum() for end in ends])
    expected = [f'{w.mean():.2f} ± {w.std(ddof=1):.2f}' for w in weights.T]
    assert list(ours['weight at the end'].values()) == expected
    assert list(theirs['weight at the end'].values()) == ['0.37', '0.29', '0.20', '0.12', '0.02']
    ensemble = with_gain(measured(whole, 'rs_net', 'ensemble'), measured(whole, 'rs_net', 128))
    assert f'over 128 px alone: {ensemble}.' in text
    found = curves.alphas(load('small', whole))
    assert {len(curve) for curve in found.values()} == {SMALL.recipe.epochs} and list(found) == list(SIZES)


def test_the_ladder(whole, section):
    table, = tables(section(whole, 'paper_ladder'))
    names = ['untouched', 'recalibrated', 'replaced', 'bn', 'full']
    for (words, row), name in zip(table.items(), names):
        assert row['wall time'] == '30.0 min', words
        for size in (224, 192, 160, 128, 96):
            own, base = (measured(whole, run, size, preset='ladder') for run in (name, 'untouched'))
            assert row[f'{size} px'] == (text_of(own) if name == 'untouched' else with_gain(own, base))


def test_the_list_of_runs(whole, section):
    text = section(whole, 'paper_runs')
    small, ladder, pilot, *others = tables(text)
    assert NOT not in text and [len(pilot), len(ladder), *map(len, others)] == [
        9, 5, *(len(runs(PRESETS[name])) for name in ('brief', *OTHERS))]
    assert [name.strip('`') for name in small] == list(runs(SMALL))  # the last seed of each
    assert small['`rs_net`'] == {'seed': '1', 'edits': '', 'epochs': '8', 'training': '31.0 min', 'measuring': '45 s',
                                 'commit': 'abcdef0123', 'on': 'A'}
    assert small['`shared_bn`']['edits'] == 'shared_bn=True mred=none private_lr=(default)'
    assert 'A: cpu (some processor), bfloat16, 2 threads, Python 3.11, torch 2, timm 1, rs_timm 0.' in text


# Quantised networks and segmentation

def test_table_3_against_brute_force(whole, section):
    table = tables(section(whole, 'paper_table3'))[0]
    for size in PRESETS['quantised'].resolutions:
        full = measured(whole, 'full_precision', size, preset='quantised')
        int8 = measured(whole, 'full_precision', size, sets='int8', preset='quantised')
        assert table[f'{size} px']['RS-Net, full precision'] == text_of(full)
        assert table[f'{size} px']["the same, the runtime's int8"] == with_gain(int8, full)
        for heading, name in (('RS-Net, 2/32', 'w2a32'), ('RS-Net, 2/2', 'w2a2')):
            assert table[f'{size} px'][heading] == with_gain(measured(whole, name, size, preset='quantised'), full)
        single = measured(whole, f'w2a32_individual_{size}', size, preset='quantised')
        assert table[f'{size} px']['I-Nets, 2/32'] == (with_gain(single, full) if size in (128, 64) else '')
    files = table['file or files for 5 sizes, MB']
    assert (files['RS-Net, full precision'], files['I-Nets, 2/32'], files['RS-Net, 2/32']) == ('22.50', '15.00', '3.00')
    times = table['float32 file of the RS-Net / that']
    assert (times['RS-Net, full precision'], times['I-Nets, 2/32'], times['RS-Net, 2/32']) == ('2.0', '3.0', '15.0')


def test_equal_starts_against_brute_force(whole, section):
    table = tables(section(whole, 'paper_table3_equal_starts'))[0]
    preset = 'quantised_equal_starts'
    for size in PRESETS[preset].resolutions:
        base = measured(whole, f'individual_{size}', size, preset=preset)
        assert table[f'{size} px'] == {'I-Nets': text_of(base), 'RS-Net': with_gain(
            measured(whole, 'rs_net', size, preset=preset), base)}


def test_the_pilot_of_table_7_class_by_class(whole, section):
    text = section(whole, 'paper_pilot7')
    mean_iou, _, classes = tables(text)
    assert mean_iou['96 px']['RS-Net'].startswith('57.8 ± 0.4 (+') and 'preset `camvid_pilot`' in text
    assert list(classes) == ['road (60.0 %)', 'sky (30.0 %)', 'pole (10.0 %)']
    assert classes['pole (10.0 %)']['I-Nets'] == '30.5 ± 0.7'
    assert classes['pole (10.0 %)']['RS-Net'] == '10.5 ± 0.7 (-20.0)'


def test_rates_and_epochs_of_table_7(whole, section):
    with (whole / 'paper_masks.csv').open() as stream:
        rows = [row for row in csv.DictReader(stream) if row['preset'] == 'camvid_pilot']
    for table, begin in zip(tables(section(whole, 'paper_rates7')), ('half', 'long'), strict=True):
        for size in ('96', '64', '48'):
            base, ours = ([float(row['mean_iou']) for row in rows if (row['run'], row['resolution']) == (run, size)]
                          for run in (f'{begin}_individual_{size}', f'{begin}_rs_net'))
            assert table[f'{size} px']['I-Nets'] == text_of(base)
            assert table[f'{size} px']['RS-Net'] == with_gain(ours, base)


def test_table_7_against_brute_force(whole, section):
    text = section(whole, 'paper_table7')
    with (whole / 'paper_masks.csv').open() as stream:
        rows = {(row['run'], row['resolution']): row for row in csv.DictReader(stream) if row['preset'] == 'camvid'}
    for table, quantity in zip(tables(text), ('mean_iou', 'pixel_accuracy', 'mean_accuracy')):
        for size in (352, 224, 96):
            def value(run, size=size, quantity=quantity):
                return float(rows[run, str(size)][quantity])

            base = value(f'individual_{size}')
            cells = table[f'{size} px']
            assert cells['I-Nets'] == f'{base:.1f}'
            for heading, name in (('I-352', 'individual_352'), ('parallel', 'parallel'), ('vanilla MRED', 'vanilla'),
                                  ('RS-Net', 'rs_net')):
                assert cells[heading] == with_gain([value(name)], [base])
    assert f"mean iou {float(rows['rs_net', 'ensemble']['mean_iou']):.1f}" in text.lower()
    assert '450 s an update of 2 pictures at 352, 224, 96 px' in text  # 1800 s, four updates


# What is not there

@pytest.mark.parametrize('name', SECTIONS)
def test_nothing_measured(section, tmp_path, name):
    text = section(tmp_path, name)
    assert NOT in text and '![' not in text and 'nan' not in text
    for table in tables(text):
        if NOT not in str(table):
            assert 'Published' in text or 'MAdds' in text
    assert pictures.write_pictures(tmp_path) == []


def test_a_cell_that_nobody_ran(section, tmp_path):
    """One I-Net and one seed of the RS-Net are there; everything beside them says so."""
    write_preset(tmp_path, 'small', ['individual_96', 'individual_64', 'rs_net'], seed=0)
    table = tables(section(tmp_path, 'paper_table2'))[0]
    base, own = measured(tmp_path, 'individual_96', 96), measured(tmp_path, 'rs_net', 96)
    assert len(base) == len(own) == 1
    assert table['96 px']['I-Nets'] == text_of(base) and table['96 px']['RS-Net'] == with_gain(own, base)
    assert table['128 px']['RS-Net'] == f"{text_of(measured(tmp_path, 'rs_net', 128))} ({NOT})"
    assert {table[f'{size} px']['parallel'] for size in SIZES} == {NOT}
    assert table['parameters, millions (2^20)']['I-Nets'] == NOT
    shares = tables(section(tmp_path, 'paper_table1'))
    assert shares[0]['96 px']['wrong at 128 px'] == NOT and shares[2]['96 px']['wrong at 128 px'] != NOT
    listed = section(tmp_path, 'paper_runs')
    assert '| `rs_net` | 0 |  | 8 |' in listed and '| `rs_net` | 1 |' not in listed
    assert re.search(rf'Planned and {NOT}: .*`parallel`, `parallel` seed 1, `rs_net` seed 1, ', listed)


def test_other_settings_than_the_planned_ones_are_left_out(section, tmp_path):
    job, = jobs(['small'], ['rs_net'], seed=0)
    planned = SMALL.recipe
    write_job(tmp_path, job, settings=settings(replace(planned, epochs=3)), epochs=3)
    assert load('small', tmp_path).rows[RUNS] == [] and pictures.drawable(tmp_path) == {}
    assert f'Table: {NOT}.' in section(tmp_path, 'paper_table2')
    assert 'not those planned: `rs_net` seed 0 (`epochs=3`).' in section(tmp_path, 'paper_runs')
    write_job(tmp_path, job)
    assert len(load('small', tmp_path).rows[RUNS]) == 1


def test_a_preset_of_imagenet_is_shown_when_it_has_rows(section, tmp_path):
    assert PAPER_PRESETS == ('small', 'imagenet_resnet18', 'imagenet_resnet50', 'imagenet_mobilenetv2')
    assert 'imagenet_' not in section(tmp_path, 'paper_table2')
    write_preset(tmp_path, 'imagenet_resnet50', ['table2'], seed=0)
    for name in SECTIONS:
        if name not in ('paper', 'paper_ladder', 'paper_market', 'paper_pilot', 'paper_rates', 'paper_table3',
                        'paper_table3_equal_starts', 'paper_table7', 'paper_pilot7', 'paper_rates7',
                        'paper_distillations', 'paper_table6_brief', 'paper_figure9_brief'):
            assert 'imagenet_resnet50' in section(tmp_path, name) and 'mobilenetv2 on' in section(
                tmp_path, 'paper_figure4')
    theirs = tables(section(tmp_path, 'paper_table2'))[-2]
    assert theirs['224 px']['RS-Net'] == f"{TABLE_2['resnet50']['rs_net'][0][0]} (+2.2)"
    assert theirs['96 px']['MAdds, M'] == f"{MADDS['resnet50'][-1]}"
    assert 'paper_figure1_imagenet_resnet50' in pictures.drawable(tmp_path)


# The pilot

def test_the_choice_of_the_pilot(whole, tmp_path):
    best = {kind: 2 * rate for kind, rate in presets.MEAN_LR.items()}  # top-1 rises with the rate
    assert pilot_choice(whole) == best
    assert pilot_choice(tmp_path) == {}
    rate = presets.MEAN_LR['mred']
    write_preset(tmp_path, 'pilot', [f'mred_lr{2 * rate:g}', f'mred_lr{rate / 2:g}'])
    assert pilot_choice(tmp_path) == {}  # the rate that is used was not tried


def test_the_pilot_made_before_the_rate_was_changed_counts(whole, monkeypatch):
    before = presets.MEAN_LR['mred']
    changed = {**presets.MEAN_LR, 'mred': 2 * before}
    monkeypatch.setitem(presets.MEAN_LR, 'mred', 2 * before)
    monkeypatch.setitem(PRESETS, 'pilot', replace(PRESETS['pilot'], mean_lr=changed))
    samples = pilot_samples(whole)['mred']
    assert list(samples) == [before / 2, before, 2 * before, 4 * before]
    assert not samples[4 * before] and samples[before / 2]
    assert pilot_choice(whole)['mred'] == 2 * before


def test_the_table_of_the_pilot_against_brute_force(whole, section):
    text = section(whole, 'paper_pilot')
    rows = {tuple(line.strip('| ').split(' | ')[:2]): line.strip('| ').split(' | ')[2:] for line in text.splitlines()}
    sizes = PRESETS['pilot'].resolutions
    for kind, words in (('individual', 'one resolution'), ('mred', 'several, distilled')):
        rate = 2 * presets.MEAN_LR[kind]
        of = [measured(whole, f'{kind}_lr{rate:g}', size, preset='pilot') for size in sizes]
        means = [text_of([mean(values) for values in zip(*of)])] if kind == 'mred' else ['']
        assert rows[words, f'{rate:g}'] == [text_of(of[0]), *means, 'cpu']
    assert f'top-1 at {sizes[0]} px' in text


def test_a_rate_tried_for_one_kind_alone_does_not_count(whole, tmp_path, monkeypatch):
    folder = tmp_path / 'more'
    copytree(whole, folder)
    rate = 4 * presets.MEAN_LR['individual']  # beyond those of the other kinds, and better
    with monkeypatch.context() as patch:
        rates = {**presets.MEAN_LR, 'individual': rate}
        patch.setitem(PRESETS, 'pilot', replace(PRESETS['pilot'], mean_lr=rates))
        write_preset(folder, 'pilot', [f'individual_lr{rate:g}'])
    assert pilot_samples(folder)['individual'][rate]
    assert pilot_choice(folder) == pilot_choice(whole) != {}


# Pictures

def test_every_picture_names_its_axes_and_no_labels_overlap(whole):
    """Texts, ticks included, as they are laid out."""
    found = pictures.drawable(whole)
    of_small = [f'paper_{name}_small' for name in pictures.PICTURES]
    assert list(found) == [*of_small, 'paper_figure9_brief', 'paper_ladder']
    for stem, draw in found.items():
        figure = draw()
        columns = {axes.get_subplotspec().colspan.start for axes in figure.axes}
        for column in columns:
            own = [axes for axes in figure.axes if axes.get_subplotspec().colspan.start == column]
            assert own[-1].get_xlabel() and all(axes.get_ylabel() for axes in own), stem
        assert figure.get_suptitle().strip() and (figure.legends or any(axes.get_legend() for axes in figure.axes))
        named = [text for axes in figure.axes for text in axes.get_legend_handles_labels()[1]]
        assert named and 'nan' not in ' '.join(named)
        FigureCanvasAgg(figure).draw()
        unseen = {tick.label1 for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
                  for tick in axis.get_major_ticks()
                  if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())}
        boxes = [(text.get_text(), text.get_window_extent()) for text in figure.findobj(Text)
                 if text.get_visible() and text.get_text().strip() and text not in unseen]
        width, height = figure.get_size_inches() * figure.dpi
        for i, (words, box) in enumerate(boxes):
            assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, (stem, words)
            for others, other in boxes[:i]:
                apart = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
                assert min(apart) < 2, (stem, words, others)
    assert not pyplot.get_fignums()  # nothing is left open


def test_curves_that_nobody_measured_are_named(tmp_path):
    write_preset(tmp_path, 'small', ['individual_128', 'individual_64', 'rs_net'], seed=0)
    missing = {'figure1': {'parallel'}, 'figure4': {'parallel, shared BNs', 'parallel, private BNs'},
               'figure3': {'parallel'}}
    for name, labels in missing.items():
        own = pictures.drawable(tmp_path)[f'paper_{name}_small']().axes[0].get_legend_handles_labels()[1]
        assert {label for label in own if NOT in label} == {f'{label}: {NOT}' for label in labels}


def test_what_is_published_is_marked(whole):
    found = pictures.drawable(whole)
    for stem in ('paper_figure1_small', 'paper_figure4_small'):
        ours, theirs, *others = found[stem]().axes
        assert all(panel.get_title().startswith('PUBLISHED, not measured here') for panel in others)
        assert theirs.get_title().startswith('PUBLISHED, not measured here') and ours.get_title() == 'measured'
        assert theirs.get_facecolor() != ours.get_facecolor()
    labels = found['paper_figure1_small']().axes[1].get_legend_handles_labels()[1]
    assert {'ResNet18, RS-Net', 'ResNet50, I-Nets', 'MobileNetV2, RS-Net', 'S-MobileNetV2', 'US-MobileNetV2'} <= set(
        labels)
    assert any('published' in label for label in found['paper_alpha_small']().axes[0].get_legend_handles_labels()[1])


def test_points_of_others_are_drawn_as_what_they_are(whole):
    """Filled: one network for the whole line; hollow: one for each cost."""
    panel = pictures.drawable(whole)['paper_figure1_small']().axes[2]
    drawn = {at: line.get_markerfacecolor() for line in panel.lines if line.get_linestyle() == '-'
             for at in zip(line.get_xdata(), line.get_ydata())}
    for name, points in market().items():
        assert {drawn[point.at] == 'white' for point in points} == {not FAMILIES[name].switches}
    for network in TABLE_2:
        assert set(zip(MADDS[network], TOP1[network]['rs_net'])) <= set(drawn)
    assert {text.get_text() for text in panel.texts} >= set(FAMILIES)


def test_what_is_said_of_others_follows_from_their_points(section):
    """The words are fixed, the figures are computed: here both from the points alone."""
    words = section(report.ROOT, 'paper_market')
    table, _ = tables(words)
    single = [point for name, family in FAMILIES.items() if not family.switches for point in market()[name]]
    for network, label in (('resnet50', 'ResNet50'), ('resnet18', 'ResNet18'), ('mobilenetv2', 'MobileNetV2')):
        behind = []
        for size, cost, ours in zip(RESOLUTIONS, MADDS[network], TOP1[network]['rs_net']):
            other = max(point.top1 for point in single if point.madds <= 1.05 * cost)
            behind.append(other - ours)
            cell = table[f'{label}, {size} px']['best single network']
            assert f': {other:.1f} ({ours - other:.1f})' in cell
        assert min(behind) > 0  # "behind at every size"
        assert f'of {label} by {min(behind):.1f} to {max(behind):.1f} points' in words
    rs_nets = dict(zip(MADDS['mobilenetv2'], TOP1['mobilenetv2']['rs_net']))
    for method in ('S-MobileNetV2', 'US-MobileNetV2'):  # "leads"
        assert all(max(ours for madds, ours in rs_nets.items() if madds <= 1.05 * cost) > theirs
                   for cost, theirs in TABLE_4[method])
    mutual = {point.madds: point.top1 for point in market()['MutualNet, MobileNetV2']}
    for size, cost in ((192, 221), (160, 154)):
        assert f'{rs_nets[cost] - mutual[cost]:+.1f} at {size} px' in words
    assert 'are ahead with as many multiply-adds, of ResNet50 by' in section(report.ROOT, 'paper')


def test_the_curves_are_those_of_the_table(whole):
    axes = pictures.drawable(whole)['paper_figure1_small']().axes[0]
    for container in axes.containers:
        line, _, (bars,) = container.lines
        name = {'I-Nets': 'individual_{}', 'I-128': 'individual_128', 'parallel': 'parallel', 'RS-Net': 'rs_net'}[
            container.get_label()]
        values = [measured(whole, name.format(size), size) for size in SIZES[::-1]]
        assert line.get_ydata() == pytest.approx([mean(v) for v in values])
        assert line.get_xdata() == pytest.approx([madds_of(SMALL, size) for size in SIZES[::-1]])
        heights = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
        assert heights == pytest.approx([2 * stdev(v) for v in values])


def test_files_are_the_same_whenever_they_are_drawn(whole, tmp_path):
    draw = pictures.drawable(whole)['paper_figure4_small']
    first, second = (save_figure(draw(), tmp_path / folder / 'one') for folder in 'ab')
    for a, b in zip(first, second):
        assert a.read_bytes() == b.read_bytes()
    assert b'<dc:date>' not in first[1].read_bytes()


def test_pictures_of_what_is_gone_are_removed(tmp_path):
    write_preset(tmp_path, 'ladder', ['untouched'])
    (tmp_path / 'paper_figure1_small.png').write_bytes(b'old')
    (tmp_path / 'recalibration.png').write_bytes(b'of something else')
    assert pictures.write_pictures(tmp_path) == ['paper_ladder']
    assert {path.name for path in tmp_path.iterdir() if path.suffix != '.csv'} == {
        'paper_ladder.png', 'paper_ladder.svg', 'recalibration.png'}


# The documents

def test_documents_show_the_pictures_that_there_are(whole, section):
    for name, folder in (('paper', 'benchmarks/results'), ('paper_table2', '../benchmarks/results')):
        assert f']({folder}/paper_figure1_small.png)' in section(whole, name)
    pages = [(report.ROOT / 'docs' / f'{name}.md').read_text(encoding='utf-8')
             for name in ('paper', 'quantize', 'segmentation')]
    shown = [set(re.findall(r'<!-- report:(paper\w+) -->', page)) for page in pages]
    assert shown[1:] == [{'paper_table3', 'paper_table3_equal_starts'}, {
        'paper_table7', 'paper_pilot7', 'paper_rates7'}]
    assert set.union(*shown) == set(SECTIONS) - {'paper'}


def test_what_was_measured_has_its_pictures():
    """In the repository as it is: a picture for all that was measured, none for anything else."""
    for suffix in ('.png', '.svg'):
        there = {path.stem for path in environment.RESULTS.glob(f'paper_*{suffix}')}
        assert there == set(pictures.drawable(environment.RESULTS)), 'run python -m benchmarks.report'
