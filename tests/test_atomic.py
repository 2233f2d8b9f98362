"""A file is replaced as a whole or left as it was."""
import os
import stat

import pytest

from rs_timm.atomic import replacing, write_bytes


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
