"""The runtime's preprocessing gives what timm's evaluation transform gives, without torch."""
import io

import numpy as np
import pytest
import torch
from PIL import Image

from rs_timm.data import ImageError, image_transform, open_image
from rs_timm.format.info import CROP_MODES
from rs_timm.pictures import open_picture
from rs_timm.runtime.preprocessing import RESAMPLINGS, Preprocessing, is_ready

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(500, 375), (375, 500), (64, 64), (33, 200), (37, 41), (1000, 999), (20, 900)]  # width, height


def noise(size, seed=0):
    """Coarse and fine structure, so that a shift by a pixel or another filter shows."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = rng.integers(-20, 21, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8))


def photo(size, seed=0):
    """Without fine structure, as a picture of several times the target's size looks at its pixels."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (7, 7, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)


def jpeg(image, **kwargs):
    stream = io.BytesIO()
    image.save(stream, 'JPEG', quality=92, **kwargs)
    return stream.getvalue()


def oracle(image, resolution, channels=3, **config):
    given = dict(dict(mean=MEAN[:channels], std=STD[:channels], crop_pct=0.875, interpolation='bilinear',
                      input_size=(channels, 224, 224)), **config)
    return image_transform(given, resolution)(image).numpy()


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('resolution', [32, 97, 224])
def test_equal_to_timm(size, resolution):
    ours = Preprocessing(MEAN, STD)(noise(size), resolution)
    assert ours.dtype == np.float32 and ours.shape == (1, 3, resolution, resolution)
    assert np.array_equal(ours[0], oracle(noise(size), resolution))


@pytest.mark.parametrize('crop_mode', CROP_MODES)
@pytest.mark.parametrize('crop_pct', [0.7, 0.875, 0.96, 1.0, 1.25])
def test_equal_to_timm_in_every_crop_mode(crop_mode, crop_pct):
    for size in SIZES[:4]:
        ours = Preprocessing(MEAN, STD, crop_pct, 'bicubic', crop_mode)(noise(size), 48)[0]
        assert np.array_equal(ours, oracle(noise(size), 48, crop_pct=crop_pct, interpolation='bicubic',
                                           crop_mode=crop_mode)), size


@pytest.mark.parametrize('interpolation', RESAMPLINGS)
def test_equal_to_timm_with_every_filter(interpolation):
    ours = Preprocessing(MEAN, STD, interpolation=interpolation)(noise((90, 70)), 40)[0]
    assert np.array_equal(ours, oracle(noise((90, 70)), 40, interpolation=interpolation))


def test_one_channel():
    ours = Preprocessing((0.5,), (0.25,))(noise((90, 70)), 40)
    assert ours.shape == (1, 1, 40, 40)
    assert np.array_equal(ours[0], oracle(noise((90, 70)), 40, channels=1, mean=(0.5,), std=(0.25,)))


def test_a_picture_of_the_target_size_is_not_resampled():
    pixels = np.asarray(noise((40, 40)))
    ours = Preprocessing((0., 0., 0.), (1., 1., 1.), crop_pct=1.)(pixels, 40)[0]
    assert np.array_equal(ours, pixels.transpose(2, 0, 1) / np.float32(255))


def test_every_kind_of_source_is_the_same_picture(tmp_path):
    image = noise((90, 70))
    path = tmp_path / 'a.png'
    image.save(path)
    pixels = np.asarray(image)
    sources = [str(path), path, path.read_bytes(), image, Image.open(path), pixels, pixels[:, ::-1][:, ::-1],
               np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]), io.BytesIO(path.read_bytes()),
               open(path, 'rb'), bytearray(path.read_bytes()), memoryview(path.read_bytes())]  # noqa: SIM115
    for threads in (1, 3):
        preprocessing = Preprocessing(MEAN, STD, threads=threads)
        batch = preprocessing(sources, 40)
        assert batch.shape == (12, 3, 40, 40) and batch.flags.c_contiguous
        assert all(np.array_equal(one, batch[0]) for one in batch)
        assert np.array_equal(preprocessing(np.stack([pixels, pixels]), 40), batch[:2])
        assert np.array_equal(preprocessing(iter(sources[:1]), 40), batch[:1])
        assert all(np.array_equal(preprocessing(source, 40), batch[:1]) for source in sources)


def test_gray_arrays():
    gray = np.asarray(noise((50, 40)).convert('L'))
    for array in (gray, gray[..., None], np.dstack([gray] * 3)):
        assert np.array_equal(Preprocessing(MEAN, STD)(array, 32), Preprocessing(MEAN, STD)(Image.fromarray(gray), 32))


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'CMYK', 'P', 'LA'])
def test_modes_are_those_of_open_image(tmp_path, mode):
    path = tmp_path / ('a.jpg' if mode == 'CMYK' else 'a.png')
    noise((90, 70)).convert(mode).save(path)
    expected = oracle(open_image(path), 40)
    for source in (path, Image.open(path)):
        assert np.array_equal(Preprocessing(MEAN, STD, draft=False)(source, 40)[0], expected)


