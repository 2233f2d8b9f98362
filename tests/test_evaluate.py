"""Evaluation in one pass: what plain timm networks give one by one, the ensemble by hand, and shards that add up."""
import csv
import math

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from two_processes import run_two

import rs_timm
from rs_timm.cli import main
from rs_timm.data import create_multires_loader, image_transform
from rs_timm.evaluation import evaluate, results_rows, results_table, write_results_csv
from rs_timm.loading import load_model

TRAINED, UNSEEN = (48, 32), 40
SIZES = (48, 40, 32)
ALPHA = {48: 0.5, 40: 0.3, 32: 0.2}


class Noise(Dataset):
    """Thirteen noise pictures of ten classes; made anew in each process."""

    def __init__(self, count=13, label=None):
        self.count, self.label = count, label

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        pixels = torch.randint(0, 256, (60 + index, 70, 3), dtype=torch.uint8, generator=generator)
        return Image.fromarray(pixels.numpy()), index % 10 if self.label is None else self.label


def loader(resolutions=SIZES, data=None, **kwargs):
    return create_multires_loader(
        data or Noise(), resolutions, **dict(dict(split='val', batch_size=4, num_workers=0), **kwargs))


def network(random_statistics):
    torch.manual_seed(0)
    return random_statistics(timm.create_model('rs_resnet18', resolutions=TRAINED, num_classes=10))


@pytest.fixture
def model(random_statistics):
    return network(random_statistics)


def by_hand(logits):
    """The measures of logits [13, 10], one picture at a time."""
    data = Noise()
    top1 = top5 = loss = 0.
    for index, row in enumerate(logits.double()):
        label = data[index][1]
        rank = int((row > row[label]).sum())
        top1, top5 = top1 + (rank < 1), top5 + (rank < 5)
        loss += math.log(sum(math.exp(z - row[label]) for z in row.tolist()))
    return dict(top1=100 * top1 / 13, top5=100 * top5 / 13, loss=loss / 13, count=13)


def logits_by_hand(plain, resolution):
    transform = create_transform(resolution, crop_pct=0.875)
    data = Noise()
    with torch.no_grad():
        return torch.cat([plain(transform(data[index][0])[None]) for index in range(13)])


def assert_close(results, expected):
    assert list(results) == list(expected)
    for row in expected:
        assert results[row] == pytest.approx(expected[row], abs=1e-4), row


def test_every_size_and_the_ensemble_are_what_extracted_networks_give(model):
    logits = {size: logits_by_hand(rs_timm.extract(model, size), size) for size in SIZES}
    expected = {size: by_hand(z) for size, z in logits.items()}
    expected['ensemble'] = by_hand(sum(ALPHA[size] * z for size, z in logits.items()))
    assert len({values['loss'] for values in expected.values()}) == 4  # each row is its own
    assert_close(evaluate(model, loader(), alpha=ALPHA), expected)


def test_a_plain_network_has_no_switch():
    torch.manual_seed(0)
    plain = timm.create_model('resnet18', num_classes=10).eval()
    expected = {size: by_hand(logits_by_hand(plain, size)) for size in SIZES}
    assert_close(evaluate(plain, loader()), expected)


def test_a_subset_of_the_loaders_sizes_in_any_order(model):
    whole = evaluate(model, loader())
    assert evaluate(model, loader(), resolutions=(32, 48)) == {48: whole[48], 32: whole[32]}


def test_alpha_of_the_checkpoint(model):
    model.checkpoint_metadata = dict(alpha={48: 0.7, 32: 0.3})
    explicit = evaluate(model, loader(), alpha={48: 0.7, 32: 0.3})
    assert 'ensemble' in explicit and evaluate(model, loader()) == explicit
    assert 'ensemble' not in evaluate(model, loader(), resolutions=(48,))  # not all of its sizes are measured


def test_the_pin_and_the_mode_are_given_back(model):
    expected = evaluate(model, loader())
    model.train()
    model.set_resolution(32)
    assert evaluate(model, loader()) == expected
    assert model.training and model.get_resolution() == 32
    with pytest.raises(ZeroDivisionError):
        model.fc.register_forward_hook(lambda *_: 1 / 0)
        evaluate(model, loader())
    assert model.training and model.get_resolution() == 32


def test_autocast_is_its_own_or_the_callers(model):
    kinds = []
    model.fc.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    evaluate(model, loader(), amp_dtype=torch.bfloat16, limit_batches=1)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        evaluate(model, loader(), limit_batches=1)
    assert set(kinds) == {torch.bfloat16}
    evaluate(model, loader(), limit_batches=1)
    assert kinds[-1] == torch.float32


