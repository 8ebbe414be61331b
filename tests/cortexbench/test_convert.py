"""Released demonstrations are converted without loss to our layout, and bad sources are refused."""

import json
import os
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import pixio_robot
from pixio_robot import cli
from pixio_robot.config import compose
from pixio_robot.cortexbench.released import convert as converting
from pixio_robot.cortexbench.released.convert import SplitRequest, convert, source_of
from pixio_robot.cortexbench.released.releases import RELEASES, PathsRelease
from pixio_robot.datasets.robomimic import RobomimicDataset
from pixio_robot.envs import registry
from pixio_robot.errors import DataError
from pixio_robot.policies.evaluate import task_of

GUIDE = Path(pixio_robot.__file__).resolve().parent.parent / "docs/demonstrations.md"
SIDE = 16  # of the images [px]; published are 256


def _paths(task: str, lengths: tuple[int, ...] = (4, 7, 1)) -> list[dict[str, Any]]:
    """Paths with the keys that the published files are documented to have."""
    release, rng = RELEASES[task], np.random.default_rng(0)
    assert isinstance(release, PathsRelease)
    paths = []
    for steps in lengths:
        path = {
            "images": rng.integers(0, 256, (steps, SIDE, SIDE, 3), np.uint8),
            "actions": rng.uniform(-1.2, 1.2, (steps, release.action_dim)),
            "rewards": rng.normal(size=steps),
            "observations": rng.normal(size=(steps, release.state_dim)).astype(np.float32),
            "agent_infos": {},
            "terminated": False,
        }
        infos = {"time": np.arange(steps, dtype=np.int32)}
        if release.proprio:
            infos[release.proprio] = rng.normal(size=(steps, release.proprio_dim))
        if task.startswith("metaworld"):
            infos["success"] = np.arange(steps) > 2.0
        elif task.startswith("adroit"):
            infos["goal_achieved"] = np.arange(steps) > 1
            start = {"qpos": rng.normal(size=30), "qvel": rng.normal(size=30), "desired_orien": rng.normal(size=3)}
            path["init_state_dict"] = OrderedDict(start)
        else:
            infos["internal_state"] = rng.normal(size=(steps, 18))
        paths.append({**path, "env_infos": infos})
    return paths


