"""The multi-resolution loader: one crop for all sizes, timm's evaluation bit by bit, an order that nothing disturbs."""
import os
import random
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import Mixup, create_dataset, create_transform
from timm.data.auto_augment import AugmentOp
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch.utils.data import Dataset, IterableDataset

from rs_timm.data import ImageError, create_multires_loader, image_transform, open_image
from rs_timm.data.device import mix
from rs_timm.data.order import evaluation_shard, seeded, training_shard
from rs_timm.data.views import TrainViews

SIZES = (64, 48, 32)
RAW = dict(mean=(0., 0., 0.), std=(1 / 255, 1 / 255, 1 / 255))  # batches in 0..255


def ramp(width, height):
    """A picture whose red is x and whose green is y: every pixel says where it comes from."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2).astype(np.uint8))


def noise(width, height, seed):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def flat(value, side=80):
    return Image.new('RGB', (side, side), (value, value, value))


class Pictures(Dataset):
    """Pictures in memory; the label is the index."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index], index


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures of different shapes and kinds in two classes below train and val."""
    for split in ('train', 'val'):
        for index in range(12):
            path = tmp_path / split / 'ab'[index % 2] / f'{index:02d}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = noise(90 + 7 * index, 130 - 5 * index, index)
            (picture.convert('L') if index == 3 else picture.convert('P') if index == 4 else picture).save(path)
    return tmp_path


def create(source, resolutions=SIZES, **kwargs):
    return create_multires_loader(source, resolutions, **dict(dict(batch_size=4, num_workers=0), **kwargs))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for (images, target), (other_images, other_target) in zip(batches, others):
        assert list(images) == list(other_images)
        assert torch.equal(target, other_target)
        assert all(torch.equal(images[size], other_images[size]) for size in images)


# Gray

def gray(folder, **kwargs):
    return create(folder, channels=1, batch_size=12, **kwargs)


@pytest.mark.parametrize('crop_mode, mean', [('center', (0.3,)), ('squash', (0.3,)), ('border', (0.1, 0.3, 0.5))])
def test_gray_evaluation_is_what_predict_feeds(folder, crop_mode, mean):
    """Bit by bit; mean and std of three channels are averaged, as in a saved network."""
    config = dict(interpolation='bicubic', crop_pct=0.9, crop_mode=crop_mode, std=(0.2,))
    (images, _), = gray(folder, split='val', **dict(config, mean=mean))
    files = create_dataset('', root=str(folder), split='val').filenames(absolute=True)
    for size in SIZES:
        transform = image_transform(dict(config, mean=(0.3,), input_size=(1, 0, 0)), size)
        assert torch.equal(images[size], torch.stack([transform(open_image(file)) for file in files]))


@pytest.mark.parametrize('options', [
    {}, dict(resizer='torch'), dict(mode='device'), dict(mode='device', flip='per_resolution'),
    dict(crop='per_resolution')])
def test_gray_training_is_the_luma_of_the_same_views(folder, options):
    (images, target), = gray(folder, seed=2, **options, mean=(0.,), std=(1 / 255,))
    (coloured, expected_target), = create(folder, batch_size=12, seed=2, **options, **RAW)
    assert torch.equal(target, expected_target)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    for size in SIZES:
        assert images[size].shape == (12, 1, size, size)
        assert (images[size] - (coloured[size] * luma).sum(1, keepdim=True)).abs().max() < 2.


@pytest.mark.parametrize('mode', ['loader', 'device'])
@pytest.mark.parametrize('options', [
    dict(color_jitter=0.4), dict(auto_augment='rand-m9-mstd0.5'), dict(auto_augment='v0'), dict(auto_augment='augmix'),
    *(dict(re_prob=1., re_mode=re_mode) for re_mode in ('const', 'rand', 'pixel')),
    dict(mixup=Mixup(0.2, 1., num_classes=2, label_smoothing=0.))])
def test_gray_pictures_are_augmented_as_others_are(folder, mode, options):
    (images, _), = gray(folder, mode=mode, **options)
    (plain, _), = gray(folder, mode=mode)
    for size in SIZES:
        assert images[size].shape == plain[size].shape and images[size].isfinite().all()
        assert not torch.equal(images[size], plain[size])


# One crop

def line(values):
    """(value at the left edge, at the right edge) of the line through a ramp's interior pixels."""
    inner = np.arange(3, len(values) - 3)
    slope, intercept = np.polyfit(inner + 0.5, values[inner], 1)
    return intercept, intercept + slope * len(values)


