"""robomimic's layout: what we write, files of other tools, names of arrays, reading in any order."""

import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from pixio_robot.datasets.dataset import EpisodeDataset, Feature, camera_keys, open_dataset
from pixio_robot.datasets.robomimic import RobomimicDataset
from pixio_robot.datasets.windows import observation_rows
from pixio_robot.datasets.writer import Demo, EpisodeFacts, Provenance, Splits, merge_demos, write_demo
from pixio_robot.envs.registry import TaskSpec, make
from pixio_robot.errors import DataError, UnknownName
from pixio_robot.policies.collect import collect


def test_the_layout_is_robomimic_s(toy_file: Path) -> None:
    with h5py.File(toy_file) as file:
        data = file["data"]
        environment = json.loads(data.attrs["env_args"])
        assert (environment["env_name"], environment["type"]) == ("toy/reach", 2)
        assert environment["env_kwargs"]["render"] == "fast"
        assert data.attrs["total"] == 5 * 25 and sorted(data) == [f"demo_{i}" for i in range(5)]
        demo = data["demo_0"]
        assert demo.attrs["num_samples"] == 25 and demo.attrs["seed"] == 0 and demo.attrs["success"]
        assert len({data[name].attrs["initial_state_hash"] for name in data}) == 5
        assert demo["actions"].shape == (25, 3) and np.abs(demo["actions"][:]).max() <= 1
        assert demo["obs/front_image"].shape == (25, 256, 256, 3) and demo["obs/front_image"].dtype == np.uint8
        assert demo["dones"][:].tolist() == [0] * 24 + [1] and demo["rewards"].shape == (25,)
        assert demo["success"].dtype == bool and demo["success"][-1] and not demo["success"][0]
        assert demo["states"].shape[0] == 25
        camera = json.loads(demo.attrs["camera_info"])["front"]
        assert np.shape(camera["intrinsics"]) == (3, 3) and np.shape(camera["extrinsics"]) == (4, 4)
        assert [name.decode() for name in file["mask/valid"]] == ["demo_4"]


def test_reading_back(toy_demos: EpisodeDataset) -> None:
    assert toy_demos.provenance["task"] == "toy/reach"
    assert toy_demos.features["rgb"] == Feature("image", (256, 256, 3), "uint8")
    assert toy_demos.features["proprio"].shape == (3,) and toy_demos.features["state"].shape == (6,)
    assert toy_demos.features["action"].shape == (3,) and toy_demos.features["reward"].shape == ()
    assert toy_demos.rows("train").tolist() == list(range(100)) and toy_demos.rows("valid").tolist() == list(
        range(100, 125)
    )
    assert toy_demos.split("train").tolist() == [0, 1, 2, 3] and toy_demos.split("test").tolist() == []
    assert toy_demos.episode_starts.tolist() == [25 * (row // 25) for row in range(125)]
    everything = np.concatenate(list(toy_demos.batches("rgb", 0, 10)))
    later = np.concatenate(list(toy_demos.batches("rgb", 33, 10)))
    assert np.array_equal(everything[33:], later)
    with pytest.raises(DataError, match=r"has no 'depth'.*it has: rgb, proprio"):
        next(toy_demos.batches("depth", 0, 1))


def test_frames_are_read_in_the_order_asked(toy_demos: EpisodeDataset) -> None:
    everything = toy_demos.column("rgb")
    rows = np.array([40, 0, 11, 12, 12, 124, 47])
    assert np.array_equal(toy_demos.read("rgb", rows), everything[rows])
    assert np.array_equal(toy_demos.read("proprio", rows), toy_demos.column("proprio")[rows])
    assert toy_demos.read("rgb", np.zeros(0, np.int64)).shape == (0, 256, 256, 3)


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
            states=np.zeros((length, 1)),
            facts=EpisodeFacts(index, str(index), score=100.0, good=True, cameras={}),
        )
        write_demo(tmp_path / f"{index}.hdf5", demo)
    parts = [tmp_path / f"{index}.hdf5" for index in range(3)]
    merge_demos(tmp_path / "all.hdf5", Splits(parts[:2], parts[2:]), Provenance("toy/reach", {}, ("front",)), {})
    demos = open_dataset(tmp_path / "all.hdf5")
    assert demos.lengths.tolist() == [3, 5, 1] and demos.rows("valid").tolist() == [8]
    assert demos.episode_starts.tolist() == [0, 0, 0, 3, 3, 3, 3, 3, 8]
    owner = np.concatenate([batch[:, 0, 0, 0] for batch in demos.batches("rgb", 0, 2)])
    assert owner.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2]
    history = observation_rows(demos.episode_starts, 3)
    assert (owner[history] == owner[:, None]).all()


