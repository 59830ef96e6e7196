"""Files appear whole or not at all, with the permissions of any other file."""

from __future__ import annotations

import os

import pytest

from dhpe_fast.atomic_write import whole_file, write_whole


def test_the_file_appears_at_the_end_and_replaces_the_old_one(tmp_path):
    file = tmp_path / "a.bin"
    write_whole(file, b"old")
    with whole_file(file) as stream:
        stream.write(b"new")
        stream.flush()
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.bin"
    write_whole(file, b"old")

    def fail() -> None:
        with whole_file(file) as stream:
            stream.write(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a.bin", b"")
        (tmp_path / "b.bin").write_bytes(b"")
        assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "b.bin").stat().st_mode
        assert os.umask(mask) == mask, "the caller's mask is as it was"
    finally:
        os.umask(before)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        write_whole(tmp_path / "nowhere" / "a.bin", b"")