@pytest.mark.parametrize('mode', ['loader', 'device'])
@pytest.mark.parametrize('resizer', ['pillow', 'torch'])
def test_all_sizes_show_the_box_that_timm_draws(mode, resizer):
    pictures = Pictures([ramp(250, 200)] * 8)
    loader = create(pictures, mode=mode, resizer=resizer, hflip=0., seed=5, **RAW)
    for images, target in loader:
        for row, index in enumerate(target.tolist()):
            with seeded(5, 0, index):
                top, left, height, width = RandomResizedCropAndInterpolation.get_params(
                    pictures.pictures[index], (0.08, 1.), (3 / 4, 4 / 3))
            for view in images.values():
                # pixel x covers [x, x + 1), so its value is that of its centre minus a half
                red, green = view[row, 0].mean(0).numpy() + 0.5, view[row, 1].mean(1).numpy() + 0.5
                np.testing.assert_allclose(line(red), (left, left + width), atol=1.)
                np.testing.assert_allclose(line(green), (top, top + height), atol=1.)


def test_each_size_comes_straight_from_the_crop_with_pillow(folder):
    dataset = create_dataset('', root=str(folder), split='train')
    (images, _), = create(dataset, batch_size=12, hflip=0., seed=3, **RAW)
    order, = training_shard(12, 12, seed=3, epoch=0, rank=0, world_size=1)
    for row, index in enumerate(order):
        picture = dataset[index][0]
        with seeded(3, 0, index):
            top, left, height, width = RandomResizedCropAndInterpolation.get_params(picture, (0.08, 1.), (3 / 4, 4 / 3))
        crop = picture.crop((left, top, left + width, top + height))
        for size in SIZES:
            expected = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR))
            np.testing.assert_allclose(images[size][row].permute(1, 2, 0).numpy(), expected, atol=1e-3)


def test_torch_resizes_as_pillow_does_up_to_one_level(folder):
    loaders = [create(folder, resizer=resizer, **RAW) for resizer in ('pillow', 'torch')]
    for (images, _), (others, _) in zip(*loaders):
        for size in SIZES:
            assert (images[size] - others[size]).abs().max() < 1.01


@pytest.mark.parametrize('mode', ['loader', 'device'])
def test_flips_are_shared_or_drawn_per_resolution(mode):
    pictures = Pictures([ramp(120, 120)] * 40)

    def flips(flip, hflip=0.5):
        (images, _), = create(pictures, mode=mode, flip=flip, hflip=hflip, batch_size=40, **RAW)
        red = {size: view[:, 0].mean(1) for size, view in images.items()}
        return torch.stack([values[:, -1] < values[:, 0] for values in red.values()], dim=1)  # [40, S]

    shared, single = flips('shared'), flips('per_resolution')
    assert (shared == shared[:, :1]).all() and 8 < shared[:, 0].sum() < 32
    assert len({tuple(row) for row in single.tolist()}) > 4  # of the 8 patterns
    assert all(8 < count < 32 for count in single.sum(0).tolist())
    assert not flips('shared', hflip=0.).any() and flips('per_resolution', hflip=1.).all()


