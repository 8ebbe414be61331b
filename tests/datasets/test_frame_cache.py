"""Frame caches: resumed where they stopped, shared by processes, checked, and small to send to another process."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pixio_robot.datasets import frame_cache as caching
from pixio_robot.datasets.frame_cache import ArraySpec, FrameCache, frame_cache, open_cache
from pixio_robot.errors import DataError
from pixio_robot.files import sha256_of

FRAMES = np.arange(200 * 6, dtype=np.float32).reshape(200, 6)
IDENTITY = {"data": "abc", "size": [2, 3]}
SPECS = {"double": ArraySpec((6,), "float32"), "sum": ArraySpec((), "float64")}


class Filler:
    """Fills a cache of 200 frames in batches of two, and counts what it computes.

    Args:
        root: of the caches.
        stop: rows after which it is interrupted; None is never.
    """

    def __init__(self, root: Path, stop: int | None = None) -> None:
        self.root, self.stop, self.rows = root, stop, 0

    def frames(self, first: int) -> Iterator[np.ndarray]:
        for row in range(first, 200, 2):
            yield FRAMES[row : row + 2]

    def compute(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        if self.stop is not None and self.rows >= self.stop:
            raise KeyboardInterrupt
        self.rows += len(batch)
        return {"double": 2 * batch, "sum": batch.sum(1)}

    def __call__(self, identity: dict[str, object] = IDENTITY) -> FrameCache:
        return frame_cache(self.root, identity, SPECS, self.frames, self.compute, 200)


def _check(cache: FrameCache) -> None:
    assert np.array_equal(cache.arrays["double"], 2 * FRAMES) and np.allclose(cache.arrays["sum"], FRAMES.sum(1))


def test_an_interrupted_fill_resumes(tmp_path: Path) -> None:
    """Progress is saved every 32 batches; what was saved is not computed again."""
    with pytest.raises(KeyboardInterrupt):
        Filler(tmp_path, stop=150)()
    assert [folder.suffix for folder in tmp_path.iterdir() if folder.is_dir()] == [".partial"]
    second = Filler(tmp_path)
    cache = second()
    assert second.rows == 200 - 2 * 64 and not cache.reused
    _check(cache)
    _check(Filler(tmp_path, stop=0)())
    assert not list(tmp_path.glob("*.partial"))


def test_every_array_is_its_own_memory_map(tmp_path: Path) -> None:
    cache = Filler(tmp_path)()
    assert sorted(path.name for path in cache.folder.glob("*.npy")) == ["double.npy", "sum.npy"]
    maps = list(cache.arrays.values())
    assert all(isinstance(each, np.memmap) and each.mode == "r" for each in maps)
    assert len({each.filename for each in maps}) == 2


@pytest.mark.parametrize("change", ["a byte", "the size", "gone"])
def test_damaged_arrays_are_refused(change: str, tmp_path: Path) -> None:
    file = Filler(tmp_path)().folder / "sum.npy"
    content = file.read_bytes()
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] + b"\x7f" if change == "a byte" else content[:-8])
    with pytest.raises(DataError, match=r"sum\.npy is damaged.*delete"):
        Filler(tmp_path, stop=0)()
    file.write_bytes(content)
    _check(Filler(tmp_path, stop=0)())


def test_files_that_did_not_change_are_not_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(caching, "sha256_of", counting)
    cache = Filler(tmp_path)()
    assert sorted(hashed) == ["double.npy", "sum.npy"], "once, when the cache is finished"
    Filler(tmp_path, stop=0)()
    assert len(hashed) == 2
    os.utime(cache.folder / "sum.npy", ns=(1, 1))  # as a copy to another disk leaves it
    Filler(tmp_path, stop=0)()
    assert hashed[2:] == ["sum.npy"]
    Filler(tmp_path, stop=0)()
    assert len(hashed) == 3, "a successful check is remembered"


def test_a_cache_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only disk that several machines share, where times of change differ from those of the check."""
    cache = Filler(tmp_path)()
    os.utime(cache.folder / "sum.npy", ns=(1, 1))

    def refuse(path: Path, value: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(caching, "write_json", refuse)
    _check(open_cache(cache.folder, IDENTITY))


def test_another_identity_is_another_cache(tmp_path: Path) -> None:
    first, second = Filler(tmp_path)(), Filler(tmp_path)({**IDENTITY, "data": "other"})
    assert first.folder != second.folder and not second.reused
    with pytest.raises(DataError, match="does not fit: data differ"):
        open_cache(first.folder, {"data": "other"})


def test_sent_to_another_process_arrays_stay_on_disk(tmp_path: Path) -> None:
    cache = Filler(tmp_path)()
    sent = pickle.dumps(cache)
    assert len(sent) < 2000, "only the paths are sent"
    twin = pickle.loads(sent)
    _check(twin)
    assert isinstance(twin.arrays["double"], np.memmap) and twin.name == cache.name
