"""The token cache: found again by what made it, resumed, and never trusted when stale or damaged."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixio_robot.datasets import token_cache as caching
from pixio_robot.datasets.dataset import EpisodeDataset, open_dataset
from pixio_robot.datasets.frame_cache import FrameCache, open_cache
from pixio_robot.datasets.token_cache import TokenFormat, class_token_cosine, encode, token_cache
from pixio_robot.encoders.load import Backbone, load_encoder
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.errors import DataError
from pixio_robot.policies.collect import collect


def test_cached_and_live_tokens_agree(toy_cache: FrameCache, tiny: Backbone, toy_demos: EpisodeDataset) -> None:
    images = torch.from_numpy(next(toy_demos.batches("rgb", 40, 3)))
    cls, patches = encode(tiny, images, normed=True, precision="fp32")
    assert toy_cache.arrays["cls"].shape == (125, 8, 32) and toy_cache.arrays["cls"].dtype == np.float16
    assert toy_cache.arrays["patches"].shape == (125, 256, 32)
    assert np.abs(toy_cache.arrays["cls"][40:43].astype(float) - cls.double().numpy()).max() < 4e-3
    assert np.abs(toy_cache.arrays["patches"][40:43].astype(float) - patches.double().numpy()).max() < 4e-3


def test_a_second_call_reuses_and_encodes_nothing(
    tmp_path: Path, tiny: Backbone, toy_demos: EpisodeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = token_cache(tmp_path, tiny, toy_demos)
    assert not first.reused

    def refuse(*_: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(caching, "encode", refuse)
    second = token_cache(tmp_path, tiny, toy_demos)
    assert second.reused and np.array_equal(first.arrays["cls"], second.arrays["cls"])


def test_what_made_it_is_what_it_is_called_after(
    tmp_path: Path, tiny: Backbone, toy_demos: EpisodeDataset, toy_request: TaskSpec
) -> None:
    collect(replace(toy_request, image_size=64), 1, 0, 9, tmp_path / "other.hdf5", workers=1)
    small = open_dataset(tmp_path / "other.hdf5")
    folders = [
        token_cache(tmp_path, tiny, small).folder,
        token_cache(tmp_path, tiny, small, tokens=TokenFormat(normed=False)).folder,
        token_cache(tmp_path, tiny, small, tokens=TokenFormat(precision="bf16")).folder,
        token_cache(tmp_path, tiny, small, tokens=TokenFormat(patches=True)).folder,
        token_cache(tmp_path, load_encoder("random:ti:0"), small).folder,
        token_cache(tmp_path, load_encoder("random:ti:1"), small).folder,
    ]
    tiny.preprocessing = tiny.preprocessing._replace(size=(128, 128))
    folders.append(token_cache(tmp_path, tiny, small).folder)
    assert len(set(folders)) == len(folders)


def test_an_interrupted_fill_goes_on_and_gives_the_same(
    tmp_path: Path, tiny: Backbone, toy_demos: EpisodeDataset, toy_cache: FrameCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    original = caching.encode

    def interrupted(backbone: Backbone, images: torch.Tensor, normed: bool, precision: str) -> Any:
        if sum(encoded) > 60 and not resumed:
            raise KeyboardInterrupt
        encoded.append(len(images))
        return original(backbone, images, normed, precision)

    resumed = False
    monkeypatch.setattr(caching, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        token_cache(tmp_path, tiny, toy_demos, batch=1)
    assert [folder.suffix for folder in tmp_path.iterdir() if folder.is_dir()] == [".partial"]
    resumed, before = True, sum(encoded)
    cache = token_cache(tmp_path, tiny, toy_demos, batch=1)
    assert sum(encoded) - before == 125 - 32, "progress is saved every 32 batches"
    assert np.abs(cache.arrays["cls"].astype(float) - toy_cache.arrays["cls"].astype(float)).max() < 4e-3
    assert not list(tmp_path.glob("*.partial"))


def test_two_processes_fill_one_cache_once(
    tmp_path: Path, tiny: Backbone, toy_demos: EpisodeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first and reuses what it made, whole."""
    encoded: list[int] = []
    original = caching.encode

    def counting(backbone: Backbone, images: torch.Tensor, normed: bool, precision: str) -> Any:
        encoded.append(len(images))
        return original(backbone, images, normed, precision)

    monkeypatch.setattr(caching, "encode", counting)
    with ThreadPoolExecutor(2) as pool:
        caches = list(pool.map(lambda _: token_cache(tmp_path, tiny, toy_demos), range(2)))
    assert sum(encoded) == 125 and sorted(cache.reused for cache in caches) == [False, True]
    assert bool((np.abs(caches[0].arrays["cls"]).sum((1, 2)) > 0).all())


def test_damage_and_staleness_are_detected(tmp_path: Path, tiny: Backbone, toy_demos: EpisodeDataset) -> None:
    cache = token_cache(tmp_path, tiny, toy_demos)
    array = cache.folder / "cls.npy"
    content = array.read_bytes()
    array.write_bytes(content[:-1] + b"\x7f")
    with pytest.raises(DataError, match="damaged"):
        token_cache(tmp_path, tiny, toy_demos)
    array.write_bytes(content[:-100])
    with pytest.raises(DataError, match="damaged"):
        token_cache(tmp_path, tiny, toy_demos)
    array.write_bytes(content)
    assert token_cache(tmp_path, tiny, toy_demos).reused
    manifest = cache.folder / "manifest.json"
    stale = json.loads(manifest.read_text()) | {"precision": "bf16"}
    manifest.write_text(json.dumps(stale))
    with pytest.raises(DataError, match=r"does not fit: precision differ.*delete"):
        open_cache(cache.folder, {"precision": "fp32"})


def test_class_tokens_have_cosine_one_with_themselves(toy_cache: FrameCache) -> None:
    matrix = np.array(class_token_cosine(toy_cache))
    assert matrix.shape == (8, 8) and np.allclose(np.diag(matrix), 1, atol=1e-3) and np.allclose(matrix, matrix.T)
    assert np.abs(matrix).max() <= 1.001
