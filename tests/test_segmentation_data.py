"""Pictures with masks: crops stay aligned at every size, folders are understood, and bad files are named."""
import numpy as np
import pytest
import torch
from masked_pictures import COLOURS, IGNORE, NAMES, SIZE, make_masked, picture_of
from PIL import ExifTags, Image

from rs_timm.data import ImageError, MaskFolder, create_mask_loader
from rs_timm.data.masks import class_values

RESOLUTIONS = (48, 32)
PLAIN = dict(classes=NAMES, ignore_label=IGNORE, num_workers=0, mean=(0., 0., 0.), std=(1., 1., 1.))


@pytest.fixture
def root(tmp_path):
    return make_masked(tmp_path / 'data')


def nearest_class(images):
    """[N, 3, h, w] in 0..1 -> the class whose colour is nearest."""
    colours = torch.tensor(COLOURS) / 255
    return (images[:, None] - colours[None, :, :, None, None]).square().sum(2).argmin(1)


# Views

def test_training_crops_stay_aligned(root):
    """The colour of a pixel gives its class, at every size, but for the pixels at an edge."""
    loader = create_mask_loader(root, RESOLUTIONS, batch_size=4, **PLAIN)
    seen = 0
    for images, masks in loader:
        assert masks.shape == (4, 48, 48) and masks.dtype == torch.uint8
        assert set(images) == set(RESOLUTIONS)
        for size, view in images.items():
            assert view.shape == (4, 3, size, size)
            expected = torch.nn.functional.interpolate(masks[:, None].float(), size=(size, size), mode='nearest-exact')
            labelled = expected[:, 0] != 255
            agreeing = (nearest_class(view) == expected[:, 0])[labelled].float().mean()
            assert agreeing > 0.85, size
            seen += 1
    assert seen == 4


def test_masks_have_no_new_values(root):
    loader = create_mask_loader(root, RESOLUTIONS, batch_size=8, **PLAIN)
    assert {value for _, masks in loader for value in masks.unique().tolist()} <= {0, 1, 2, 255}


def test_a_crop_without_chance_is_the_whole_picture(root):
    loader = create_mask_loader(
        root, RESOLUTIONS, batch_size=1, scale=(1., 1.), ratio=(SIZE[0] / SIZE[1],) * 2, hflip=1., **PLAIN)
    loader.set_epoch(0)
    index = loader._order.batches()[0][0]
    images, masks = next(iter(loader))
    picture, mask = loader.dataset[index]
    flipped = Image.fromarray(mask).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(masks[0].numpy(), np.asarray(flipped.resize((48, 48), Image.Resampling.NEAREST)))
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for size in RESOLUTIONS:
        expected = np.asarray(mirrored.resize((size, size), Image.Resampling.BILINEAR))
        torch.testing.assert_close(images[size][0], torch.tensor(expected).permute(2, 0, 1) / 255)


def test_order_and_crops_depend_on_the_epoch_alone(root):
    def batches(workers, epoch):
        loader = create_mask_loader(root, RESOLUTIONS, batch_size=4, **dict(PLAIN, num_workers=workers))
        loader.set_epoch(epoch)
        return [torch.cat([images[32].flatten(), masks.flatten().float()]) for images, masks in loader]

    first = batches(0, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, batches(1, 1)))
    assert not any(torch.equal(a, b) for a, b in zip(first, batches(0, 2)))


def test_evaluation_squeezes_the_picture_and_leaves_the_mask(tmp_path):
    """Pictures of several sizes in one batch."""
    root = make_masked(tmp_path / 'data', sizes=((64, 48), (40, 56)))
    loader = create_mask_loader(root, RESOLUTIONS, split='val', batch_size=5, **PLAIN)
    images, masks = next(iter(loader))
    assert [tuple(mask.shape) for mask in masks] == [(48, 64), (56, 40), (48, 64), (56, 40), (48, 64)]
    for index, mask in enumerate(masks):
        picture, own = loader.dataset[index]
        assert np.array_equal(mask.numpy(), own)
        for size in RESOLUTIONS:
            expected = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
            torch.testing.assert_close(images[size][index], torch.tensor(expected).permute(2, 0, 1) / 255)


# Folders and values

@pytest.mark.parametrize('ignored, values, expected', [
    (IGNORE, (0, 1, 2, 7), (0, 1, 2, 255)), (0, (0, 1, 2, 3), (255, 0, 1, 2)), (1, (0, 1, 2, 3), (0, 255, 1, 2))])