def test_files_that_are_not_demonstrations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make them with: pixio-robot collect"):
        open_dataset(tmp_path / "none.hdf5")
    with pytest.raises(DataError, match="make them with: pixio-robot collect"):
        RobomimicDataset(tmp_path / "none.hdf5")
    (tmp_path / "text.hdf5").write_text("not HDF5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = 1
    for name in ("text.hdf5", "other.hdf5"):
        with pytest.raises(DataError, match="not a demonstration file"):
            RobomimicDataset(tmp_path / name)
    with pytest.raises(DataError, match=r"text\.hdf5 is not a data set of a known format; formats are: .*robomimic"):
        open_dataset(tmp_path / "text.hdf5")
    with pytest.raises(DataError, match="not a demonstration file"):
        open_dataset(tmp_path / "other.hdf5")


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
    demos = open_dataset(toy_file)
    assert np.allclose(sample["actions"][0], demos.column("action")[30])
    assert np.allclose(sample["obs"]["proprio"][0], demos.column("proprio")[30])
    assert np.array_equal(sample["obs"]["front_image"][0], next(demos.batches("rgb", 30, 1))[0])


def test_depth_is_in_metres_on_disk(tmp_path: Path) -> None:
    request = TaskSpec("toy/reach", observe=("depth",), image_size=32, render="fast", horizon=25)
    collect(request, 1, 0, 0, tmp_path / "demos.hdf5", workers=1)
    demos = open_dataset(tmp_path / "demos.hdf5")
    assert demos.features["depth"] == Feature("depth", (32, 32), "float32", unit="m")
    env = make("toy/reach", observe=("depth",), image_size=32, render="fast")
    assert np.array_equal(demos.column("depth")[0], env.reset(seed=0)[0]["depth"])
    env.close()
    with h5py.File(tmp_path / "demos.hdf5") as file:
        assert file["data/demo_0/obs/front_depth"].shape == (25, 32, 32, 1), "robomimic needs a channel"


# files of other tools


def test_the_environment_of_another_tool_is_not_needed_to_read(tmp_path: Path, toy_file: Path) -> None:
    shutil.copy(toy_file, tmp_path / "foreign.hdf5")
    with h5py.File(tmp_path / "foreign.hdf5", "r+") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"robots": "Panda"}})
    demos = open_dataset(tmp_path / "foreign.hdf5")
    assert demos.provenance["task"] == "Lift" and demos.column("action").shape == (125, 3)