def _write(path: Path, content: Any, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def _trifinger(root: Path, kind: str, numbers: range, columns: int, frames: int = 6) -> list[dict[str, Any]]:
    rng, demos = np.random.default_rng(1), []
    for number in numbers:
        demo = {
            **{f"image_{view}": rng.integers(0, 256, (frames, SIDE, SIDE, 3), np.uint8) for view in (60, 180, 300)},
            "ft_pos_cur": rng.normal(size=(frames, 9)),
            "o_pos_cur": rng.normal(size=(frames, 3)),
            "delta_ftpos": rng.uniform(-6, 6, (frames, columns)),
            "t": np.arange(frames) * 0.4,
            "mode": ["one", "two"],
            "ft_pos_targets_per_mode": [rng.normal(size=9), rng.normal(size=9)],
            "vertices": rng.normal(size=(8, 3)),
        }
        file = root / kind / f"demo-{number:04d}/dts-0p4/downsample.pth"
        file.parent.mkdir(parents=True)
        torch.save(demo, file)
        (file.parent / "downsample.gif").write_bytes(b"GIF")
        demos.append(demo)
    return demos


def _zipped(folder: Path, out: Path) -> Path:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return out


def _same(one: Any, other: Any) -> None:
    if isinstance(one, (np.ndarray, np.generic)):
        assert type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == other.tobytes()
    elif isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            _same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert type(one) is type(other) and len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            _same(left, right)
    else:
        assert type(one) is type(other) and one == other


def _convert(source: Path, task: str, out: str = "out.hdf5", **splits: Any) -> RobomimicDataset:
    return RobomimicDataset(convert(task, source, Path(out), SplitRequest(**splits)).path)


@pytest.mark.parametrize("task", [each for each in RELEASES if not each.startswith("trifinger")])
def test_the_source_can_be_read_back_bit_by_bit(task: str, tmp_path: Path) -> None:
    paths = _paths(task)
    release = RELEASES[task]
    demos = _convert(_write(tmp_path / f"{release.env_id}.pickle", paths), task)
    assert (
        demos.provenance["task"] == task
        and demos.names == ["demo_0", "demo_1", "demo_2"]
        and demos.lengths.tolist() == [4, 7, 1]
    )
    for name, path in zip(demos.names, paths, strict=True):
        _same(source_of(demos.path, name), path)
    assert np.array_equal(
        np.concatenate(list(demos.batches("rgb", 0, 3))), np.concatenate([p["images"] for p in paths])
    )
    actions = demos.column("action")
    assert actions.dtype == np.float32 and np.abs(actions).max() == 1
    assert np.array_equal(actions, np.concatenate([p["actions"] for p in paths]).clip(-1, 1).astype(np.float32))
    assert np.array_equal(demos.column("reward"), np.concatenate([p["rewards"] for p in paths]))
    assert np.array_equal(demos.column("state"), np.concatenate([p["observations"] for p in paths]))
    if release.proprio:
        proprio = np.concatenate([p["env_infos"][release.proprio] for p in paths]).astype(np.float32)
        assert np.array_equal(demos.column("proprio"), proprio) and demos.column("success").sum() > 0
    else:
        assert "proprio" not in demos.features
        with pytest.raises(DataError, match="has no 'success'"):
            demos.column("success")


def test_images_are_stored_once_and_compressed(tmp_path: Path) -> None:
    out = _convert(_write(tmp_path / "pen-v0.pickle", _paths("adroit/pen")), "adroit/pen").path
    with h5py.File(out) as file:
        demo = file["data/demo_0"]
        assert demo["obs/vil_camera_image"] == demo["extra/images"], "two names of one dataset"
        assert demo["obs/vil_camera_image"].compression == "lzf"
        assert file["data"].attrs["total"] == 12 and demo["dones"][:].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("protocol", [0, 2, 3, 5])
def test_old_and_new_pickles_give_the_same_file(protocol: int, tmp_path: Path) -> None:
    paths = _paths("metaworld/hammer")
    file = _write(tmp_path / "hammer-v2-goal-observable.pickle", paths, protocol)
    file.write_bytes(file.read_bytes().replace(b"numpy._core", b"numpy.core") if protocol < 4 else file.read_bytes())
    demos = _convert(file, "metaworld/hammer")
    for name, path in zip(demos.names, paths, strict=True):
        _same(source_of(demos.path, name), path)


@pytest.mark.parametrize("packing", ["zip", "folder"])
def test_the_member_of_an_archive_is_found_by_the_task(packing: str, tmp_path: Path) -> None:
    root = tmp_path / "metaworld-expert-v1.0"
    for index, task in enumerate(("hammer", "assembly", "drawer-open")):
        _write(root / f"{task}-v2-goal-observable.pickle", _paths(f"metaworld/{task}", (index + 2,)))
    source = _zipped(root, tmp_path / "metaworld-expert-v1.0.zip") if packing == "zip" else root
    assert _convert(source, "metaworld/assembly").lengths.tolist() == [3]
    assert sorted(path.name for path in tmp_path.glob("*hdf5*")) == ["out.hdf5"], "what was unpacked is removed"
    plain = root / "assembly-v2-goal-observable.pickle"
    assert convert("metaworld/assembly", plain, Path("out.hdf5")).reused, "the same content, unpacked"
    with pytest.raises(DataError, match=r"no hammer|no bin-picking.*it has: assembly"):
        _convert(source, "metaworld/bin-picking", "other.hdf5")


def test_splits_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _write(tmp_path / "hammer-v2-goal-observable.pickle", _paths("metaworld/hammer", (1,) * 30))
    demos = _convert(source, "metaworld/hammer")
    assert demos.rows("train").tolist() == list(range(25)) and demos.rows("valid").tolist() == list(range(25, 30))
    demos = _convert(source, "metaworld/hammer", "b.hdf5", demos=3, valid=2)
    assert demos.rows("train").tolist() == [0, 1, 2] and demos.rows("valid").tolist() == [3, 4]
    assert len(demos.names) == 30, "nothing is lost"
    monkeypatch.setattr(converting, "_write", lambda *_: pytest.fail("it started"))
    with pytest.raises(DataError, match="demos=31 was asked for; there are 30"):
        _convert(source, "metaworld/hammer", "c.hdf5", demos=31)
    with pytest.raises(DataError, match="valid=6 was asked for"):
        _convert(source, "metaworld/hammer", "c.hdf5", valid=6)
    with pytest.raises(DataError, match="other demonstrations"):
        _convert(source, "metaworld/hammer", "b.hdf5", demos=4)


@pytest.mark.parametrize(("task", "columns", "width", "reach"), [("reach", 9, 3, 5.0), ("move", 9, 9, 8.0)])
@pytest.mark.parametrize("packed", [True, False])
def test_trifinger(task: str, columns: int, width: int, reach: float, packed: bool, tmp_path: Path) -> None:
    root = tmp_path / "trifinger-demos"
    made = _trifinger(root, task, range(98, 104), columns)
    _trifinger(root, "reach" if task == "move" else "move", range(1), 9)
    source = _zipped(root, tmp_path / "trifinger_demos.zip") if packed else root
    demos = _convert(source, f"trifinger/{task}_cube")
    assert demos.names == [f"demo_{number}" for number in range(98, 104)] and set(demos.lengths) == {5}
    assert demos.rows("train").tolist() == list(range(10)) and demos.rows("valid").tolist() == list(range(10, 30))
    for name, demo in zip(demos.names, made, strict=True):
        _same(source_of(demos.path, name), demo)
    moved = np.concatenate([demo["delta_ftpos"][:-1, :width] for demo in made])
    assert np.allclose(demos.column("action"), np.clip(moved / reach, -1, 1), atol=1e-6)
    tips = np.concatenate([demo["ft_pos_cur"][:-1] for demo in made])
    assert np.array_equal(demos.column("proprio"), tips.astype(np.float32))
    images = np.concatenate(list(demos.batches("rgb", 0, 100)))
    assert np.array_equal(images, np.concatenate([demo["image_60"][:-1] for demo in made]))
    if task == "move":
        goals = np.concatenate(list(demos.batches("rgb_goal", 0, 100)))
        assert np.array_equal(goals, np.concatenate([demo["image_60"][[-1] * 5] for demo in made]))
    if not packed:
        assert _convert(root / task, f"trifinger/{task}_cube", "of-folder.hdf5").names == demos.names


def test_trifinger_s_own_splits(tmp_path: Path) -> None:
    _trifinger(tmp_path / "t", "reach", range(6), 3)

    def entries(*numbers: int) -> list[dict[str, Any]]:
        return [{"path": f"x/reach/demo-{number:04d}", "diff": 110, "id": number} for number in numbers]

    splits = {"train_demos": entries(4, 1), "test_demos": entries(2), "scale": 100, "max_a": 4.0, "min": [1, 2]}
    (tmp_path / "s.json").write_text(json.dumps(splits))
    demos = _convert(tmp_path / "t", "trifinger/reach_cube", file=str(tmp_path / "s.json"))
    assert demos.split("train").tolist() == [1, 4] and demos.split("valid").tolist() == [2]
    raw = source_of(demos.path, "demo_0")["delta_ftpos"]
    assert np.allclose(demos.column("action")[:5], np.clip(raw[:5] / 4, -1, 1), atol=1e-6)
    for broken, message in (
        ({"train_demos": entries(9), "test_demos": []}, r"lacks the demonstrations \[9\]"),
        ({"train_demos": entries(1), "test_demos": entries(1)}, "in both splits"),
        ({"train_demos": [{"path": "x/move/demo-0001"}]}, "is not in reach"),
        ({"scale": 1}, "no list of training"),
        ([1], "does not split"),
    ):
        (tmp_path / "s.json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match=message):
            _convert(tmp_path / "t", "trifinger/reach_cube", "b.hdf5", file=str(tmp_path / "s.json"))
    assert not list(tmp_path.glob("*b.hdf5*"))


def test_unusual_values_are_kept(tmp_path: Path) -> None:
    (path,) = _paths("adroit/pen", (3,))
    path["notes"] = {
        "a/b": 1, ".": "dot", "100%": True, "none": None, "list": [1.5, "x", [2]], "tuple": (1, np.float32(2)),
        "bytes": b"\0\1", "text": np.array(["é", "b"]), "raw": np.array([b"a", b"bc"]), "no axes": np.array(2.5),
        "objects": np.array([None, {"x": np.arange(2)}], object), "empty": [], "nothing": {},
        "big endian": np.arange(3, dtype=">i2"), "none there": np.zeros((0, 3), "U2"), "nan": float("inf"),
    }  # fmt: skip
    demos = _convert(_write(tmp_path / "pen-v0.pickle", [path]), "adroit/pen")
    found = source_of(demos.path, "demo_0")
    objects = found["notes"].pop("objects")
    assert objects[0] is None and objects[1]["x"].tolist() == [0, 1] and objects.dtype == object
    del path["notes"]["objects"]
    _same(found, path)


def test_the_environment_is_known_where_the_registry_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demos = _convert(
        _write(tmp_path / "hammer-v2-goal-observable.pickle", _paths("metaworld/hammer")), "metaworld/hammer"
    )
    request = task_of(demos.provenance, demos.source)
    assert (request.task, request.render, request.horizon) == ("metaworld/hammer", "benchmark", None)
    assert request.observe == ("rgb", "proprio") and request.image_size == SIDE
    monkeypatch.setattr("pixio_robot.policies.evaluate.tasks", lambda: ["toy/reach"])
    with pytest.raises(DataError, match="cannot be simulated"):
        task_of(demos.provenance, demos.source)


def test_policies_train_on_released_demonstrations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _convert(_write(tmp_path / "hammer-v2-goal-observable.pickle", _paths("metaworld/hammer")), "metaworld/hammer")
    for encoder in ("none", "state"):
        arguments = [
            "train_bc",
            "demos=out.hdf5",
            f"encoder={encoder}",
            "training.epochs=1",
            f"out={encoder}",
            "device=cpu",
        ]
        assert cli.run(arguments) == 0, capsys.readouterr().err
    out = _convert(_write(tmp_path / "pen-v0.pickle", _paths("adroit/pen")), "adroit/pen", "pen.hdf5").path
    with h5py.File(out, "r+") as file:
        file["data"].attrs["env_args"] = file["data"].attrs["env_args"].replace("adroit/pen", "adroit/other")
    arguments = ["train_bc", f"demos={out}", "encoder=none", "training.epochs=1", "out=other", "device=cpu"]
    assert cli.run(arguments) == 0, capsys.readouterr().err
    assert cli.run(["evaluate", "checkpoint=other/checkpoints/none/last.safetensors"]) == 1
    assert "adroit/other, which cannot be simulated" in capsys.readouterr().err


@pytest.mark.skipif(not GUIDE.is_file(), reason="runs in a checkout")
def test_the_guide_s_commands_and_tasks_exist() -> None:
    text = GUIDE.read_text()
    for line in re.findall(r"^pixio-robot .*|(?<=`)pixio-robot [^`]*", text, re.MULTILINE):
        _, command, *overrides = line.split()
        compose(command, overrides, complete=False)
    for task in RELEASES:
        assert task.split("/")[1] in text


def test_names_of_tasks_are_known_before_their_simulators(tmp_path: Path) -> None:
    ours = set(registry.tasks())
    assert {task for task in RELEASES if task.startswith("metaworld")} <= ours
    assert len(RELEASES) == 14


def test_an_interrupted_conversion_leaves_nothing_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "adroit-expert-v1.0"
    _write(root / "pen-v0.pickle", _paths("adroit/pen"))
    source = _zipped(root, tmp_path / "a.zip")
    write, before = converting._write, set(tmp_path.rglob("*"))

    def stop_at_second(group: Any, demo: Any) -> None:
        if demo.number == 1:
            raise KeyboardInterrupt
        write(group, demo)

    monkeypatch.setattr(converting, "_write", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        _convert(source, "adroit/pen", "d/out.hdf5")
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "d"}
    monkeypatch.undo()
    os.chdir(tmp_path)
    assert len(_convert(source, "adroit/pen", "d/out.hdf5").names) == 3


def test_an_existing_output_is_reused_for_the_same_source_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _write(tmp_path / "pen-v0.pickle", _paths("adroit/pen"))
    arguments = ["convert", f"source={source}", "task=adroit/pen", "out=o.hdf5"]
    assert cli.run(arguments) == 0 and "3 + 0 demonstrations of adroit/pen, 3 in all" in capsys.readouterr().out
    written = Path("o.hdf5").stat().st_mtime_ns
    assert cli.run(arguments) == 0 and "reused" in capsys.readouterr().out
    assert Path("o.hdf5").stat().st_mtime_ns == written
    _write(source, _paths("adroit/pen", (2, 2)))
    assert cli.run(arguments) == 1 and "holds other demonstrations" in capsys.readouterr().err


def test_a_full_disk_is_reported_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _write(tmp_path / "in/pen-v0.pickle", _paths("adroit/pen"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 2**20))
    monkeypatch.setattr(converting, "_write", lambda *_: pytest.fail("it started"))
    assert cli.run(["convert", f"source={source}", "task=adroit/pen", "out=o.hdf5"]) == 1
    assert "no space left" in capsys.readouterr().err and not Path("o.hdf5").exists()


class _Trap:
    def __reduce__(self) -> Any:
        return os.mkdir, ("trap",)


def _without(key: str) -> list[dict[str, Any]]:
    paths = _paths("metaworld/hammer")
    del paths[1][key]
    return paths


def _hammer(change: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    paths = _paths("metaworld/hammer")
    change(paths[1])
    return paths


BAD = {
    "another suite": (lambda: _paths("adroit/pen"), "actions of shape (4, 24)"),
    "another width": (lambda: _paths("dmc/walker_walk"), "is it another task's?"),
    "no images": (lambda: _without("images"), "hammer-v2-goal-observable.pickle has no 'images'"),
    "no actions": (lambda: _without("actions"), "has no 'actions'; it has: images"),
    "no env_infos": (lambda: _without("env_infos"), "has no 'gripper_proprio'; it has: nothing"),
    "no demonstrations": (lambda: [], "a list of nothing"),
    "a dictionary": (lambda: {"a": 1}, "but a dict"),
    "numbers": (lambda: [1, 2], "no list of demonstrations"),
    "float images": (lambda: _hammer(lambda path: path.update(images=np.zeros((7, 4, 4, 3)))), "float64, not (T, H"),
    "one image too many": (lambda: _hammer(lambda path: path.update(images=path["images"][1:])), "shape"),
    "ragged actions": (lambda: _hammer(lambda path: path.update(actions=[[1.0], [1.0, 2.0]])), "not"),
    "a set": (lambda: _hammer(lambda path: path.update(more={1, 2})), "a set cannot be kept"),
    "numbers for names": (lambda: _hammer(lambda path: path.update(more={1: np.arange(2)})), "only names can be kept"),
    "a trap": (lambda: _hammer(lambda path: path.update(more=_Trap())), "posix.mkdir"),
}  # fmt: skip


def _refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> str:
    """Run a conversion that must fail; return its message."""
    before = set(tmp_path.rglob("*"))
    status = cli.run(["convert", *arguments, "out=o.hdf5"])
    out, err = capsys.readouterr()
    assert status == 1 and "Traceback" not in err and "may be a bug" not in err and not out
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert set(tmp_path.rglob("*")) == before, "nothing is left behind"
    return err


@pytest.mark.parametrize("what", list(BAD))
@pytest.mark.parametrize("packed", [False, True])
def test_bad_pickles_get_one_message(
    what: str, packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = BAD[what]
    source = _write(tmp_path / "in/hammer-v2-goal-observable.pickle", make())
    if packed:
        source = _zipped(tmp_path / "in", tmp_path / "in.zip")
    assert message in _refused(capsys, tmp_path, f"source={source}", "task=metaworld/hammer")


def test_bad_sources_get_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(source: Path, task: str, *more: str) -> str:
        return _refused(capsys, tmp_path, f"source={source}", f"task={task}", *more)

    good = _write(tmp_path / "in/pen-v0.pickle", _paths("adroit/pen"))
    assert cli.run(["convert", "task=adroit/pen"]) == 1 and "e.g. source=metaworld-expert" in capsys.readouterr().err
    assert "no file or folder" in refused(tmp_path / "none.zip", "adroit/pen")
    assert "is of pen-v0, not of relocate-v0" in refused(good, "adroit/relocate")
    assert "did you mean 'adroit/pen'" in refused(good, "adroit/pan")
    assert "of: metaworld/assembly" in refused(good, "toy/reach")
    assert "has no reach/demo-XXXX" in refused(good, "trifinger/reach_cube")
    assert "is for TriFinger" in refused(good, "adroit/pen", "splits=x.json")
    packed = _zipped(tmp_path / "in", tmp_path / "in.zip")
    assert "has no hammer-v2-goal-observable.pickle; it has: pen-v0.pickle" in refused(packed, "metaworld/hammer")
    whole = packed.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    assert "damaged zip" in refused(tmp_path / "cut.zip", "adroit/pen")
    (tmp_path / "bent.zip").write_bytes(whole[:200] + bytes(8) + whole[208:])
    assert "damaged zip" in refused(tmp_path / "bent.zip", "adroit/pen")
    whole = good.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        good.write_bytes(content)
        assert "pen-v0.pickle" in refused(good, "adroit/pen")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no pickles" in refused(empty, "adroit/pen") and "no demonstrations" in refused(empty, "trifinger/move_cube")


def test_bad_trifinger_files_get_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _trifinger(tmp_path / "t", "reach", range(2), 3)
    file = tmp_path / "t/reach/demo-0001/dts-0p4/downsample.pth"
    demo = {
        "image_60": np.zeros((3, 4, 4, 3), np.uint8),
        "ft_pos_cur": np.zeros((3, 9)),
        "delta_ftpos": np.zeros((3, 3)),
    }
    for change, message in (
        ({"delta_ftpos": np.zeros((3, 2))}, "is it another task's?"),
        ({"delta_ftpos": np.zeros((7, 3))}, "not (2 or 3, 3 or more)"),
        ({"image_60": np.zeros((1, 4, 4, 3), np.uint8)}, "T > 1"),
        ({"ft_pos_cur": None}, "ft_pos_cur"),
        ({"more": _Trap()}, "demo-0001/dts-0p4/downsample.pth was not read: it asks for posix.mkdir"),
    ):
        torch.save({**demo, **change}, file)
        assert message in _refused(capsys, tmp_path, f"source={tmp_path / 't'}", "task=trifinger/reach_cube")
    shutil.copytree(tmp_path / "t/reach", tmp_path / "t/again/reach")
    assert "more than once" in _refused(capsys, tmp_path, f"source={tmp_path / 't'}", "task=trifinger/reach_cube")
    shutil.rmtree(tmp_path / "t/again")
    del demo["image_60"]
    torch.save(demo, file)
    assert "has no 'image_60'" in _refused(capsys, tmp_path, f"source={tmp_path / 't'}", "task=trifinger/reach_cube")
    file.write_bytes(b"text")
    assert "no file by torch.save" in _refused(
        capsys, tmp_path, f"source={tmp_path / 't'}", "task=trifinger/reach_cube"
    )
    assert "has no move/demo-XXXX" in _refused(capsys, tmp_path, f"source={tmp_path / 't'}", "task=trifinger/move_cube")