@pytest.mark.parametrize('same_size', [0, 40])
def test_a_crop_of_its_own_for_each_size(same_size):
    """Table 6, multi-crop: the boxes are independent draws, and with `same_size` every view has that side."""
    pictures = Pictures([ramp(250, 200)] * 60)
    (images, _), = create(pictures, crop='per_resolution', same_size=same_size, batch_size=60, seed=5, **RAW)
    assert {size: view.shape[-1] for size, view in images.items()} == {size: same_size or size for size in SIZES}
    edges = []
    for view in images.values():
        values = view[:, 0].mean(1).numpy() + 0.5
        edges.append([sorted(line(row)) for row in values])  # a flipped view has them the other way round
    edges = np.array(edges)  # [S, 60, 2]
    assert (edges > -1).all() and (edges < 251).all()
    widths = edges[..., 1] - edges[..., 0]
    assert np.abs(np.corrcoef(widths) - np.eye(len(SIZES))).max() < 0.4  # of one crop, they would be equal
    again, = create(pictures, crop='per_resolution', same_size=same_size, batch_size=60, seed=5, num_workers=1, **RAW)
    assert all(torch.equal(again[0][size], images[size]) for size in SIZES)


def test_the_decoder_scales_down_where_the_crop_still_covers_the_largest_size(tmp_path):
    path = tmp_path / 'train' / 'a' / 'ramp.jpg'
    path.parent.mkdir(parents=True)
    ramp(256, 256).resize((800, 800)).save(path, quality=95)
    views = {draft: TrainViews(SIZES, SIZES, scale=(0.9, 1.), hflip=0., draft=draft) for draft in (False, True)}
    images = {}
    for draft, transform in views.items():
        with Image.open(path) as picture, seeded(0, 0, 0):
            images[draft] = transform(picture).images
            assert picture.size == ((100, 100) if draft else (800, 800))
    for size in SIZES:
        difference = images[True][size].astype(int) - images[False][size].astype(int)
        assert np.abs(difference).max() <= 4 and abs(difference.mean()) < 1.


# Evaluation

@pytest.mark.parametrize('config', [
    dict(),
    dict(interpolation='bicubic', crop_pct=0.95),
    dict(interpolation='lanczos', crop_mode='squash'),
    dict(crop_mode='border', crop_pct=1., mean=(0.3, 0.4, 0.5)),
], ids=str)
def test_evaluation_is_timms_transform_bit_by_bit(folder, config):
    dataset = create_dataset('', root=str(folder), split='val')
    batches = list(create(folder, split='val', batch_size=5, **config))
    assert [len(target) for _, target in batches] == [5, 5, 2]
    assert torch.cat([target for _, target in batches]).tolist() == [dataset[i][1] for i in range(12)]
    for size in SIZES:
        transform = create_transform(size, **config)
        expected = torch.stack([transform(dataset[index][0]) for index in range(12)])
        assert torch.equal(torch.cat([images[size] for images, _ in batches]), expected)


# Kinds of pictures

def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return dict(exif=exif)


def gray_16_bits(width, height):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))


def half_transparent(width, height):
    picture = noise(width, height, 1)
    picture.putalpha(noise(width, height, 2).convert('L'))
    return picture


@pytest.fixture
def kinds(tmp_path):
    """One picture of each kind that needs more than `convert('RGB')`, and two that do not, in one class."""
    folder = tmp_path / 'kinds' / 'val' / 'a'
    folder.mkdir(parents=True)
    noise(90, 70, 0).save(folder / '0_plain.jpg')
    noise(90, 70, 1).save(folder / '1_upright.jpg', **turned(1))
    noise(90, 70, 2).save(folder / '2_turned.jpg', **turned(6))
    noise(90, 70, 3).save(folder / '3_turned.png', **turned(3))
    gray_16_bits(90, 70).save(folder / '4_16_bits.png')
    half_transparent(90, 70).save(folder / '5_transparent.png')
    noise(90, 70, 4).convert('P').save(folder / '6_one_transparent_colour.png', transparency=7)
    noise(90, 70, 5).convert('CMYK').save(folder / '7_cmyk.jpg', **turned(8))
    return folder.parent.parent