def test_the_ignored_value_is_no_class_wherever_it_lies(tmp_path, ignored, values, expected):
    make_masked(tmp_path, train=1, val=0)
    Image.fromarray(np.tile(np.array(values, np.uint8), (48, 16))).save(tmp_path / 'train/masks/0.png')
    mask = MaskFolder(tmp_path, 'train', NAMES, ignored)[0].mask
    assert tuple(mask[0, :4]) == expected
    assert class_values(3, ignored) == [v for v, e in zip(values, expected) if e != 255]


def test_layouts(root, tmp_path):
    """The same pairs from folders by split, and from lists with one or two names a line."""
    expected = [(picture.tobytes(), mask.tobytes()) for picture, mask in MaskFolder(root, 'train', NAMES, IGNORE)]
    flat = tmp_path / 'nyu'
    (flat / 'test').mkdir(parents=True)
    for there, here in (('images', 'RGB'), ('masks', 'Label')):
        (root / 'train' / there).rename(flat / here)
    names = sorted(path.stem for path in (flat / 'RGB').iterdir())
    (flat / 'train.txt').write_text('\n'.join(f'RGB/{name}.png\tLabel/{name}.png' for name in names))
    (flat / 'bare.txt').write_text('\n'.join(names) + '\n')
    for split in ('train', 'bare'):
        own = MaskFolder(flat, split, NAMES, IGNORE)
        assert [(picture.tobytes(), mask.tobytes()) for picture, mask in own] == expected
    (flat / 'RGB').rename(flat / 'test/rgb')
    (flat / 'Label').rename(flat / 'test/labels_40')
    own = MaskFolder(flat, 'test', NAMES, IGNORE)
    assert [(picture.tobytes(), mask.tobytes()) for picture, mask in own] == expected
    with pytest.raises(ValueError, match='RGB/0: no such file; .*bare.txt names it'):
        MaskFolder(flat, 'bare', NAMES)


def test_palettes_are_indices(root):
    file = root / 'train/masks/0.png'
    mask = Image.open(file)
    expected = MaskFolder(root, 'train', NAMES, IGNORE)[0].mask
    palette = Image.fromarray(np.asarray(mask))
    palette = palette.convert('P') if palette.mode != 'L' else Image.frombytes('P', palette.size, palette.tobytes())
    palette.putpalette([channel for index in range(256) for channel in (255 - index, index, 9)])
    palette.save(file)
    assert Image.open(file).mode == 'P'
    assert np.array_equal(MaskFolder(root, 'train', NAMES, IGNORE)[0].mask, expected)


@pytest.mark.parametrize('orientation', [3, 6])
def test_picture_and_mask_are_turned_as_they_say(root, orientation):
    """Stored upside down or on the side, both with a note of it."""
    expected = MaskFolder(root, 'train', NAMES, IGNORE)[0]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    for folder in ('images', 'masks'):
        file = root / 'train' / folder / '0.png'
        Image.open(file).transpose(stored).save(file, exif=exif)
    picture, mask = MaskFolder(root, 'train', NAMES, IGNORE)[0]
    assert np.array_equal(picture, expected.picture) and np.array_equal(mask, expected.mask)


# Bad input

def wrong_size(root):
    Image.new('L', (64, 47)).save(root / 'val/masks/1.png')


def unknown_value(root):
    Image.new('L', SIZE, 5).save(root / 'val/masks/1.png')


def large_value(root):
    Image.fromarray(np.full((48, 64), 3000, np.uint16)).save(root / 'val/masks/1.png')


def colours(root):
    Image.new('RGB', SIZE).save(root / 'val/masks/1.png')


def small(root):
    Image.new('RGB', (64, 31)).save(root / 'val/images/1.png')
    Image.new('L', (64, 31)).save(root / 'val/masks/1.png')


def broken_picture(root):
    (root / 'val/images/1.png').write_bytes(b'nothing')


def broken_mask(root):
    (root / 'val/masks/1.png').write_bytes(b'nothing')


