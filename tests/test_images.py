"""Every kind of picture is read rightly, or refused in one line that names the file."""
import io
import os
import struct
import zlib

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from rs_timm.data import ImageError, image_transform, open_image
from rs_timm.pictures import ENDINGS, FORMATS, open_picture, read_file, upright

LEFT_RED = np.zeros((6, 8, 3), np.uint8)
LEFT_RED[:, :4] = (255, 0, 0)
LEFT_RED[:, 4:] = (0, 0, 255)


def _save(tmp_path, image, name, **kwargs):
    file = tmp_path / name
    image.save(file, **kwargs)
    return file


def _pixel(file, x=0, y=0, **kwargs):
    image = open_image(file, **kwargs)
    assert image.mode == 'RGB'
    return image.getpixel((x, y))


@pytest.mark.parametrize('mode, value, expected', [
    ('1', 1, (255, 255, 255)),
    ('L', 77, (77, 77, 77)),
    ('RGB', (1, 2, 3), (1, 2, 3)),
    ('RGBA', (1, 2, 3, 255), (1, 2, 3)),
    ('RGBA', (255, 0, 0, 0), (255, 255, 255)),
    ('LA', (100, 0), (255, 255, 255)),
    ('LA', (100, 255), (100, 100, 100)),
    ('I;16', 65535, (255, 255, 255)),
    ('I;16', 0, (0, 0, 0)),
    ('I;16', 257 * 100, (100, 100, 100)),
    ('I;16', 257 * 100 + 128, (100, 100, 100)),
    ('I;16', 257 * 100 + 129, (101, 101, 101)),
])
def test_modes_of_png(tmp_path, mode, value, expected):
    assert _pixel(_save(tmp_path, Image.new(mode, (5, 4), value), 'a.png')) == expected


def test_every_ending_is_of_a_format_that_is_read():
    extensions = dict(Image.registered_extensions(), **{'.mpo': 'JPEG'})  # opened as JPEG, which it begins as
    formats = {extensions[ending] for ending in ENDINGS}
    assert formats == set(FORMATS) <= set(Image.OPEN)


@pytest.mark.parametrize('suffix', ['png', 'tif', 'pgm'])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    read = np.asarray(open_image(_save(tmp_path, Image.fromarray(ramp), f'a.{suffix}')))
    assert np.array_equal(read, np.round(ramp / 257).astype(np.uint8)[..., None].repeat(3, -1))


def test_sixteen_bit_rgb(tmp_path):
    def chunk(kind, body):
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

    row = b'\0' + struct.pack('>3H', 65535, 257 * 40, 0)
    file = tmp_path / 'a.png'
    file.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, 16, 2, 0, 0, 0))
                     + chunk(b'IDAT', zlib.compress(row)) + chunk(b'IEND', b''))
    assert _pixel(file) == (255, 40, 0)


def test_half_transparent_over_the_background(tmp_path):
    file = _save(tmp_path, Image.new('RGBA', (2, 2), (0, 0, 0, 51)), 'a.png')
    assert _pixel(file) == (204, 204, 204)
    assert _pixel(file, background=(0, 100, 0)) == (0, 80, 0)


def test_palette_with_transparency(tmp_path):
    image = Image.new('P', (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    for name in ('a.png', 'a.gif'):
        file = _save(tmp_path, image, name, transparency=1)
        assert _pixel(file, 0) == (10, 20, 30) and _pixel(file, 1) == (255, 255, 255)
    assert _pixel(_save(tmp_path, image, 'opaque.png'), 1) == (40, 50, 60)


def test_cmyk_and_gray_jpeg(tmp_path):
    cmyk = _save(tmp_path, Image.fromarray(LEFT_RED).resize((64, 48)).convert('CMYK'), 'c.jpg', quality=95)
    assert Image.open(cmyk).mode == 'CMYK'
    assert np.allclose(_pixel(cmyk, 5, 5), (255, 0, 0), atol=12)
    assert np.allclose(_pixel(cmyk, 60, 5), (0, 0, 255), atol=12)
    assert _pixel(_save(tmp_path, Image.new('L', (16, 16), 90), 'l.jpg', quality=95)) == (90, 90, 90)


# Where the camera's picture must be turned to for each value of the EXIF tag 0x0112 (TIFF 6.0, page 36).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize('orientation', STORED)
def test_exif_orientation(tmp_path, orientation):
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels)))
    for name in ('a.png', 'a.tif', 'a.webp'):
        file = _save(tmp_path, stored, name, exif=exif, lossless=True)
        read = open_picture(file)
        assert np.array_equal(read.image, pixels) and read.size == read.image.size == (8, 6)
        assert np.array_equal(upright(Image.open(file)), pixels)


