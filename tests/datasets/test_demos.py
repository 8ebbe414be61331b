"""Demonstrations: robomimic's layout, collection that resumes and does not depend on the number of workers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pixio_robot.policies.embedding import frame_indices

from pixio_robot.datasets.robomimic import DemoSet
from pixio_robot.datasets.writer import Demo, merge_demos, write_demo
from pixio_robot.envs.registry import TaskSpec, make
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


def test_the_layout_is_robomimic_s(toy_file: Path) -> None:
    with h5py.File(toy_file) as file:
        data = file["data"]
        environment = json.loads(data.attrs["env_args"])
        assert (environment["env_name"], environment["type"]) == ("toy/reach", 2)
        assert environment["env_kwargs"]["render"] == "fast"
        assert data.attrs["total"] == 5 * 25 and sorted(data) == [f"demo_{i}" for i in range(5)]
        demo = data["demo_0"]
        assert demo.attrs["num_samples"] == 25 and demo.attrs["seed"] == 0 and demo.attrs["success"]
        assert demo["actions"].shape == (25, 3) and np.abs(demo["actions"][:]).max() <= 1
        assert demo["obs/front_image"].shape == (25, 256, 256, 3) and demo["obs/front_image"].dtype == np.uint8
        assert demo["dones"][:].tolist() == [0] * 24 + [1] and demo["rewards"].shape == (25,)
        assert demo["success"].dtype == bool and demo["success"][-1] and not demo["success"][0]
        assert demo["states"].shape[0] == 25
        camera = json.loads(demo.attrs["camera_info"])["front"]
        assert np.shape(camera["intrinsics"]) == (3, 3) and np.shape(camera["extrinsics"]) == (4, 4)
        assert [name.decode() for name in file["mask/valid"]] == ["demo_4"]


def test_a_recorded_state_and_image_belong_together(toy_demos: DemoSet, toy_request: TaskSpec) -> None:
    """Replaying a demonstration's seed and actions gives its images."""
    env = toy_request.make()
    observation, info = env.reset(seed=toy_demos.seeds[1])
    assert info["initial_state_hash"] == toy_demos.starts[1]
    images = next(toy_demos.batches("rgb", 25, 25))
    for row, action in enumerate(toy_demos.read("actions")[25:30]):
        assert np.array_equal(images[row], observation["rgb"])
        observation, *_ = env.step(action)
    env.close()