@pytest.mark.parametrize('damage, message', [
    (wrong_size, r'masks/1.png: 64x47 pixels; its picture, .*images/1.png, has 64x48'),
    (unknown_value, r'masks/1.png: the value 5 is no class: expected 0 to 2 for the 3 classes, or 7 for none'),
    (large_value, r'masks/1.png: the value 3000 is no class'),
    (colours, r'masks/1.png: a mask holds one whole number a pixel; this is a picture of kind RGB'),
    (small, r'images/1.png: 64x31 pixels; each side needs at least 32, the output stride'),
    (broken_picture, r'images/1.png'),
    (broken_mask, r'masks/1.png'),
])
def test_a_bad_file_is_named_or_skipped(root, damage, message):
    damage(root)
    loader = create_mask_loader(root, RESOLUTIONS, split='val', batch_size=2, **PLAIN)
    with pytest.raises(ImageError, match=message) as error:
        list(loader)
    assert str(error.value).count('1.png: ') == 1
    loader = create_mask_loader(root, RESOLUTIONS, split='val', batch_size=2, skip_corrupt=True, **PLAIN)
    assert sum(len(masks) for _, masks in loader) == 4 and loader.corrupt_count == 1


def listed(root, listing, *files):
    """A `MaskFolder` of the pictures in a list, where these files exist below `root`."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new('L' if file.startswith('Label') else 'RGB', (64, 48)).save(root / file)
    (root / 'train.txt').write_text(listing)
    return [(str(picture.relative_to(root)), str(mask.relative_to(root)))
            for picture, mask in MaskFolder(root, 'train', NAMES).pairs]


@pytest.mark.parametrize('listing, pairs', [
    ('scene.001\n', [('RGB/scene.001.png', 'Label/scene.001.png')]),  # its end is no ending of a picture
    ('RGB/a.jpg', [('RGB/a.jpg', 'Label/a.png')]),  # of a.jpg beside a.png the one that is named
    ('b c', [('RGB/b c.png', 'Label/b c.png')]),
    ('RGB/b c.png Label/b c.png', [('RGB/b c.png', 'Label/b c.png')]),
    ('one/a\ntwo/a.png', [('RGB/one/a.png', 'Label/one/a.png'), ('RGB/two/a.png', 'Label/two/a.png')]),
])
def test_lists_name_files_exactly(tmp_path, listing, pairs):
    names = 'scene.001', 'scene', 'a', 'b c', 'one/a', 'two/a'
    files = [f'{folder}/{name}.png' for folder in ('RGB', 'Label') for name in names]
    assert listed(tmp_path, listing, *files, 'RGB/a.jpg') == pairs


@pytest.mark.parametrize('listing, message', [
    ('img.flip', r'RGB/img.flip: no such file; .*train.txt names it'),
    ('a', 'beside it has the same name but for the ending'),
    ('a.jpg\na.png', r'Label/a.png: it would be the mask of a.jpg and of a.png'),
])
def test_lists_that_do_not_say_which_file(tmp_path, listing, message):
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, listing, 'RGB/img.png', 'Label/img.png', 'RGB/a.jpg', 'RGB/a.png', 'Label/a.png')


def test_two_pictures_of_one_name_are_not_one(root):
    (root / 'train/images/1.jpg').write_bytes((root / 'train/images/1.png').read_bytes())
    with pytest.raises(ValueError, match=r'masks/1.png: it would be the mask of 1.jpg and of 1.png'):
        MaskFolder(root, 'train', NAMES)


def test_training_goes_on_with_the_one_readable_mask(root):
    for mask in sorted((root / 'train/masks').iterdir())[1:]:
        mask.write_bytes(b'')
    loader = create_mask_loader(root, RESOLUTIONS, batch_size=4, skip_corrupt=True, **PLAIN)
    assert [len(masks) for _, masks in loader] == [4, 4] and loader.corrupt_count == 7


def test_folders_that_do_not_fit(root, tmp_path):
    with pytest.raises(ValueError, match="no split 'test'; expected .*/test/images"):
        MaskFolder(root, 'test', NAMES)
    with pytest.raises(ValueError, match='no such folder'):
        MaskFolder(root / 'nowhere', 'test', NAMES)
    (root / 'val/masks/3.png').unlink()
    with pytest.raises(ValueError, match=r'images/3.png: has no mask in .*masks \(1 of 5 pictures have none\)'):
        MaskFolder(root, 'val', NAMES)
    with pytest.raises(ValueError, match='masks have 8 bits'):
        MaskFolder(root, 'train', [str(index) for index in range(256)])
    with pytest.raises(ValueError, match='is more than the 8 pictures'):
        create_mask_loader(root, RESOLUTIONS, batch_size=9, **PLAIN)


def test_the_pictures_are_what_the_tests_think(root):
    picture, mask = MaskFolder(root, 'train', NAMES, IGNORE)[0]
    assert np.array_equal(np.asarray(picture), np.asarray(picture_of(np.where(mask == 255, IGNORE, mask))))
