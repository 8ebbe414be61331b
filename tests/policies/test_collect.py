"""Collection: resumes, does not depend on the number of workers, and keeps successful episodes only."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pixio_robot.datasets.dataset import EpisodeDataset, open_dataset
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.errors import BadInput, DataError
from pixio_robot.policies import collect as collecting
from pixio_robot.policies.collect import collect


def _content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()].tobytes() if isinstance(item, h5py.Dataset) else None})
        )
    return found


def test_a_recorded_state_and_image_belong_together(toy_demos: EpisodeDataset, toy_request: TaskSpec) -> None:
    """Replaying a demonstration's seed and actions gives its images."""
    env = toy_request.make()
    observation, info = env.reset(seed=toy_demos.provenance["seeds"][1])
    assert info["initial_state_hash"] == toy_demos.initial_states[1]
    images = next(toy_demos.batches("rgb", 25, 25))
    for row, action in enumerate(toy_demos.column("action")[25:30]):
        assert np.array_equal(images[row], observation["rgb"])
        observation, *_ = env.step(action)
    env.close()


def test_workers_do_not_change_the_result(tmp_path: Path, toy_request: TaskSpec) -> None:
    request = replace(toy_request, observe=("proprio", "depth"), image_size=32)
    for workers in (1, 2):
        collect(request, 2, 1, 5, tmp_path / f"{workers}.hdf5", workers=workers)
    assert _content(tmp_path / "1.hdf5") == _content(tmp_path / "2.hdf5")
    assert open_dataset(tmp_path / "1.hdf5").column("depth").shape == (75, 32, 32)


def test_an_interrupted_collection_resumes(
    tmp_path: Path, toy_request: TaskSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, out = replace(toy_request, observe=("proprio",)), tmp_path / "demos.hdf5"
    recorded: list[int] = []

    def serially(function: Any, items: Any, workers: int) -> Any:
        for item in items:
            if len(recorded) == 2:
                raise KeyboardInterrupt
            recorded.append(item)
            yield item, function(item)

    monkeypatch.setattr(collecting, "in_workers", serially)
    with pytest.raises(KeyboardInterrupt):
        collect(request, 3, 0, 0, out)
    assert not out.exists() and len(list(tmp_path.glob("demos.hdf5.parts/*.hdf5"))) == 2
    with pytest.raises(DataError, match="other settings"):
        collect(replace(request, horizon=20), 3, 0, 0, out)
    monkeypatch.undo()
    before = (tmp_path / "demos.hdf5.parts/seed_0.hdf5").stat().st_mtime_ns
    assert before
    report = collect(request, 3, 0, 0, out, workers=1)
    assert report.attempts == 3 and not report.reused and not (tmp_path / "demos.hdf5.parts").exists()
    assert collect(request, 3, 0, 0, out).reused
    collect(request, 3, 0, 0, tmp_path / "whole.hdf5", workers=1)
    assert _content(out) == _content(tmp_path / "whole.hdf5")


def test_failed_episodes_are_left_out_and_replaced(tmp_path: Path, toy_request: TaskSpec) -> None:
    short = replace(toy_request, observe=("proprio",), horizon=5)  # too short for the farther initial states
    report = collect(short, 4, 0, 0, tmp_path / "demos.hdf5", workers=2)
    demos = open_dataset(report.path)
    assert report.attempts > 4 and len(demos.lengths) == 4
    assert demos.column("success").reshape(4, 5)[:, -1].all()
    assert demos.provenance["seeds"] == sorted(demos.provenance["seeds"])


def test_an_expert_that_never_succeeds_is_given_up(tmp_path: Path, toy_request: TaskSpec) -> None:
    hopeless = replace(toy_request, observe=("proprio",), horizon=1)
    with pytest.raises(DataError, match="giving up"):
        collect(hopeless, 8, 0, 0, tmp_path / "demos.hdf5", workers=2)
    assert not (tmp_path / "demos.hdf5").exists()


def test_other_demonstrations_are_not_overwritten(toy_file: Path, toy_request: TaskSpec) -> None:
    with pytest.raises(DataError, match="choose another out="):
        collect(toy_request, 3, 1, 0, toy_file)
    with pytest.raises(BadInput, match="at least one"):
        collect(toy_request, 0, 1, 0, toy_file)
