"""Folders of labelled pictures: the split that was meant, and the output of the model that each folder belongs to."""
import csv
import os
import tarfile

import pytest
import timm
import torch
from PIL import Image
from training_run import make_pictures

import rs_timm
from rs_timm.data import create_multires_loader, folder_classes, open_split
from rs_timm.data.readers import open_reader
from rs_timm.hub import save_pretrained
from rs_timm.labels import class_names, folder_names, outputs_by_name

LABELS = ['class2', 'class3', 'class0', 'class1']  # not in sorted order


# Splits

def folders(root, *names):
    """A picture in each folder ROOT/NAME."""
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new('RGB', (40, 40)).save(root / name / '0.png')
    return root


@pytest.mark.parametrize('split', ['val', 'tset', 'test[:2]'])
def test_a_split_that_is_not_there_is_refused_where_there_are_others(tmp_path, split):
    root = folders(tmp_path, 'train/a', 'testing/a')
    with pytest.raises(ValueError, match=r'no folder for the split .*, but testing, train: name one of them'):
        open_split(root, split)
    with pytest.raises(ValueError, match='no folder for the split'):
        create_multires_loader(str(root) + os.sep, (32,), split=split, batch_size=1, is_training=False)


@pytest.mark.parametrize('names, split, count', [
    (['train/a', 'val/a'], 'val', 1),
    (['train/a', 'validation/a'], 'val', 1),  # timm's synonyms
    (['train/a', 'val/a'], 'train', 1),
    (['train/a', 'val/b'], '.', 2),
    (['car', 'plane', 'train'], 'val', 3),  # a class, not a split
    (['a', 'b'], 'val', 2),
])
def test_splits_and_plain_folders_of_classes(tmp_path, names, split, count):
    assert len(open_split(folders(tmp_path, *names), split)) == count


def test_a_tar_file_has_no_splits_and_numbers_its_folders(tmp_path):
    folders(tmp_path / 'in', 'train/b', 'train/a')
    with tarfile.open(tmp_path / 'pictures.tar', 'w') as archive:
        archive.add(tmp_path / 'in', arcname='.')
    assert folder_classes(open_split(tmp_path / 'pictures.tar', 'val')) == dict(a=0, b=1)


def test_the_class_is_the_first_folder_below_the_split(tmp_path):
    """However deep the pictures lie, and also where leaf folders have the same name; in a tar file too."""
    folders(tmp_path / 'in', 'train/a/2020', 'train/a/2021/spring', 'train/b/2020')
    with tarfile.open(tmp_path / 'pictures.tar', 'w') as archive:
        archive.add(tmp_path / 'in', arcname='.')
    for source in ('in', 'pictures.tar'):
        dataset = open_split(tmp_path / source, 'train')
        assert folder_classes(dataset) == dict(a=0, b=1)
        assert sorted(target for _, target in dataset) == [0, 0, 1]


def test_what_a_tar_file_leaves_out_is_named_and_counted(tmp_path, caplog):
    root = folders(tmp_path / 'in', 'train/a', 'train/b/.hidden')
    (root / 'train/b/1.webp').write_bytes((root / 'train/a/0.png').read_bytes())
    for name in ('train/b/notes.txt', 'list.csv', 'train/b/.hidden/x.txt'):
        (root / name).write_text('no picture')
    (root / '0.png').write_bytes(b'')
    with tarfile.open(tmp_path / 'pictures.tar', 'w') as archive:
        archive.add(root, arcname='.')
    dataset = open_split(tmp_path / 'pictures.tar', 'train')
    assert dataset.filenames() == ['train/a/0.png', 'train/b/1.webp'] and folder_classes(dataset) == dict(a=0, b=1)
    assert 'left out are 1 pictures outside of the folders of classes, the first: 0.png; 2 files' in caplog.text
    assert 'list.csv' in caplog.text or 'notes.txt' in caplog.text
    assert dataset[1][0].size == (40, 40)