def test_limit_and_unlabelled_pictures(model):
    assert evaluate(model, loader(), limit_batches=2)[48]['count'] == 8
    with pytest.raises(ValueError, match='no picture with a label'):
        evaluate(model, loader(data=Noise(label=-1)))


def test_what_is_not_finite_is_no_prediction(model):
    with torch.no_grad():
        model.bn1.set_for(32).weight[0] = math.nan
    expected = evaluate(model, loader())
    assert expected[48]['loss'] < 20. and math.isnan(expected[32]['loss'])
    assert expected[32]['top1'] == expected[32]['top5'] == 0.
    with pytest.warns(UserWarning, match='not finite at 40, 32 px'):  # 40 px lies between the sets
        evaluate(model, loader())
    with pytest.raises(ValueError, match='softmax'):
        evaluate(model, loader(), alpha={48: math.nan, 32: 1.})


def test_fewer_than_five_classes():
    plain = timm.create_model('resnet18', num_classes=3)
    results = evaluate(plain, loader(data=Noise(label=1)))
    assert results[48]['top5'] == 100.


@pytest.mark.parametrize('kwargs, message', [
    (dict(resolutions=(48, 64)), r'\[64\].*\(48, 40, 32\)'),
    (dict(alpha={48: 0.5, 64: 0.5}), r'alpha has weights for \[64\]'),
    (dict(alpha={48: 1.5, 32: 2.}), 'softmax'),
    (dict(alpha={48: 1.5, 32: -0.5}), 'softmax'),
])
def test_bad_arguments(model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        evaluate(model, loader(), **kwargs)


def test_a_loader_for_training_is_refused(model):
    with pytest.raises(ValueError, match='is_training=False'):
        evaluate(model, loader(split='train'))


# Several processes

def small():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    return rs_timm.convert_switchable_bn(nn.Sequential(*layers), TRAINED)


def worker(rank, folder):
    shard = loader(batch_size=2, rank=rank, world_size=2)
    wrapped = DistributedDataParallel(small())
    wrapped.forward = None  # it broadcasts buffers, and a process without a batch left would miss that
    torch.save(evaluate(wrapped, shard, alpha=ALPHA), f'{folder}/{rank}.pt')


def test_two_processes_with_uneven_shards_give_what_one_gives(tmp_path):
    assert [len(loader(batch_size=2, rank=rank, world_size=2)) for rank in (0, 1)] == [4, 3]
    run_two(worker, str(tmp_path))
    expected = evaluate(small(), loader(), alpha=ALPHA)
    for rank in (0, 1):
        assert_close(torch.load(tmp_path / f'{rank}.pt', weights_only=True), expected)
    assert expected[48]['count'] == 13


# Results on paper

def test_table_and_csv(tmp_path):
    results = {
        48: dict(top1=75., top5=92.5, loss=1.25, count=40),
        'ensemble': dict(top1=80., top5=95., loss=1., count=40),
    }
    lines = [line.split() for line in results_table(results).splitlines()]
    assert lines == [
        ['resolution', 'top1', 'top5', 'loss', 'pictures'],
        ['48', '75.00', '92.50', '1.2500', '40'],
        ['ensemble', '80.00', '95.00', '1.0000', '40'],
    ]
    write_results_csv(tmp_path / 'results.csv', results_rows(results, 'net', param_count=11.2, crop_pct=0.875))
    with open(tmp_path / 'results.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['img_size'] for row in rows] == ['48', 'ensemble']
    timm_columns = {'model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size', 'crop_pct'}
    assert timm_columns <= set(rows[0]) and float(rows[0]['top1_err']) == 25. and rows[1]['model'] == 'net'


# rs-timm eval

@pytest.fixture
def folder(tmp_path):
    data = Noise()
    for index in range(13):
        path = tmp_path / 'val' / f'class{index % 10}' / f'{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        data[index][0].save(path)
    return tmp_path


@pytest.fixture
def saved(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    return ['rs_resnet18', '--checkpoint', str(tmp_path / 'weights.pth')]


def command(*arguments):
    return main(['eval', *map(str, arguments), '--workers', '0', '--device', 'cpu'])


def test_the_command_prints_and_writes_what_evaluate_measures(model, saved, folder, capsys):
    csv_file = folder / 'results.csv'
    assert command(*saved, '--data', folder, '--sizes', *SIZES, '--ensemble', '--csv', csv_file) == 0
    config = timm.data.resolve_model_data_config(timm.create_model('rs_resnet18'))
    data = create_multires_loader(
        folder, SIZES, split='val', batch_size=13, num_workers=0,
        interpolation=config['interpolation'], crop_pct=config['crop_pct'], mean=config['mean'], std=config['std'])
    expected = evaluate(model, data, alpha=dict.fromkeys(SIZES, 1 / 3))
    output = capsys.readouterr()
    assert output.out.splitlines()[1:6] == results_table(expected).splitlines()
    assert 'equal ones are used' in output.err and '48: 0.333' in output.out
    with open(csv_file, newline='') as file:
        rows = list(csv.DictReader(file))
    assert [float(row['top1']) for row in rows] == pytest.approx([v['top1'] for v in expected.values()], abs=1e-3)


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_an_exported_file_has_the_accuracy_of_its_network(model, saved, folder, capsys, engine):
    pytest.importorskip(engine)
    file = rs_timm.export_onnx(model, folder / 'net.onnx')
    data = '--data', folder, '--sizes', *SIZES[:2]
    assert command(file, *data, '--engine', engine, '--batch-size', 4, '--csv', folder / 'engine.csv') == 0
    table = capsys.readouterr().out.splitlines()[1:]
    assert command(*saved, *data) == 0
    wanted = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[::2] for line in table] == [line.split()[::2] for line in wanted]  # size, top-5, pictures
    assert [float(line.split()[3]) for line in table[1:]] == pytest.approx(
        [float(line.split()[3]) for line in wanted[1:]], abs=2e-2)  # the loss: resized by Pillow here and there
    with open(folder / 'engine.csv', newline='') as stream:
        assert [row['img_size'] for row in csv.DictReader(stream)] == [line.split()[0] for line in table[1:]]


def test_options_of_engines_are_for_exported_files(saved, folder, capsys):
    assert command(*saved, '--data', folder, '--precision', 'int8') == 2
    assert 'rs-timm export rs_resnet18 MODEL.onnx' in capsys.readouterr().err
    (folder / 'net.onnx').write_bytes(b'')
    assert command(folder / 'net.onnx', '--data', folder, '--ensemble') == 2
    assert 'exported file' in capsys.readouterr().err


def test_the_commands_take_a_network_for_gray_pictures(folder, random_statistics, tmp_path, capsys):
    """On what predict feeds it."""
    torch.manual_seed(0)
    gray = random_statistics(timm.create_model('rs_resnet18', resolutions=TRAINED, num_classes=10, in_chans=1))
    saved = rs_timm.save_pretrained(gray, tmp_path / 'gray')
    assert command(saved, '--data', folder) == 0
    config = timm.data.resolve_model_data_config(timm.create_model(f'local-dir:{saved}'))
    expected = {}
    for size in TRAINED:
        transform, data = image_transform(config, size), Noise()
        with torch.no_grad():
            expected[size] = by_hand(torch.cat([gray(transform(data[index][0])[None]) for index in range(13)]))
    assert capsys.readouterr().out.splitlines()[1:4] == results_table(expected).splitlines()
    page = tmp_path / 'page.html'
    arguments = ['--data', folder, '--out', page, '--workers', 0, '--device', 'cpu']
    assert main(['analyze', *map(str, [saved, *arguments])]) == 0 and page.exists()


def test_the_command_measures_the_trained_sizes_by_default(saved, folder, capsys):
    assert command(*saved, '--data', folder, '--precision', 'bfloat16') == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'bfloat16' in lines[0] and [line.split()[0] for line in lines[1:]] == ['resolution', '48', '32']


@pytest.mark.parametrize('learned, status', [({'48': 0.75, '32': 0.25}, 0), ({'48': 1., '64': 0.}, 2)])
def test_the_command_uses_the_learned_weights(saved, folder, capsys, monkeypatch, learned, status):
    def load(*args):
        model = load_model(*args)
        model.checkpoint_metadata = dict(alpha=learned)  # with string keys, as JSON has them
        return model

    monkeypatch.setattr('rs_timm.loading.load_model', load)
    assert command(*saved, '--data', folder, '--ensemble', '--sizes', *SIZES) == status
    output = capsys.readouterr()
    assert ('48: 0.750, 32: 0.250' in output.out) if status == 0 else ('add 64 to --sizes' in output.err)


def test_the_commands_errors_and_warnings(saved, folder, capsys):
    assert command(*saved, '--data', folder / 'nowhere') == 2
    (folder / 'val' / 'class0' / 'broken.png').write_text('no picture')
    assert command(*saved, '--data', folder) == 2
    assert 'broken.png' in capsys.readouterr().err
    assert command(*saved, '--data', folder, '--skip-corrupt') == 0
    output = capsys.readouterr()
    assert 'broken.png' in output.err and output.out.split()[-1] == '13'
    (folder / 'val' / 'class10').mkdir()
    Noise()[0][0].save(folder / 'val' / 'class10' / 'more.png')
    assert command(*saved, '--data', folder, '--skip-corrupt') == 2
    assert '11 classes, the model 10' in capsys.readouterr().err