def in_a_tar_file(root):
    file = root.with_suffix('.tar')
    with tarfile.open(file, 'w') as archive:
        archive.add(root / 'val', arcname='.')
    return file


def opened_by_another_data_set(root):
    return Pictures([Image.open(file) for file in sorted(root.rglob('*.*'))])


@pytest.mark.parametrize('source', [lambda root: root, in_a_tar_file, opened_by_another_data_set])
def test_pictures_are_read_as_predict_reads_them(kinds, source):
    loader = create(source(kinds), (48,), split='val', batch_size=8, crop_mode='squash', crop_pct=1., **RAW)
    (images, _), = loader
    files = sorted(kinds.rglob('*.*'))
    assert len(files) == len(images[48]) and loader.corrupt_count == 0
    for file, found in zip(files, images[48]):
        expected = np.asarray(open_image(file).resize((48, 48), Image.Resampling.BILINEAR))
        assert np.array_equal(found.permute(1, 2, 0).round().numpy(), expected), file.name
    for file, found in zip(files[:2], images[48]):  # and these as timm does
        assert np.array_equal(np.asarray(Image.open(file).convert('RGB').resize((48, 48), Image.Resampling.BILINEAR)),
                              found.permute(1, 2, 0).round().numpy())


@pytest.mark.parametrize('options', [{}, dict(mode='device', draft=True), dict(crop='per_resolution')])
@pytest.mark.parametrize('orientation, stored', [
    (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)])
def test_training_sees_upright_pictures(tmp_path, orientation, stored, options):
    for name, picture, save in (('upright', noise(120, 80, 0), {}),
                                ('stored', noise(120, 80, 0).transpose(stored), turned(orientation))):
        (tmp_path / name / 'train' / 'a').mkdir(parents=True)
        picture.save(tmp_path / name / 'train' / 'a' / '0.png', **save)
    assert_same(*(list(create(tmp_path / name, batch_size=1, **options)) for name in ('upright', 'stored')))


def test_pixels_without_a_defined_white_are_damaged_and_named(folder):
    Image.new('F', (80, 80), 0.5).save(folder / 'val' / 'a' / 'float.png', format='TIFF')
    with pytest.raises(ImageError, match=r'float\.png: .*floating-point'):
        list(create(folder, split='val'))


def test_normalisation_has_a_closed_form():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
    pictures = Pictures([Image.new('RGB', (70, 70), (255, 51, 0))] * 4)
    expected = torch.tensor([(1 - 0.4) / 0.2, (0.2 - 0.5) / 0.25, -0.6 / 0.5]).view(1, 3, 1, 1)
    for is_training in (True, False):
        (images, _), = create(pictures, is_training=is_training, mean=mean, std=std)
        for size, view in images.items():
            torch.testing.assert_close(view, expected.expand(4, 3, size, size), atol=1e-5, rtol=0.)


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('mode', ['loader', 'device'])
def test_memory_format(folder, channels_last, mode):
    images, target = next(iter(create(folder, mode=mode, channels_last=channels_last)))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert all(view.is_contiguous(memory_format=memory_format) for view in images.values())
    assert target.dtype == torch.int64 and images[64].dtype == torch.float32 and list(images) == [64, 48, 32]


# Order and resume

EVERYTHING = dict(
    mode='device',
    flip='per_resolution',
    color_jitter=0.4,
    auto_augment='rand-m9-mstd0.5',
    re_prob=0.5,
    re_mode='pixel',
)


