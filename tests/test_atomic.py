"""A file or a folder is replaced as a whole or left as it was."""
import os
import stat

import pytest

from rs_timm import atomic
from rs_timm.atomic import recover_folder, replacing, replacing_folder, write_bytes


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    file = tmp_path / 'a.bin'
    for content in (b'old', b'new', b''):
        write_bytes(file, content)
        assert file.read_bytes() == content and os.listdir(tmp_path) == ['a.bin']


def test_an_error_leaves_the_old_file(tmp_path):
    file = tmp_path / 'a.bin'
    write_bytes(file, b'old')
    with pytest.raises(KeyboardInterrupt), replacing(file) as new:
        new.write_bytes(b'half')
        raise KeyboardInterrupt
    assert file.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.bin']


def test_what_was_not_written_is_an_error_and_the_old_file_stays(tmp_path):
    file = tmp_path / 'a.bin'
    write_bytes(file, b'old')
    with pytest.raises(FileNotFoundError), replacing(file):
        pass
    assert file.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.bin']


def test_two_writers_do_not_meet(tmp_path):
    file = tmp_path / 'a.bin'
    with replacing(file) as first, replacing(file) as second:
        assert first != second
        first.write_bytes(b'first')
        second.write_bytes(b'second')
    assert file.read_bytes() == b'first' and os.listdir(tmp_path) == ['a.bin']


def test_links_are_followed_and_access_rights_kept(tmp_path):
    file, link = tmp_path / 'a.bin', tmp_path / 'link'
    file.write_bytes(b'old')
    file.chmod(0o640)
    link.symlink_to(file)
    write_bytes(link, b'new')
    assert link.is_symlink() and file.read_bytes() == b'new' and stat.S_IMODE(file.stat().st_mode) == 0o640
    plain = tmp_path / 'plain'
    plain.write_bytes(b'')
    write_bytes(tmp_path / 'fresh', b'')
    assert (tmp_path / 'fresh').stat().st_mode == plain.stat().st_mode


def test_no_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        write_bytes(tmp_path / 'nowhere' / 'a.bin', b'')


# Folders

def save(folder, content):
    with replacing_folder(folder) as new:
        for name in 'ab':
            (new / name).write_text(content)


def contents(folder):
    return {name: (folder / name).read_text() for name in os.listdir(folder)}


@pytest.mark.parametrize('can_exchange', [True, False])
def test_a_folder_is_replaced_and_an_error_leaves_the_old_one(can_exchange, tmp_path, monkeypatch):
    if not can_exchange:
        monkeypatch.setattr(atomic, '_exchange', lambda *names: False)
    folder = tmp_path / 'f'
    for content in ('old', 'new'):
        save(folder, content)
        assert contents(folder) == dict(a=content, b=content) and os.listdir(tmp_path) == ['f']
    with pytest.raises(KeyboardInterrupt), replacing_folder(folder) as new:
        (new / 'a').write_text('half')
        raise KeyboardInterrupt
    (tmp_path / 'plain').mkdir()
    assert contents(folder)['a'] == 'new' and sorted(os.listdir(tmp_path)) == ['f', 'plain']
    assert folder.stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_a_name_that_cannot_be_given_leaves_the_old_folder(tmp_path, monkeypatch):
    folder, rename = tmp_path / 'f', os.rename
    save(folder, 'old')

    def fail_once(source, target):
        if target == folder and not source.name.startswith('.'):
            raise OSError('busy')
        rename(source, target)

    monkeypatch.setattr(atomic, '_exchange', lambda *names: False)
    monkeypatch.setattr(os, 'rename', fail_once)
    with pytest.raises(OSError, match='busy'):
        save(folder, 'new')
    assert contents(folder) == dict(a='old', b='old') and os.listdir(tmp_path) == ['f']


def save_and_be_killed(folder, calls, way):
    """In a child process that ends without a word at the call number `calls` -> its status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]

    def killing(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls -= 1
            return os._exit(9) if calls < 0 else function(*args, **kwargs)
        return call

    try:
        for name in ('mkdir', 'fsync', 'rename', 'unlink', 'rmdir'):
            setattr(os, name, killing(getattr(os, name)))
        atomic._exchange = killing(atomic._exchange if way == 'exchange' else lambda *names: False)
        save(folder, 'new')
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs a child to kill')
@pytest.mark.parametrize('way', ['exchange', 'two steps'])
def test_a_kill_at_any_point_leaves_the_old_folder_or_the_new_one(way, tmp_path):
    seen, status, calls = [], 9, 0
    while status:
        folder = tmp_path / f'{calls}' / 'f'
        folder.parent.mkdir()
        save(folder, 'old')
        status = save_and_be_killed(folder, calls, way)
        if way == 'two steps':
            recover_folder(folder)
        seen.append(contents(folder))
        save(folder, 'next')
        assert contents(folder) == dict(a='next', b='next')
        calls += 1
    old, new = (dict(a=content, b=content) for content in ('old', 'new'))
    change = seen.index(new)
    assert change > 5 and all(found == (old if i < change else new) for i, found in enumerate(seen)) and status == 0