def test_a_damaged_tar_file_is_no_shorter_one(tmp_path):
    """tarfile, and timm's reader with it, take a header that they cannot read for the end."""
    root = folders(tmp_path / 'in', 'a', 'b')
    file = tmp_path / 'pictures.tar'
    with tarfile.open(file, 'w', format=tarfile.USTAR_FORMAT) as archive:
        for name in ('a/0.png', 'b/0.png'):
            archive.add(root / name, arcname=name)
        second = archive.getmembers()[1].offset
    data = bytearray(file.read_bytes())
    assert len(open_split(file, 'train')) == len(open_reader('tar', str(file), '').names) == 2
    data[second] ^= 1
    file.write_bytes(data)
    for read in (lambda: open_split(file, 'train'), lambda: open_reader('tar', str(file), '')):
        with pytest.raises(ValueError, match='pictures.tar: not a readable tar file'):
            read()


def test_what_is_left_out_is_named_and_counted(tmp_path, caplog):
    """Every ending that predict reads; hidden files and folders are passed over without a word."""
    root = folders(tmp_path, 'train/a', 'train/b', 'train/.ipynb_checkpoints')
    picture = Image.new('RGB', (40, 40))
    for name in ('a/1.webp', 'a/2.TIF', 'b/3.gif', 'c/4.bmp', 'loose.png'):
        (root / 'train' / name).parent.mkdir(exist_ok=True)
        picture.save(root / 'train' / name)
    for name in ('a/._0.png', '.DS_Store', 'a/notes.txt', 'b/list.csv'):
        (root / 'train' / name).write_text('no picture')
    (root / 'train/d').mkdir()
    dataset = open_split(root, 'train')
    assert folder_classes(dataset) == dict(a=0, b=1, c=2) and len(dataset) == 6
    assert len(list(create_multires_loader(root, (32,), batch_size=1, num_workers=0))) == 6
    said = caplog.text.splitlines()[0]
    for part in ('1 pictures outside of the folders of classes, the first: loose.png',
                 '2 files that do not end like a picture (.jpg, .jpeg, .jpe, ...), the first: a/notes.txt',
                 '1 folders without pictures, the first: d'):
        assert part in said
    assert 'DS_Store' not in said and 'ipynb' not in said


def test_class_maps_that_do_not_fit(tmp_path):
    root = folders(tmp_path, 'a', 'b')
    with pytest.raises(ValueError, match='class map file'):
        open_split(root, 'val', class_map='nowhere.txt')
    with pytest.raises(ValueError, match=r"the class map has no 'b' \(1 of 2 folders .* it has 'a', 'B'"):
        open_split(root, 'val', class_map={'a': 0, 'B': 1})
    assert [target for _, target in open_split(root, 'val', class_map={'c': 0, 'b': 1, 'a': 2})] == [2, 1]


# Classes

@pytest.mark.parametrize('candidates, expected', [
    ([['a', 'b', 'c']], dict(c=2, a=0)),
    ([['x', 'y', 'z'], ['c', 'b', 'a']], dict(c=0, a=2)),
    ([['a', 'b', 'x']], None),
    ([['a', 'c', 'c']], None),  # which of the two?
    ([], None),
])
def test_outputs_by_name(candidates, expected):
    assert outputs_by_name(['c', 'a'], candidates) == expected
    assert outputs_by_name([], candidates) is None


def test_names_that_folders_may_have():
    imagenet = timm.create_model('test_resnet')
    assert outputs_by_name(['n02102040', 'n01440764'], folder_names(imagenet)) == dict(n02102040=217, n01440764=0)
    shipped = timm.create_model('rs_mobilenetv2.mred_imagenette')
    for names in (['n03888257', 'n02102040'], ['parachute', 'English springer']):
        assert list(outputs_by_name(names, folder_names(shipped)).values()) == [9, 1]
    assert folder_names(timm.create_model('test_resnet', num_classes=7)) == []


