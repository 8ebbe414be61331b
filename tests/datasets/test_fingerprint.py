"""The hash of a file: another content, another hash; computed once, kept beside the file where that can be written."""

import os
from pathlib import Path

import pytest

from pixio_robot.datasets import fingerprint as hashing
from pixio_robot.datasets.fingerprint import fingerprint_of
from pixio_robot.files import sha256_of


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to the end."""
    found: list[Path] = []

    def counting(path: Path) -> str:
        found.append(path)
        return sha256_of(path)

    monkeypatch.setattr(hashing, "sha256_of", counting)
    return found


def test_a_file_that_did_not_change_is_hashed_once(tmp_path: Path, hashed: list[Path]) -> None:
    file = tmp_path / "demos.hdf5"
    file.write_bytes(b"one")
    assert fingerprint_of(file) == fingerprint_of(file) == sha256_of(file)
    assert hashed == [file] and (tmp_path / ".demos.hdf5.sha256").is_file()


def test_changed_content_changes_it_even_at_the_same_size(tmp_path: Path, hashed: list[Path]) -> None:
    file = tmp_path / "demos.hdf5"
    file.write_bytes(b"one")
    first = fingerprint_of(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(1, file.stat().st_mtime_ns + 10))
    assert fingerprint_of(file) == sha256_of(file) != first and len(hashed) == 2


def test_a_copy_has_the_same_hash(tmp_path: Path) -> None:
    for name in ("a.hdf5", "b.hdf5"):
        (tmp_path / name).write_bytes(b"content")
    assert fingerprint_of(tmp_path / "a.hdf5") == fingerprint_of(tmp_path / "b.hdf5")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"stat": [3, 4]}', '{"sha256": 5, "stat": []}'])
def test_a_damaged_side_file_is_ignored(text: str, tmp_path: Path) -> None:
    file = tmp_path / "demos.hdf5"
    file.write_bytes(b"one")
    (tmp_path / ".demos.hdf5.sha256").write_text(text)
    assert fingerprint_of(file) == sha256_of(file)


def test_a_folder_that_cannot_be_written_costs_time_and_nothing_else(
    tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "demos.hdf5"
    file.write_bytes(b"one")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(hashing, "replacing", refuse)  # root may write anywhere, so a real folder would not do
    assert fingerprint_of(file) == fingerprint_of(file) == sha256_of(file)
    assert len(hashed) == 2 and list(tmp_path.iterdir()) == [file]