MALFORMED = tuple(  # orientation 6, then a tag whose value lies outside, or is text where a number belongs
    b'II*\0\x08\0\0\0\2\0' + struct.pack('<HHIHH', 0x0112, 3, 1, 6, 0) + tag + bytes(4)
    for tag in (struct.pack('<HHII', 0x829a, 5, 1, 0xfffff), struct.pack('<HHIHH', 0x011a, 2, 3, 0xffff, 0x41)))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('exif', MALFORMED)
@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.webp'])
def test_a_malformed_tag_does_not_keep_a_picture_from_being_turned(tmp_path, exif, name):
    file = _save(tmp_path, Image.fromarray(LEFT_RED).resize((64, 48)), name, exif=b'Exif\0\0' + exif, quality=95)
    image = open_image(file)
    assert image.size == (48, 64) and np.allclose(image.getpixel((5, 5)), (255, 0, 0), atol=12)
    assert np.array_equal(upright(Image.open(file)).convert('RGB'), image)


def _tiff(values, bits, photometric):
    """A TIFF file of one row of gray, of as many bits a pixel."""
    packed = int(''.join(f'{value:0{bits}b}' for value in values), 2).to_bytes(len(values) * bits // 8, 'big')
    data = packed if bits < 16 else np.array(values, '<u2').tobytes()
    tags = ((256, len(values)), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1),
            (279, len(data)))
    data += bytes(-len(data) % 2)
    entries = b''.join(struct.pack('<HHII', tag, 4 if tag == 273 else 3, 1, value) for tag, value in tags)
    return b'II*\0' + struct.pack('<I', 8 + len(data)) + data + struct.pack('<H', len(tags)) + entries + bytes(4)