def test_labels_of_another_number_of_classes_name_nothing():
    model = timm.create_model('test_resnet', num_classes=3)
    model.pretrained_cfg = dict(model.pretrained_cfg, label_names=['a', 'b'])
    assert folder_names(model) == [] and class_names(model)(2) == 'class 2'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp('pictures'), classes=4, train_each=1, val_each=4)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A function: label names -> a folder with a network whose outputs are called so."""
    def save(labels):
        torch.manual_seed(0)
        network = rs_timm.switchable('test_resnet', (48, 32), num_classes=4)
        return save_pretrained(network, tmp_path_factory.mktemp('model') / 'rs', model_config=dict(label_names=labels))

    return save


@pytest.fixture
def class_map(tmp_path):
    file = tmp_path / 'map.txt'
    file.write_text('\n'.join(LABELS))
    return file


def subset(data, root, *names):
    (root / 'val').mkdir(parents=True)
    for name in names:
        (root / 'val' / name).symlink_to(data / 'val' / name)
    return root


def evaluated(cli, model, data, *options):
    status, out, err = cli('eval', model, '--data', data, '--workers', 0, '--device', 'cpu', *options)
    assert status == 0
    heading, *table = out.splitlines()
    return heading.rpartition('; ')[2], table, err


@pytest.mark.parametrize('names', [['class0', 'class1', 'class2', 'class3'], ['class3', 'class1']])
def test_eval_takes_folders_by_name(cli, data, saved, class_map, tmp_path, names):
    model, some = saved(LABELS), subset(data, tmp_path / 'some', *names)
    order, table, err = evaluated(cli, model, some)
    assert order == f'classes by name ({len(names)} of 4)' and not err
    assert evaluated(cli, model, some, '--class-map', class_map)[:2] == (f'classes as in {class_map}', table)
    in_order = tmp_path / 'in_order.txt'
    in_order.write_text('\n'.join(sorted(names)))
    assert evaluated(cli, model, some, '--class-map', in_order)[1] != table  # what the names save from


@pytest.mark.parametrize('labels', [['w', 'x', 'y', 'z'], ['class0', 'class1', 'class2', 'class2']])
def test_eval_warns_where_names_do_not_match(cli, data, saved, labels):
    order, _, err = evaluated(cli, saved(labels), data)
    assert order == 'classes in sorted order' and err.count('\n') == 1
    assert f"sorted order, 'class0' for {labels[0]!r}, 'class1' for {labels[1]!r}" in err


def test_eval_warns_where_classes_are_missing(cli, data, saved, class_map, tmp_path):
    some = subset(data, tmp_path / 'some', 'class0')
    assert 'has 1 of the 4 classes' in evaluated(cli, saved(list('wxyz')), some)[2]
    class_map.write_text('class0\n')
    assert f'{class_map} names 1 of the 4' in evaluated(cli, saved(LABELS), some, '--class-map', class_map)[2]


@pytest.mark.parametrize('labels, fact', [
    (LABELS, '<p>Classes by name (2 of 4).</p>'),
    (list('wxyz'), '<p>Classes in sorted order.</p>\n<p>Warning: '),
])
def test_analyze_says_how_folders_became_classes(cli, data, saved, tmp_path, labels, fact):
    page, rows = tmp_path / 'page.html', tmp_path / 'rows.csv'
    some = subset(data, tmp_path / 'some', 'class1', 'class3')
    assert cli('analyze', saved(labels), '--data', some, '--out', page, '--csv', rows, '--workers', 0, '--device',
               'cpu')[0] == 0
    assert fact in page.read_text()
    with rows.open() as stream:
        found = {(row['picture'].split('/')[0], labels[int(row['target'])]) for row in csv.DictReader(stream)}
    by_name = {('class1', 'class1'), ('class3', 'class3')}
    assert found == (by_name if labels == LABELS else {('class1', 'w'), ('class3', 'x')})