# ---- the decoder's own scaling


def test_the_draft_is_never_smaller_than_what_it_is_resized_to():
    for size in SIZES + [(4032, 3024)]:
        data = jpeg(photo(size))
        for shorter in (1, 24, 25, 46, 47, 109, 256, 300, 2000):
            picture = open_picture(io.BytesIO(data), shorter)
            scale = next(s for s in (1, 2, 4, 8) if picture.image.size == tuple(-(-side // s) for side in size))
            assert picture.size == size
            assert min(picture.image.size) >= min(shorter, min(size))
            assert scale == 8 or min(size) // (2 * scale) < shorter, 'it could have been reduced further'


@pytest.mark.parametrize('size', [(512, 384), (500, 375), (1203, 1601), (2047, 1023)], ids=str)
@pytest.mark.parametrize('resolution', [32, 64, 96])
def test_what_the_draft_changes_is_small(size, resolution):
    """On average less than one of 255 levels."""
    data = jpeg(photo(size))
    plain, fast = (Preprocessing((0., 0., 0.), (1., 1., 1.), draft=draft)(data, resolution) for draft in (False, True))
    assert not np.array_equal(plain, fast)
    assert np.abs(plain - fast).mean() * 255 < 1.0
    assert np.abs(plain - fast).max() * 255 < 12


@pytest.mark.parametrize('orientation', range(1, 9))
def test_the_draft_and_the_exif_orientation(orientation):
    """203 x 151 is no multiple of 2 or 4, so that the decoder's last row and column are partly empty."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photo((203, 151)), exif=exif)
    plain, fast = (Preprocessing((0., 0., 0.), (1., 1., 1.), draft=draft)(data, 32) for draft in (False, True))
    assert np.abs(plain - fast).mean() * 255 < 1.0
    turned = Preprocessing((0., 0., 0.), (1., 1., 1.))(open_picture(io.BytesIO(data)).image, 32)
    assert np.array_equal(plain, turned)


def test_gray_and_cmyk_drafts():
    for mode in ('L', 'CMYK'):
        data = jpeg(photo((400, 300)).convert(mode))
        plain, fast = (Preprocessing(MEAN, STD, draft=draft)(data, 48) for draft in (False, True))
        assert not np.array_equal(plain, fast) and np.abs(plain - fast).mean() < 0.03


# ---- bad input


@pytest.mark.parametrize('threads', [1, 2])
def test_a_damaged_file_is_named(tmp_path, threads):
    good, bad = tmp_path / 'good.jpg', tmp_path / 'bad.jpg'
    good.write_bytes(jpeg(photo((300, 300))))
    bad.write_bytes(good.read_bytes()[:2000])
    preprocessing = Preprocessing(MEAN, STD, threads=threads)
    for source in (bad, Image.open(bad)):
        with pytest.raises(ImageError, match='bad.jpg: .*truncated'):
            preprocessing([good, source], 64)
    with pytest.raises(ImageError, match='picture 1: .*truncated'):
        preprocessing([good, bad.read_bytes()], 64)
    with pytest.raises(ImageError, match='absent.jpg: no such file'):
        preprocessing(tmp_path / 'absent.jpg', 64)


@pytest.mark.parametrize('images, message', [
    ([], 'the list is empty'),
    (3, 'a int is no picture'),
    (None, 'a NoneType is no picture'),
    (np.zeros((4, 4, 3)), r'picture 0 is a ndarray of float64 \[4, 4, 3\]: expected uint8'),
    (np.zeros((4, 4, 5), np.uint8), r'uint8 \[4, 4, 5\]'),
    (np.zeros((2, 3, 8, 8), np.uint8), r'uint8 \[3, 8, 8\]'),
    (np.zeros((0, 4, 3), np.uint8), 'no pixels'),
    ([np.zeros((4, 4, 3), np.uint8), b'x'], 'picture 1: not a picture'),
])
def test_what_is_no_picture(images, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(MEAN, STD)(images, 32)


@pytest.mark.parametrize('kwargs, message', [
    (dict(mean=(0.,) * 4, std=(1.,) * 4), '1 or 3 channels'),
    (dict(mean=(0.,) * 3, std=(1.,)), '1 or 3 channels'),
    (dict(interpolation='area'), 'interpolation .area. is not one of nearest, box'),
    (dict(crop_mode='centre'), 'crop_mode .centre. is not one of center, squash, border'),
])
def test_preprocessing_that_cannot_be(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**dict(dict(mean=MEAN, std=STD), **kwargs))


def test_what_is_ready():
    assert is_ready(np.zeros((1, 3, 8, 8), np.float32)) and is_ready(torch.zeros(1, 3, 8, 8))
    assert not is_ready(np.zeros((1, 8, 8, 3), np.uint8)) and not is_ready([np.zeros((3, 8, 8), np.float32)])