def test_arrays_of_robomimic_s_own_names_are_found(foreign_file: Path) -> None:
    """No masks, no env_args, no num_samples: proprioception is the pose and the gripper, agentview is the camera."""
    demos = open_dataset(foreign_file)
    assert demos.lengths.tolist() == [9, 6, 7] and demos.rows("train").tolist() == list(range(22))
    assert demos.rows("valid").tolist() == [] and demos.initial_states == ["", "", ""]
    assert demos.cameras == ["rgb", "rgb_robot0_eye_in_hand"]
    assert demos.features["proprio"].shape == (3 + 4 + 2,) and demos.features["object"].shape == (5,)
    with h5py.File(foreign_file) as file:
        first, eleventh = file["data/demo_0/obs"], file["data/demo_10/obs"]
        assert np.array_equal(demos.read("rgb", np.arange(9)), first["agentview_image"][:])
        pose = [first[f"robot0_{name}"][:] for name in ("eef_pos", "eef_quat", "gripper_qpos")]
        assert np.allclose(demos.read("proprio", np.arange(9)), np.concatenate(pose, axis=1), atol=1e-7)
        assert np.array_equal(demos.read("object", np.arange(15, 22)), eleventh["object"][:]), "demo_10 follows demo_2"
    assert camera_keys(demos, ["robot0_eye_in_hand", "agentview"]) == ("rgb_robot0_eye_in_hand", "rgb")
    with pytest.raises(UnknownName, match="no camera side; it has: agentview, robot0_eye_in_hand"):
        camera_keys(demos, ["side"])


def test_a_key_map_chooses_the_arrays(foreign_file: Path) -> None:
    keys = {
        "rgb": "robot0_eye_in_hand_image",
        "proprio": ["robot0_joint_pos", "robot0_gripper_qpos"],
        "action": "actions_abs",
        "object": "object",
    }
    with pytest.raises(DataError, match=r"has no actions_abs for 'action'; it has: actions, .*agentview_image"):
        open_dataset(foreign_file, keys)
    with h5py.File(foreign_file, "r+") as file:
        for demo in file["data"].values():
            demo["actions_abs"] = demo["actions"][:] * 10
    demos = open_dataset(foreign_file, keys)
    plain = open_dataset(foreign_file)
    assert np.allclose(demos.column("action"), 10 * plain.column("action"))
    with h5py.File(foreign_file) as file:
        observed = file["data/demo_0/obs"]
        assert np.array_equal(demos.read("rgb", np.arange(9)), observed["robot0_eye_in_hand_image"][:])
        joints = np.concatenate([observed["robot0_joint_pos"][:], observed["robot0_gripper_qpos"][:]], axis=1)
        assert np.allclose(demos.read("proprio", np.arange(9)), joints, atol=1e-7)


def test_images_that_are_no_bytes_are_refused(foreign_file: Path) -> None:
    with h5py.File(foreign_file, "r+") as file:
        for demo in file["data"].values():
            images = demo["obs/agentview_image"][:]
            del demo["obs/agentview_image"]
            demo["obs/agentview_image"] = images.astype(np.float32) / 255
    with pytest.raises(DataError, match=r"agentview_image.*float32.*uint8"):
        open_dataset(foreign_file)


def test_a_demonstration_that_lacks_an_array_is_named(foreign_file: Path) -> None:
    with h5py.File(foreign_file, "r+") as file:
        del file["data/demo_2/obs/object"]
    demos = open_dataset(foreign_file)
    assert demos.read("object", np.arange(9)).shape == (9, 5)
    with pytest.raises(DataError, match=r"'object' \(obs/object\) in demonstration demo_2"):
        demos.column("object")


def test_hashes_of_initial_states_are_read_under_their_former_name(tmp_path: Path, toy_file: Path) -> None:
    """Files recorded before the attribute was renamed still keep evaluation off their initial states."""
    known = open_dataset(toy_file).initial_states
    shutil.copy(toy_file, tmp_path / "old.hdf5")
    with h5py.File(tmp_path / "old.hdf5", "r+") as file:
        for demo in file["data"].values():
            demo.attrs["start"] = demo.attrs["initial_state_hash"]
            del demo.attrs["initial_state_hash"]
    assert open_dataset(tmp_path / "old.hdf5").initial_states == known and all(known)


def test_a_data_set_can_be_sent_to_another_process(toy_demos: EpisodeDataset) -> None:
    first = toy_demos.read("rgb", np.array([3]))
    sent = pickle.dumps(toy_demos)
    assert len(sent) < 20_000, "frames stay on disk"
    twin = pickle.loads(sent)
    assert np.array_equal(twin.read("rgb", np.array([3])), first) and twin.fingerprint == toy_demos.fingerprint