@pytest.mark.parametrize('photometric', [0, 1])
@pytest.mark.parametrize('bits', [8, 12, 16])
def test_gray_tiff_of_any_depth_and_either_sense(tmp_path, bits, photometric):
    white = 2 ** bits - 1
    (tmp_path / 'a.tif').write_bytes(_tiff([0, white, white // 2, white // 5], bits, photometric))
    try:
        gray = np.asarray(open_image(tmp_path / 'a.tif'))[0, :, 0].astype(int)
    except ImageError as error:
        assert (bits, photometric) == (12, 0) and 'not a picture' in str(error)  # Pillow knows no such files
        return
    expected = np.array([0, 255, 127, 51])
    assert np.abs(gray - (expected if photometric else 255 - expected)).max() <= 1


def test_an_upright_jpeg_is_left_to_its_decoder(tmp_path):
    file = _save(tmp_path, Image.new('RGB', (64, 48)), 'a.jpg')
    with Image.open(file) as image:
        assert upright(image) is image and image.draft('RGB', (32, 24)) is not None and image.size == (32, 24)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_damaged_exif_is_no_reason_to_refuse(tmp_path):
    exif = b'Exif\0\0II*\0\xff\xff\xff\x7fjunk'
    file = _save(tmp_path, Image.new('RGB', (8, 8), (255, 255, 255)), 'a.jpg', exif=exif)
    assert _pixel(file) == (255, 255, 255)


def _truncated(suffix):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(stream, suffix)
    return stream.getvalue()[:len(stream.getvalue()) // 2]


@pytest.mark.parametrize('content, message', [
    (b'', 'not a picture'),
    (b'hello, I am no picture', 'not a picture'),
    (b'\xff\xd8\xff\xe0', 'not a picture'),
    (_truncated('JPEG'), 'truncated'),
    (_truncated('PNG'), 'truncated'),
    (_truncated('WEBP'), 'not a'),
], ids=['empty', 'text', 'jpeg header', 'jpeg', 'png', 'webp'])
def test_damaged_files(tmp_path, content, message):
    file = tmp_path / 'broken.jpg'
    file.write_bytes(content)
    with pytest.raises(ImageError, match=message) as info:
        open_image(file)
    assert str(info.value).startswith(str(file)) and '\n' not in str(info.value)


def test_no_such_file_directory_and_strange_names(tmp_path):
    with pytest.raises(ImageError, match='absent.png: no such file'):
        open_image(str(tmp_path / 'absent.png'))
    with pytest.raises(ImageError, match='a directory'):
        open_image(tmp_path)
    with pytest.raises(ImageError, match=r'^a\\nb\\udcff: no such file$'):
        open_image('a\nb\udcff')


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='has no named pipes')
def test_nothing_is_read_that_may_have_no_end(tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'zero.jpg').symlink_to('/dev/zero')
    (tmp_path / 'kernel.jpg').symlink_to('/proc/kmsg')
    with open(tmp_path / 'sparse.jpg', 'wb') as stream:
        stream.truncate(20 << 30)
    for name, words in (('pipe', 'a pipe, device or socket'), ('zero', 'a pipe, device or socket'),
                        ('kernel', 'kernel.jpg: '), ('sparse', '21474836480 bytes are more than the bound of')):
        for read in (open_image, read_file):
            if (read, name) != (read_file, 'kernel'):
                with pytest.raises(ImageError, match=words):
                    read(tmp_path / f'{name}.jpg')


def test_pieces_of_files(tmp_path):
    (tmp_path / 'a').write_bytes(b'0123456789')
    assert read_file(tmp_path / 'a') == b'0123456789' and read_file(tmp_path / 'a', offset=8) == b'89'
    assert read_file(tmp_path / 'a', 4, offset=3, size=4) == b'3456'
    for arguments, words in (((9,), '10 bytes are more than the bound of 9'), ((4, 0, 5), '5 bytes are more'),
                             ((99, 8, 5), 'ends after 2 of 5 bytes')):
        with pytest.raises(ImageError, match=words):
            read_file(tmp_path / 'a', *arguments)


def test_streams(tmp_path):
    data = _save(tmp_path, Image.new('RGB', (5, 4), (1, 2, 3)), 'a.png').read_bytes()
    pipe = io.BytesIO(data)
    pipe.seekable = lambda: False
    with open(tmp_path / 'a.png', 'rb') as stream:
        for source in (stream, io.BytesIO(data), pipe):
            assert open_picture(source).image.getpixel((0, 0)) == (1, 2, 3) and not source.closed


def test_formats_that_are_not_read_are_not_even_opened(tmp_path, monkeypatch):
    """Pillow would start Ghostscript to load the first, whatever its name."""
    Image.init()
    opened = []
    monkeypatch.setitem(Image.OPEN, 'EPS', (lambda *args: opened.append(args), Image.OPEN['EPS'][1]))
    (tmp_path / 'a.jpg').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')
    _save(tmp_path, Image.new('RGB', (9, 9)), 'b.tga').rename(tmp_path / 'b.png')
    for name in ('a.jpg', 'b.png'):
        with pytest.raises(ImageError, match=r'not a picture in a format that is read \(JPEG, PNG'):
            open_image(tmp_path / name)
    assert not opened


def test_more_pixels_than_a_camera_has(tmp_path):
    file = _save(tmp_path, Image.new('1', (20_000, 10_001)), 'large.png')
    with pytest.raises(ImageError, match='20000 x 10001 pixels are more than the bound of|decompression bomb'):
        open_image(file)
    small = _save(tmp_path, Image.new('1', (20, 10)), 'small.png')
    assert open_picture(small, max_pixels=200).size == (20, 10)
    with pytest.raises(ImageError, match='20 x 10 pixels are more than the bound of 199'):
        open_picture(small, max_pixels=199)


def test_decompression_bomb(tmp_path, monkeypatch):
    file = _save(tmp_path, Image.new('L', (100, 100)), 'bomb.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(ImageError, match='decompression bomb'):
        open_image(file)


@pytest.mark.parametrize('mode, value', [('F', 0.5), ('I', 70000), ('I', -1)])
def test_pixels_without_a_defined_white(tmp_path, mode, value):
    with pytest.raises(ImageError, match='save it with 8 or 16 bits'):
        open_image(_save(tmp_path, Image.new(mode, (2, 2), value), 'a.tif'))


def test_transform_is_resize_crop_and_normalise():
    config = timm.data.resolve_model_data_config(timm.create_model('rs_resnet18'))
    config.update(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.), crop_pct=0.8, interpolation='bilinear')
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 500, 3), np.uint8))
    small = image.resize((200, 120), Image.Resampling.BILINEAR)  # floor(96 / 0.8) = 120
    crop = np.asarray(small)[12:108, 52:148].transpose(2, 0, 1) / 255.
    expected = (crop - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array([0.5, 0.25, 1.])[:, None, None]
    assert np.allclose(image_transform(config, 96)(image), expected, atol=1e-5)


def test_transform_for_one_channel_and_for_no_size():
    config = timm.data.resolve_model_data_config(timm.create_model('rs_resnet18'))
    gray = dict(config, input_size=(1, 224, 224), mean=(0.,), std=(1.,))
    x = image_transform(gray, 32)(Image.new('RGB', (50, 40), (255, 255, 255)))
    assert torch.allclose(x, torch.ones(1, 32, 32))
    with pytest.raises(ValueError, match='resolution 0'):
        image_transform(config, 0)


@pytest.mark.parametrize('size', [(2, 400_000), (400_000, 2)])
def test_strips_are_cut_before_they_are_enlarged(size):
    config = timm.data.resolve_model_data_config(timm.create_model('rs_resnet18'))
    image = Image.new('L', size, 0)
    image.paste(255, tuple(max(0, side // 2 - 10) for side in size) + tuple(side // 2 + 10 for side in size))
    config.update(mean=(0., 0., 0.), std=(1., 1., 1.))
    assert torch.allclose(image_transform(config, 224)(image.convert('RGB')), torch.ones(3, 224, 224), atol=1e-2)
