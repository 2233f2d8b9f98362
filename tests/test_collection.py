"""Pictures of files, folders and tar files: which there are, names, bytes; timm's readers are the oracle."""
import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from timm.data import create_reader

import rs_timm
from rs_timm.data import ReaderPictures
from rs_timm.pictures import ImageError
from rs_timm.predict.collection import holds_pictures, open_collection

ROOT = Path(rs_timm.__file__).parent.parent
FILES = ('b/10.jpg', 'b/9.JPEG', 'a/x2.png', 'a/x10.png', 'a/deep/er/x1.jpg', 'top.jpg')


def content(name):
    """Bytes by which a file is known; no picture, since nothing here decodes."""
    return f'content of {name}'.encode() * 40


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(name))
    return folder


def pack(path, members):
    """A tar file of name -> bytes, or (name, bytes) where a name comes twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def contents(pictures):
    return {name: pictures.read(position) for position, name in enumerate(pictures.names)}


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / 'pictures', *FILES, 'notes.txt', 'a/list.csv', 'b/._10.jpg', 'noending')


def test_a_folder_is_what_timms_reader_finds(folder):
    os.remove(folder / 'b/._10.jpg')  # what macOS lays beside its files is a picture for timm
    pictures, timms = open_collection([folder]), ReaderPictures(create_reader('', str(folder)))
    names = ['a/deep/er/x1.jpg', 'a/x2.png', 'a/x10.png', 'b/9.JPEG', 'b/10.jpg', 'top.jpg']
    assert pictures.names == timms.names == names
    assert contents(pictures) == contents(timms) == {name: content(name) for name in FILES}


def test_a_tar_file_is_what_timms_reader_finds(tmp_path):
    inner = pack(tmp_path / 'inner.tar', {'i/3.jpg': content('i/3.jpg')})
    file = pack(tmp_path / 'all.tar', {**{name: content(name) for name in (*FILES, 'notes.txt')},
                                       'class.tar': inner.read_bytes(), 'z/last.png': content('z/last.png')})
    pictures, timms = open_collection([file]), ReaderPictures(create_reader('', str(file)))
    found = contents(pictures)
    found = {name.removeprefix('all.tar/').removeprefix('class.tar/'): data for name, data in found.items()}
    assert found == contents(timms) and len(found) == len(pictures.names) == len(FILES) + 2
    assert 'all.tar/class.tar/i/3.jpg' in pictures.names


def test_shards_of_webdataset(tmp_path):
    """Labels and texts lie beside the pictures; a folder of shards has index files, too."""
    for shard in range(2):
        members = {f'{shard}{k:03d}.{kind}': content(f'{shard}{k:03d}.{kind}')
                   for k in range(12) for kind in ('webp', 'cls', 'json', 'txt')}
        pack(tmp_path / 'shards' / f'train-{shard:06d}.tar', members)
    write(tmp_path / 'shards', '_info.json')
    names = [f'train-{shard:06d}.tar/{shard}{k:03d}.webp' for shard in range(2) for k in range(12)]
    whole = open_collection([tmp_path / 'shards'])
    assert whole.names == names and contents(whole) == {name: content(name.split('/')[1]) for name in names}
    shards = open_collection(sorted((tmp_path / 'shards').glob('*.tar')))
    assert (shards.names, shards.folders) == (whole.names, whole.folders)


def test_names_do_not_depend_on_where_the_folder_is_named_from(folder, monkeypatch):
    expected = open_collection([folder])
    monkeypatch.chdir(folder.parent)
    for given in ('pictures', './pictures/', folder.parent / 'pictures' / '..' / 'pictures'):
        collection = open_collection([given])
        assert (collection.names, collection.folders) == (expected.names, expected.folders)
    assert open_collection(['pictures/top.jpg']).names == ['pictures/top.jpg']
    assert open_collection(['pictures/top.jpg']).folders == (str(folder.parent),)


def test_members_are_called_as_they_are_unpacked(tmp_path):
    file = pack(tmp_path / 'odd.tar', [('./a.jpg', b'old'), ('/b.jpg', b'b'), ('a.jpg', b'new'), ('x/../c.jpg', b'c')])
    assert contents(open_collection([file])) == {'odd.tar/a.jpg': b'new', 'odd.tar/b.jpg': b'b', 'odd.tar/c.jpg': b'c'}


def test_links_and_members_that_are_no_files(tmp_path):
    folder = write(tmp_path / 'f', 'a/1.jpg')
    (folder / 'a' / 'up').symlink_to(folder)
    (folder / 'a' / 'self').symlink_to(folder / 'a')
    (folder / 'linked').symlink_to(write(tmp_path / 'elsewhere', '2.jpg'))
    assert open_collection([folder]).names == ['a/1.jpg', 'linked/2.jpg']
    with tarfile.open(tmp_path / 'f.tar', 'w') as tar:
        tar.add(folder, 'f')
        link = tarfile.TarInfo('link.jpg')
        link.type, link.linkname = tarfile.SYMTYPE, 'f/a/1.jpg'
        tar.addfile(link)
    assert open_collection([tmp_path / 'f.tar']).names == ['f.tar/f/a/1.jpg']


def test_links_that_lead_to_each_other(tmp_path):
    write(tmp_path, 'a/1.jpg', 'b/2.jpg')
    (tmp_path / 'a' / 'l').symlink_to(tmp_path / 'b')
    (tmp_path / 'b' / 'l').symlink_to(tmp_path / 'a')
    assert open_collection([tmp_path]).names == ['a/1.jpg', 'a/l/2.jpg', 'b/2.jpg', 'b/l/1.jpg']
    assert open_collection([tmp_path / 'a']).names == ['1.jpg', 'l/2.jpg']


@pytest.mark.parametrize('reverse', [False, True])
def test_the_order_is_fixed_where_numbers_tie(tmp_path, reverse):
    names = ['x/IMG.jpg', 'x/a001.jpg', 'x/a01.jpg', 'x/a1.jpg', 'x/img.jpg']
    file = pack(tmp_path / 'x.tar', dict.fromkeys(sorted(names, reverse=reverse), b''))
    assert open_collection([file]).names == [f'x.tar/x/{k}.jpg' for k in ('a001', 'a01', 'a1', 'IMG', 'img')]


def test_packed_archives_in_a_folder_are_named(folder):
    compressed(folder / 'b' / 'more.tar.gz')
    (folder / 'a.zip').touch()
    with pytest.warns(UserWarning, match=r'pictures: packed archives .*\(a.zip and 1 more\).*unpack them') as warned:
        assert len(open_collection([folder]).names) == len(FILES)
    assert len(warned) == 1


def test_a_picture_that_is_shown_twice(folder):
    file = folder / 'top.jpg'
    assert open_collection([file, file], absent=True).names == [str(file)]
    with pytest.raises(ValueError, match='two pictures are called'):
        open_collection([file, file])


def test_sparse_members_are_refused(tmp_path):
    sparse = tarfile.TarInfo('holes.jpg')
    sparse.pax_headers = {'GNU.sparse.map': '0,512', 'GNU.sparse.size': '4096'}  # format 0.1, as of tar --sparse
    sparse.size = 512
    with tarfile.open(tmp_path / 's.tar', 'w', format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(sparse, io.BytesIO(b'x' * 512))
    with pytest.raises(ValueError, match='s.tar: holes.jpg in it is stored as a sparse file.*without tar --sparse'):
        open_collection([tmp_path / 's.tar'])


@pytest.mark.parametrize('damage', [
    lambda data: data[:1024] + b'x' + data[1025:],  # the second header
    lambda data: data[:2048],  # cut between two members
    lambda data: data[:3000],  # within the data of the second
    lambda data: data + data,  # one behind the other
    lambda data: data[:3072] + b'stray',
    lambda data: data[:1148] + b'-0000000777' + data[1159:],
])
def test_a_tar_file_is_read_to_its_end_or_not_at_all(tmp_path, damage):
    file = pack(tmp_path / 'a.tar', {f'{k}.jpg': b'x' * 100 for k in range(3)})
    data = file.read_bytes()
    assert len(open_collection([file]).names) == 3
    for padding in (512, 1024, 1 << 20):
        file.write_bytes(data[:3072] + bytes(padding))
        assert len(open_collection([file]).names) == 3
    outer = pack(tmp_path / 'outer.tar', {'a.tar': damage(data), 'b.jpg': b''})
    file.write_bytes(damage(data))
    for path in (file, outer, tmp_path):
        with pytest.raises(ValueError, match='a.tar: not a readable tar file'):
            open_collection([path])


def test_headers_that_ask_for_what_is_not_there(tmp_path):
    """Sizes below zero lead back to where one was: no end; pax and GNU headers of gigabytes are not read."""
    for kind, size in ((tarfile.REGTYPE, -1024), (b'V', -1024), (tarfile.XHDTYPE, 1 << 33), (tarfile.XHDTYPE, -512),
                       (tarfile.GNUTYPE_LONGNAME, 1 << 33), (tarfile.REGTYPE, 1 << 40)):
        member = tarfile.TarInfo('b.jpg')
        member.type, member.size = kind, size
        block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        file = pack(tmp_path / 'a.tar', {'a.jpg': b''})
        file.write_bytes(file.read_bytes()[:512] + bytes(block) + bytes(1024))
        with pytest.raises(ValueError, match='a.tar: not a readable tar file'):
            open_collection([file])


def test_what_is_passed_over_is_counted(tmp_path, folder):
    assert open_collection([folder]).passed_over == {'.txt': 1, '.csv': 1, '._...': 1, 'without an ending': 1}
    link = tarfile.TarInfo('link.jpg')
    link.type = tarfile.SYMTYPE
    with tarfile.open(tmp_path / 'more.tar', 'w') as tar:
        tar.add(folder, 'f')
        tar.addfile(link)
    both = open_collection([folder, tmp_path / 'more.tar'])
    assert both.passed_over == {'.txt': 2, '.csv': 2, '._...': 2, 'without an ending': 2, 'links and devices': 1}
    assert open_collection([folder / 'top.jpg']).passed_over == {}
    with pytest.raises(ValueError, match='no pictures in it .*, but 1 other file'):
        open_collection([write(tmp_path / 'texts', 'a.txt')])


def test_bounds_are_of_one_picture(tmp_path):
    folder = write(tmp_path / 'f', 'small.jpg', 'x/other.jpg')
    (folder / 'large.jpg').write_bytes(bytes(5001))
    with open(folder / 'sparse.png', 'wb') as stream:
        stream.truncate(20 << 30)
    os.mkfifo(folder / 'pipe.jpg')
    pack(folder / 't.tar', {'large.jpg': bytes(5001), 'small.jpg': b'x'})
    pictures = open_collection([folder], max_bytes=5000)
    errors = {}
    for position, name in enumerate(pictures.names):
        try:
            pictures.read(position)
        except ImageError as error:
            errors[name] = str(error).partition(': ')[2]
    assert errors == {
        'large.jpg': 'refused, 5001 bytes are more than the bound of 5000',
        'pipe.jpg': 'not a regular file, but a pipe, device or socket',
        'sparse.png': 'refused, 21474836480 bytes are more than the bound of 5000',
        't.tar/large.jpg': 'refused, 5001 bytes are more than the bound of 5000'}
    with pytest.raises(ImageError, match='pipe.jpg: not a regular file'):
        timms = ReaderPictures(create_reader('', str(folder)))
        timms.read(timms.names.index('pipe.jpg'))
    part = pictures.part([6, 2])
    assert part.names == ['x/other.jpg', 'small.jpg'] and part.read(0) == content('x/other.jpg')
    assert part.max_bytes == 5000
    (folder / 'b.tar').symlink_to(folder / 'pipe.jpg')
    with pytest.raises(ValueError, match='b.tar: not a readable tar file .not a regular file'):
        open_collection([folder])


def test_a_tar_file_in_another_one_is_named_with_its_error(tmp_path):
    file = pack(tmp_path / 'outer.tar', {'a.jpg': b'a', 'shards/in.tar': b'no tar file' * 99})
    with pytest.raises(ValueError, match='outer.tar/shards/in.tar: not a readable tar file'):
        open_collection([file])


def test_many_threads_read_one_tar_file(tmp_path):
    members = {f'{k}.jpg': os.urandom(5000 + k) for k in range(50)}
    pictures = open_collection([pack(tmp_path / 'many.tar', members)])
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(pictures.read, list(range(50)) * 4))
    assert read == [members[name.split('/')[1]] for name in pictures.names] * 4


def test_names_that_are_no_text(tmp_path):
    odd = os.path.join(os.fsencode(tmp_path), b'caf\xe9.jpg')
    Path(os.fsdecode(odd)).write_bytes(b'x')
    pictures = open_collection([tmp_path])
    assert contents(pictures) == {'caf\\udce9.jpg': b'x'} and pictures.names[0].encode('utf-8')


def test_what_goes_while_the_run_lasts(folder):
    pictures = open_collection([folder])
    os.remove(folder / 'top.jpg')
    with pytest.raises(ImageError, match='^top.jpg: no such file$'):
        pictures.read(pictures.names.index('top.jpg'))


def test_paths_that_are_not_there(tmp_path):
    assert open_collection([tmp_path / 'absent.tar'], absent=True).names == [str(tmp_path / 'absent.tar')]
    for name in ('absent', 'absent.jpg', 'absent.tar'):
        with pytest.raises(FileNotFoundError, match=f'{name}: no such file or folder'):
            open_collection([tmp_path / name])
    assert not holds_pictures(tmp_path / 'absent.tar') and holds_pictures(tmp_path)


def truncated(path):
    pack(path, {'a.jpg': b'x' * 5000, 'b.jpg': b'x' * 5000})
    path.write_bytes(path.read_bytes()[:3000])


def compressed(path):
    with tarfile.open(path, 'w:gz') as tar:
        tar.addfile(tarfile.TarInfo('a.jpg'))


@pytest.mark.parametrize('name, make, message', [
    ('empty', Path.mkdir, r'empty: no pictures in it \(.jpg, '),
    ('texts', lambda path: write(path, 'a.txt', 'b/c.csv'), 'texts: no pictures in it'),
    ('texts.tar', lambda path: pack(path, {'a.txt': b''}), 'texts.tar: no pictures in it'),
    ('cut.tar', truncated, 'cut.tar: not a readable tar file'),
    ('zero.tar', Path.touch, 'zero.tar: not a readable tar file'),
    ('packed.tar', compressed, 'packed.tar: not a readable tar file .*compressed'),
    ('packed.tar.gz', compressed, r'packed.tar.gz: .*plain .tar files alone .*unpack it'),
    ('packed.zip', Path.touch, 'plain .tar files alone'),
])
def test_inputs_without_pictures(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        open_collection([tmp_path / name])


def test_two_pictures_of_one_name(tmp_path):
    one, two = write(tmp_path / 'one', 'x.jpg'), write(tmp_path / 'two', 'x.jpg')
    with pytest.raises(ValueError, match="called 'x.jpg', .*one/x.jpg and .*two/x.jpg: give the folder above both"):
        open_collection([one, two])
    assert open_collection([tmp_path]).names == ['one/x.jpg', 'two/x.jpg']


def test_readers_that_cannot_be_indexed():
    class Stream:
        def __iter__(self):
            yield

    with pytest.raises(ValueError, match='Stream: .* one after the other, .*give the .tar files'):
        ReaderPictures(Stream())


def test_names_of_readers_that_have_none():
    class Nameless:
        def __getitem__(self, position):
            return io.BytesIO(b'abc'), 0

        def filenames(self):
            return [None, 'b.jpg']

    assert contents(ReaderPictures(Nameless())) == {'0': b'abc', 'b.jpg': b'abc'}


@pytest.mark.parametrize('error', [KeyError('image'), RuntimeError('no such row'), SyntaxError('broken PNG')])
def test_one_bad_row_of_a_reader_is_one_bad_picture(error):
    class Odd:
        def __getitem__(self, position):
            if position == 0:
                raise error
            return io.BytesIO(b'abc'), 0

        def filenames(self):
            return ['caf\udce9.jpg', 'b.jpg']

    pictures = ReaderPictures(Odd())
    assert pictures.names == ['caf\\udce9.jpg', 'b.jpg'] and pictures.read(1) == b'abc'
    with pytest.raises(ImageError, match='^caf'):
        pictures.read(0)