@pytest.mark.parametrize('extra', [{}, EVERYTHING], ids=['plain', 'everything'])
def test_workers_change_nothing(folder, extra):
    def batches(num_workers):
        mixup = Mixup(mixup_alpha=0.5, cutmix_alpha=1., num_classes=2) if extra else None
        return list(create(folder, num_workers=num_workers, mixup=mixup, seed=7, **extra))

    reference = batches(0)
    assert_same(batches(1), reference)
    assert_same(batches(2), reference)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_a_pass_resumed_in_the_middle_goes_on_exactly(folder, num_workers):
    loader = create(folder, batch_size=3, num_workers=num_workers, color_jitter=0.4)
    loader.set_epoch(2)
    whole = list(loader)
    loader.set_epoch(2)
    next(iter(loader))  # a pass that was left
    for start in range(5):
        loader.set_epoch(2, start_batch=start)
        assert_same(list(loader), whole[start:])
        assert len(loader) == 4


def test_epochs_and_seeds_differ_and_a_pass_moves_on(folder):
    loader = create(folder)
    first, second = list(loader), list(loader)
    assert not torch.equal(first[0][0][32], second[0][0][32]) and loader.epoch == 2
    loader.set_epoch(1)
    assert_same(list(loader), second)
    assert not torch.equal(next(iter(create(folder, seed=1)))[0][32], first[0][0][32])


def test_the_augmentation_of_a_picture_depends_on_nothing_but_its_index():
    loaders = [create(Pictures([noise(80, 80, 0)] * 8), batch_size=batch_size) for batch_size in (2, 8)]
    views = []
    for loader in loaders:
        pairs = [(index, view) for images, target in loader for index, view in zip(target.tolist(), images[32])]
        views.append([view for _, view in sorted(pairs, key=lambda pair: pair[0])])
    assert all(torch.equal(one, other) for one, other in zip(*views))


def test_the_generators_of_the_run_are_left_alone(folder):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    list(create(folder, mixup=Mixup(num_classes=2), **EVERYTHING))
    assert states() == before
    with pytest.raises(ZeroDivisionError), seeded(1):
        random.random() / 0
    assert states() == before


# Shards

@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_training_shards_make_up_the_joint_batch(world_size):
    joint = training_shard(50, 4 * world_size, seed=1, epoch=3, rank=0, world_size=1)
    shards = [training_shard(50, 4, 1, 3, rank, world_size) for rank in range(world_size)]
    assert [sum(parts, []) for parts in zip(*shards)] == joint
    flat_joint = sum(joint, [])
    assert len(set(flat_joint)) == len(flat_joint) == 50 // (4 * world_size) * 4 * world_size


@pytest.mark.parametrize('count', [1, 7, 8, 9])
@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_evaluation_shards_partition_the_data(count, world_size):
    shards = [evaluation_shard(count, 2, rank, world_size) for rank in range(world_size)]
    assert sorted(index for shard in shards for batch in shard for index in batch) == list(range(count))
    assert all(0 < len(batch) <= 2 for shard in shards for batch in shard)