def test_reading_back(toy_demos: DemoSet, toy_request: TaskSpec) -> None:
    assert toy_demos.request == toy_request and toy_demos.task == "toy/reach"
    assert toy_demos.rows("train").tolist() == list(range(100)) and toy_demos.rows("valid").tolist() == list(
        range(100, 125)
    )
    assert toy_demos.frame_starts.tolist() == [25 * (row // 25) for row in range(125)]
    everything = np.concatenate(list(toy_demos.batches("rgb", 0, 10)))
    later = np.concatenate(list(toy_demos.batches("rgb", 33, 10)))
    assert np.array_equal(everything[33:], later)
    with pytest.raises(DataError, match="it has: front_image, proprio"):
        next(toy_demos.batches("depth", 0, 1))


def test_demonstrations_of_unequal_lengths(tmp_path: Path) -> None:
    """Every frame is found once, and no history reaches into the demonstration before."""
    lengths = (3, 5, 1)
    for index, length in enumerate(lengths):
        frames = np.full((length, 16, 16, 3), index, np.uint8)
        demo = Demo(
            observations={"front_image": frames, "proprio": np.full((length, 2), index, np.float32)},
            actions=np.zeros((length, 2), np.float32),
            rewards=np.zeros(length),
            success=np.ones(length, bool),
            score=100.0,
            good=True,
            states=np.zeros((length, 1)),
            seed=index,
            start=str(index),
            cameras={},
        )
        write_demo(tmp_path / f"{index}.hdf5", demo)
    parts = [tmp_path / f"{index}.hdf5" for index in range(3)]
    merge_demos(tmp_path / "all.hdf5", parts[:2], parts[2:], TaskSpec("toy/reach"), ("front",), {})
    demos = DemoSet(tmp_path / "all.hdf5")
    assert demos.lengths.tolist() == [3, 5, 1] and demos.rows("valid").tolist() == [8]
    assert demos.frame_starts.tolist() == [0, 0, 0, 3, 3, 3, 3, 3, 8]
    owner = np.concatenate([batch[:, 0, 0, 0] for batch in demos.batches("rgb", 0, 2)])
    assert owner.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2]
    history = frame_indices(demos.frame_starts, 3)
    assert (owner[history] == owner[:, None]).all()


def test_workers_do_not_change_the_result(tmp_path: Path, toy_request: TaskSpec) -> None:
    request = replace(toy_request, observe=("proprio", "depth"), image_size=32)
    for workers in (1, 2):
        collect(request, 2, 1, 5, tmp_path / f"{workers}.hdf5", workers=workers)
    assert _content(tmp_path / "1.hdf5") == _content(tmp_path / "2.hdf5")
    assert DemoSet(tmp_path / "1.hdf5").read("depth").shape == (75, 32, 32, 1)


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
    short = replace(toy_request, observe=("proprio",), horizon=5)  # too short for the farther starts
    report = collect(short, 4, 0, 0, tmp_path / "demos.hdf5", workers=2)
    demos = DemoSet(report.path)
    assert report.attempts > 4 and len(demos.names) == 4
    assert demos.read("success").reshape(4, 5)[:, -1].all()
    assert demos.seeds == sorted(demos.seeds)


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


def test_files_that_are_not_demonstrations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make them with: pixio-robot collect"):
        DemoSet(tmp_path / "none.hdf5")
    (tmp_path / "text.hdf5").write_text("not HDF5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = 1
    for name in ("text.hdf5", "other.hdf5"):
        with pytest.raises(DataError, match="not a demonstration file"):
            DemoSet(tmp_path / name)


def test_files_of_other_tools_train_only_where_their_environment_can_be_made(tmp_path: Path, toy_file: Path) -> None:
    shutil.copy(toy_file, tmp_path / "foreign.hdf5")
    with h5py.File(tmp_path / "foreign.hdf5", "r+") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"robots": "Panda"}})
    demos = DemoSet(tmp_path / "foreign.hdf5")
    assert demos.task == "Lift" and demos.read("actions").shape == (125, 3)
    with pytest.raises(DataError, match="recorded by another tool"):
        _ = demos.request


@pytest.mark.filterwarnings("ignore::DeprecationWarning:robomimic", "ignore::DeprecationWarning:torchvision")
@pytest.mark.filterwarnings("ignore:.*torchvision.*", "ignore:.*pkg_resources.*")
def test_robomimic_reads_it(toy_file: Path) -> None:
    pytest.importorskip("robomimic", reason="needs the extra robomimic")
    from pixio_robot.encoders.torchvision_guard import declare_missing_operators

    declare_missing_operators()
    import robomimic.utils.obs_utils as observations
    from robomimic.utils.dataset import SequenceDataset

    observations.initialize_obs_utils_with_obs_specs(
        {"obs": {"rgb": ["front_image"], "low_dim": ["proprio"], "depth": [], "scan": []}}
    )
    dataset = SequenceDataset(
        hdf5_path=str(toy_file),
        obs_keys=("front_image", "proprio"),
        dataset_keys=("actions", "rewards", "dones"),
        hdf5_cache_mode="low_dim",
        load_next_obs=False,  # as robomimic's own BC configuration has it
        filter_by_attribute="train",
    )
    assert len(dataset) == 100
    sample = dataset[30]
    demos = DemoSet(toy_file)
    assert np.allclose(sample["actions"][0], demos.read("actions")[30])
    assert np.allclose(sample["obs"]["proprio"][0], demos.read("proprio")[30])
    assert np.array_equal(sample["obs"]["front_image"][0], next(demos.batches("rgb", 30, 1))[0])


def test_depth_is_in_metres_on_disk(tmp_path: Path) -> None:
    request = TaskSpec("toy/reach", observe=("depth",), image_size=32, render="fast", horizon=25)
    collect(request, 1, 0, 0, tmp_path / "demos.hdf5", workers=1)
    env = make("toy/reach", observe=("depth",), image_size=32, render="fast")
    assert np.array_equal(DemoSet(tmp_path / "demos.hdf5").read("depth")[0, ..., 0], env.reset(seed=0)[0]["depth"])
    env.close()
