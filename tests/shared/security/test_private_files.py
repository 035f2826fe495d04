import os
import stat

import pytest

from layermesh.shared.errors import AuthenticationError, ResourceError
from layermesh.shared.security.private_files import read_private, write_private


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_are_the_users_alone_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_private(tmp_path / "keys" / "key", b"secret")
    finally:
        os.umask(before)
    assert (mode(tmp_path / "keys"), mode(tmp_path / "keys" / "key")) == (0o700, 0o600)
    assert read_private(tmp_path / "keys" / "key", 100) == b"secret"


def test_what_is_not_there_is_none(tmp_path):
    assert read_private(tmp_path / "key", 100) is None


@pytest.mark.parametrize("others", [0o040, 0o004, 0o020, 0o001])
def test_a_file_that_others_can_get_at_is_refused(tmp_path, others):
    path = tmp_path / "keys" / "key"
    write_private(path, b"secret")
    path.chmod(0o600 | others)
    with pytest.raises(AuthenticationError, match=rf"chmod 600 {path}") as refused:
        read_private(path, 100)
    assert refused.value.exit_code == 5


def test_a_folder_that_others_can_get_into_is_refused(tmp_path):
    (tmp_path / "keys").mkdir(mode=0o755)
    with pytest.raises(AuthenticationError, match="chmod 700"):
        write_private(tmp_path / "keys" / "key", b"secret")
    assert list((tmp_path / "keys").iterdir()) == []


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "else").write_bytes(b"x")
    (tmp_path / "key").symlink_to(tmp_path / "else")
    with pytest.raises(AuthenticationError, match="cannot be read"):
        read_private(tmp_path / "key", 100)


def test_what_is_larger_than_it_may_be_is_refused(tmp_path):
    write_private(tmp_path / "keys" / "key", b"x" * 101)
    with pytest.raises(AuthenticationError, match="larger"):
        read_private(tmp_path / "keys" / "key", 100)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "keys" / "key"
    write_private(path, b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError):
        write_private(path, b"new")
    assert read_private(path, 100) == b"old"
    assert [each.name for each in path.parent.iterdir()] == ["key"]