def test_loaders_follow_the_shards():
    pictures = Pictures([flat(0)] * 11)
    evaluation = [create(pictures, is_training=False, rank=rank, world_size=2) for rank in range(2)]
    assert [[t.tolist() for _, t in loader] for loader in evaluation] == [[[0, 2, 4, 6], [8, 10]], [[1, 3, 5, 7], [9]]]
    assert [len(loader) for loader in evaluation] == [2, 2]
    training = [create(pictures, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    assert [len(loader) for loader in training] == [2, 2]
    seen = [index for loader in training for _, target in loader for index in target.tolist()]
    assert len(set(seen)) == 8


# Damaged pictures

@pytest.fixture
def damaged(folder):
    """The folder with a truncated JPEG and a text file that is called .png, in both splits."""
    for split in ('train', 'val'):
        path = folder / split / 'a' / 'truncated.jpg'
        noise(100, 100, 0).save(path)
        path.write_bytes(path.read_bytes()[:1500])
        (folder / split / 'b' / 'text.png').write_text('not a picture')
    return folder


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_damaged_picture_stops_the_pass_and_is_named(damaged, split, num_workers):
    with pytest.raises(ImageError, match=r'(truncated\.jpg|text\.png): .*skip_corrupt') as error:
        list(create(damaged, split=split, batch_size=14, num_workers=num_workers))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_skipped_pictures_are_counted(damaged, num_workers):
    training = create(damaged, batch_size=7, skip_corrupt=True, num_workers=num_workers)
    for _ in range(2):
        assert [len(target) for _, target in training] == [7, 7]  # replaced, so that a batch keeps its size
        assert training.corrupt_count >= 2  # a replacement may be the other one
        names = ' '.join(training.damaged)
        assert 'truncated.jpg' in names and 'text.png' in names
    evaluation = create(damaged, split='val', batch_size=5, skip_corrupt=True, num_workers=num_workers)
    assert sum(len(target) for _, target in evaluation) == 12 and evaluation.corrupt_count == 2


@pytest.mark.parametrize('rank', [0, 1])
def test_batches_are_full_as_long_as_one_picture_is_readable(folder, rank):
    """On every rank, so that processes keep in step; then an error says that there is none."""
    files = sorted((folder / 'train').rglob('*.png'))
    for file in files[:-1]:
        file.write_bytes(b'')
    loader = create(folder, batch_size=3, skip_corrupt=True, rank=rank, world_size=2)
    for _ in range(2):
        assert [len(target) for _, target in loader] == [3, 3] and 5 <= loader.corrupt_count <= 11
    files[-1].write_bytes(b'')
    with pytest.raises(ImageError, match=r'none of the 12 pictures to train on can be read; the first: .*\.png: '):
        list(create(folder, batch_size=3, skip_corrupt=True, rank=rank, world_size=2))


def test_what_is_no_photograph_in_a_regular_file_is_damaged(folder):
    """A pipe, on which a reader would wait for ever, a device without an end, and a format that starts a program."""
    os.mkfifo(folder / 'val/a/pipe.jpg')
    (folder / 'val/a/zero.png').symlink_to('/dev/zero')
    (folder / 'val/b/script.png').write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n')
    loader = create(folder, split='val', skip_corrupt=True)
    assert sum(len(target) for _, target in loader) == 12
    named = {line.partition(': ')[0].rpartition('/')[2] for line in loader.damaged}
    assert named == {'pipe.jpg', 'zero.png', 'script.png'}


def test_a_batch_without_a_single_readable_picture(damaged):
    loader = create(damaged, split='val', batch_size=1, skip_corrupt=True)
    assert len(list(loader)) == 12 and loader.corrupt_count == 2


def test_an_error_of_ours_is_not_taken_for_a_damaged_picture(folder):
    loader = create(folder, skip_corrupt=True, color_jitter=0.4)
    loader._loader.dataset.transform.augment = lambda picture: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(loader)


# Mixup and erasing

@pytest.mark.parametrize('mode', ['batch', 'elem', 'pair'])
@pytest.mark.parametrize('alphas', [(0.8, 0.), (0., 1.), (0.8, 1.)], ids=['mixup', 'cutmix', 'both'])
def test_mixing_is_timms_at_the_largest_size_and_the_same_at_all(mode, alphas):
    values = torch.arange(8.)
    target = torch.arange(8)
    for seed in range(5):
        mixup = Mixup(*alphas, mode=mode, num_classes=8, label_smoothing=0.1)
        images = {size: values.view(8, 1, 1, 1).repeat(1, 3, size, size) for size in SIZES}
        expected = images[64].clone()
        np.random.seed(seed)
        expected, expected_target = mixup(expected, target)
        np.random.seed(seed)
        mixed, soft = mix(mixup, images, target)
        torch.testing.assert_close(mixed[64], expected, atol=1e-5, rtol=0.)
        torch.testing.assert_close(soft, expected_target, atol=1e-6, rtol=0.)
        for size in SIZES[1:]:  # a flat picture at another size is the largest one, sampled anew
            at = ((torch.arange(size) + 0.5) * 64 / size).long()
            differs = (mixed[size] - mixed[64][:, :, at][:, :, :, at]).abs() > 1e-5
            assert differs.float().mean() <= 4 / size  # the box's edges fall between pixels


def test_the_loader_mixes_and_can_be_told_not_to():
    pictures = Pictures([flat(30 * index) for index in range(8)])
    loader = create(pictures, batch_size=8, mixup=Mixup(1., 0., num_classes=8, label_smoothing=0.), **RAW)
    (images, target), = loader
    assert target.shape == (8, 8)
    for view in images.values():  # each flat picture's level is that of its soft target
        torch.testing.assert_close(view.mean(dim=(1, 2, 3)), target @ (30. * torch.arange(8)), atol=1e-2, rtol=0.)
    assert (target > 0).sum() > 8
    loader.mixup.mixup_enabled = False
    (_, target), = loader
    assert (target == 1).sum() == 8


@pytest.mark.parametrize('mode', ['loader', 'device'])
def test_the_same_rectangle_is_erased_at_all_sizes(mode):
    pictures = Pictures([flat(255)] * 24)
    (images, _), = create(pictures, mode=mode, batch_size=24, re_prob=1., mean=(0.5,) * 3, std=(0.5,) * 3)
    for row in range(24):
        boxes = []
        for size, view in images.items():
            erased = view[row, 0] == 0.  # a flat white picture is 1 elsewhere
            assert torch.equal(erased, view[row, 2] == 0.) and (view[row][:, ~erased] > 0.999).all()
            rows, columns = erased.any(1).nonzero(), erased.any(0).nonzero()
            assert erased.sum() == len(rows) * len(columns)  # a rectangle
            boxes.append([edge / size for edge in (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)])
            assert 0.01 < erased.float().mean() < 0.37
        assert np.ptp(np.array(boxes, dtype=float), axis=0).max() <= 1 / 32


@pytest.mark.parametrize('re_mode', ['rand', 'pixel'])
def test_what_fills_an_erased_rectangle(re_mode):
    (images, _), = create(
        Pictures([flat(255)] * 12), batch_size=12, re_prob=1., re_mode=re_mode, mean=(0.,) * 3, std=(0.01,) * 3)
    for row in range(12):
        fills = [view[row][:, view[row, 0] < 50.] for view in images.values()]  # [3, erased pixels]; 100 elsewhere
        if re_mode == 'rand':
            assert all(torch.equal(fill, fills[0][:, :1].expand_as(fill)) for fill in fills)
        else:
            values = torch.cat([fill.flatten() for fill in fills])
            assert abs(values.mean()) < 0.5 and 0.7 < values.std() < 1.3


def test_half_of_the_pictures_are_erased():
    (images, _), = create(Pictures([flat(255)] * 80), batch_size=80, re_prob=0.5, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert 25 < sum(bool((view == 0.).any()) for view in images[32]) < 55


# Colour

@pytest.mark.parametrize('mode', ['loader', 'device'])
def test_colour_is_drawn_once_for_all_sizes(mode):
    (images, _), = create(
        Pictures([Image.new('RGB', (90, 90), (90, 120, 60))] * 16), mode=mode, batch_size=16, color_jitter=0.4, **RAW)
    colours = torch.stack([view.mean(dim=(2, 3)) for view in images.values()])  # [S, 16, 3]
    assert (colours - colours[0]).abs().max() < 0.51
    assert colours[0].std(dim=0).min() > 3.  # and anew for each picture


@pytest.mark.parametrize('policy', ['rand-m9-mstd0.5', 'original', 'v0', '3a', 'augmix-m3-w2'])
def test_auto_augment_translates_in_proportion_to_the_crop(policy):
    transform = TrainViews(SIZES, SIZES, scale=(1., 1.), ratio=(1., 1.), auto_augment=policy)
    with seeded(0):
        views = transform(noise(200, 200, 0))
    assert set(views.images) == set(SIZES)
    assert (policy == '3a' or transform.augment_ops) and all(isinstance(op, AugmentOp) for op in transform.augment_ops)
    assert all(op.hparams['translate_const'] == 90 for op in transform.augment_ops)


# Bad input

class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


class Tensors(Pictures):
    def __getitem__(self, index):
        return torch.zeros(3, 8, 8), index


@pytest.mark.parametrize('source, kwargs, message', [
    (None, dict(resolutions=()), r'resolutions \(\)'),
    (None, dict(resolutions=(64, 64)), r'resolutions \(64, 64\)'),
    (None, dict(resolutions=(64, 0)), r'resolutions \(64, 0\)'),
    (None, dict(mode='gpu'), r"mode 'gpu'.*loader, device"),
    (None, dict(flip='both'), r"flip 'both'.*shared, per_resolution"),
    (None, dict(resizer='opencv'), r"resizer 'opencv'.*pillow, torch"),
    (None, dict(crop_mode='corner'), "crop_mode 'corner'.*center, squash, border"),
    (None, dict(interpolation='cubic'), "interpolation 'cubic'"),
    (None, dict(interpolation='lanczos', mode='device'), 'lanczos.*bilinear, bicubic'),
    (None, dict(interpolation='random', split='val', is_training=False), "'random' is for training"),
    (None, dict(same_size=40), "use crop='per_resolution'"),
    (None, dict(crop='per_resolution', mode='device'), "needs mode='loader'"),
    (None, dict(crop='per_resolution', draft=True), 'without draft'),
    (None, dict(crop='several'), "crop 'several' is unknown: use one of shared, per_resolution"),
    (None, dict(batch_size=0), 'batch_size 0'),
    (None, dict(mean=(123., 116., 103.)), r'mean \(123.0, 116.0, 103.0\): .* divide'),
    (None, dict(mean=(float('nan'),) * 3), 'mean'),
    (None, dict(hflip=float('nan')), r'hflip nan: a probability is in \[0, 1\]'),
    (None, dict(std=(0., 0., 0.)), r'std \(0.0, 0.0, 0.0\)'),
    (None, dict(ratio=(0., 1.)), r'ratio \(0.0, 1.0\): it is two positive numbers'),
    (None, dict(scale=(0.5, 0.2)), 'the smaller one first'),
    (None, dict(channels=4), r'channels 4.*gray \(1\) or RGB \(3\)'),
    (None, dict(batch_size=13), '12'),
    (None, dict(batch_size=7, world_size=2), 'at most 6'),
    (None, dict(rank=2, world_size=2), 'rank 2 of world_size 2'),
    (Stream(), {}, 'Stream is a stream'),
    (Pictures([]), dict(class_map='x.txt'), 'class_map.*only for a folder'),
    ('/no/such/folder', {}, '/no/such/folder: no such folder'),
])
def test_bad_arguments(folder, source, kwargs, message):
    kwargs = dict(kwargs)
    with pytest.raises(ValueError, match=message):
        create(folder if source is None else source, kwargs.pop('resolutions', SIZES), **kwargs)


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / 'train').mkdir()
    with pytest.raises(ValueError, match='Found 0 images.*CLASS/PICTURE'):
        create(tmp_path)


def test_a_data_set_with_a_transform_of_its_own():
    with pytest.raises(ValueError, match='Tensor, not a PIL picture'):
        list(create(Tensors([0] * 4)))


@pytest.mark.parametrize('epoch, start', [(-1, 0), (0, 4), (0, -1)])
def test_positions_outside_the_epoch(folder, epoch, start):
    with pytest.raises(ValueError, match='start_batch'):
        create(folder).set_epoch(epoch, start_batch=start)
