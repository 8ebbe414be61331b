"""Rendered frames: bytes depend on the seed, images are not blank, initial states are not those of evaluations."""

import importlib.util
import itertools
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pixio_robot.cli import run
from pixio_robot.envs import registry
from pixio_robot.envs.frame_renderer import FrameSettings
from pixio_robot.envs.frames import render_frames
from pixio_robot.envs.randomisation import Appearance, moving_region, random_viewpoint
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.envs.rollout import plan_episodes
from pixio_robot.envs.scenes import open_scene, scene_names
from pixio_robot.errors import BadInput, DataError, MissingExtra, UnknownName
from pixio_robot.pretrain.probes.dense_data import open_dense

needs_metaworld = pytest.mark.skipif("metaworld/reach" not in registry.installed(), reason="needs the extra metaworld")

ARM = """
<mujoco>
  <worldbody>
    <light pos="0 0 2"/>
    <geom type="plane" size="2 2 .1" rgba=".6 .6 .6 1"/>
    <camera name="side" pos="0 -1.5 .8" xyaxes="1 0 0 0 .5 .9"/>
    <body pos="0 0 .2">
      <joint name="turn" type="hinge" axis="0 0 1" limited="true" range="-90 90"/>
      <geom type="capsule" fromto="0 0 0 .4 0 .2" size=".04" rgba=".8 .2 .1 1"/>
    </body>
  </worldbody>
  <actuator><motor joint="turn" ctrllimited="true" ctrlrange="-1 1"/></actuator>
</mujoco>
"""
SMALL = FrameSettings(
    scenes=("toy/reach",), frames=9, image_size=48, render=("fast",),
    keep_appearance_prob=0.3, scene_camera_prob=0.5, closeup_prob=0.3, clutter=4,
    frames_per_scene=3, shard=6, quality=90, seed=0,
)  # fmt: skip


def _read(folder: Path) -> list[tuple[np.ndarray, dict[str, object]]]:
    images = []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name in sorted(content):
            if name.endswith(".jpg"):
                image = cv2.imdecode(np.frombuffer(content[name], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
                images.append((image, json.loads(content[name.replace(".jpg", ".json")])))
    return images


@pytest.fixture
def arm(tmp_path: Path) -> Path:
    path = tmp_path / "arm.xml"
    path.write_text(ARM)
    return path


def test_bytes_depend_on_the_seed_only(tmp_path: Path) -> None:
    render_frames(SMALL, tmp_path / "a", workers=1)
    render_frames(SMALL, tmp_path / "b", workers=2)
    render_frames(replace(SMALL, seed=1), tmp_path / "c", workers=2)
    first, second, other = (
        [path.read_bytes() for path in sorted((tmp_path / name).glob("*.tar"))] for name in ("a", "b", "c")
    )
    assert first == second and len(first) == 2 and first != other


def test_a_longer_set_begins_with_the_shorter(tmp_path: Path) -> None:
    render_frames(SMALL, tmp_path / "short", workers=1)
    render_frames(replace(SMALL, frames=12), tmp_path / "long", workers=1)
    name = "frames-00000.tar"
    assert (tmp_path / "short" / name).read_bytes() == (tmp_path / "long" / name).read_bytes()
    assert len(_read(tmp_path / "short")) == 9 and len(_read(tmp_path / "long")) == 12


def test_only_missing_shards_are_rendered_again(tmp_path: Path) -> None:
    out = tmp_path / "frames"
    render_frames(SMALL, out, workers=1)
    shard = out / "frames-00001.tar"
    before, kept = shard.read_bytes(), (out / "frames-00000.tar").stat().st_mtime_ns
    shard.unlink()
    report = render_frames(SMALL, out, workers=1)
    assert (report.shards, report.reused) == (2, 1)
    assert shard.read_bytes() == before and (out / "frames-00000.tar").stat().st_mtime_ns == kept
    with pytest.raises(DataError, match="other settings"):
        render_frames(replace(SMALL, clutter=0), out)


def test_images_are_not_blank_and_differ(tmp_path: Path, arm: Path) -> None:
    settings = replace(SMALL, scenes=("toy/reach", str(arm)), frames=24, frames_per_scene=4, shard=24)
    render_frames(settings, tmp_path / "frames", workers=1)
    images = _read(tmp_path / "frames")
    assert {about["scene"] for _, about in images} == {"toy/reach", str(arm)}
    assert {about["keeps_appearance"] for _, about in images} == {True, False}
    assert len({about["camera"] for _, about in images}) >= 3
    images = np.stack([image for image, _ in images]).astype(float)
    assert images.shape == (24, 48, 48, 3)
    assert np.median(images.std(axis=(1, 2, 3))) > 10, "blank images"
    assert min(np.abs(a - b).mean() for a, b in itertools.pairwise(images)) > 0.1, "the same image twice"


def test_depth_lies_beside_the_same_images(tmp_path: Path, arm: Path) -> None:
    settings = replace(SMALL, scenes=("toy/reach", str(arm)), frames=12, frames_per_scene=4)
    render_frames(settings, tmp_path / "colour", workers=1)
    render_frames(replace(settings, depth=True), tmp_path / "depth", workers=1)
    assert all(
        (a == b).all() for (a, _), (b, _) in zip(_read(tmp_path / "colour"), _read(tmp_path / "depth"), strict=True)
    )
    images = open_dense(tmp_path / "depth", "depth")
    depths = np.stack([images.read(index).target for index in range(len(images))])
    known = depths > 0
    assert len(images) == 12 and known.mean() > 0.5
    assert np.median(depths[known]) > 0.1 and np.median(depths[known]) < 10
    nearest = min(range(12), key=lambda index: np.median(depths[index][known[index]]))
    assert depths[nearest].std() > 0.01, "flat depth"


def test_without_randomisation_a_scene_keeps_its_appearance(tmp_path: Path) -> None:
    settings = replace(SMALL, keep_appearance_prob=1.0, scene_camera_prob=1.0, frames=4)
    render_frames(settings, tmp_path / "frames", workers=1)
    env = registry.make("toy/reach", observe=("rgb",), image_size=48, render="fast")
    own = env.reset(seed=0)[0]["rgb"].astype(float)
    env.close()
    for image, about in _read(tmp_path / "frames"):
        assert about["keeps_appearance"] and about["camera"] == "front"
        assert np.abs(np.median(image, (0, 1)) - np.median(own, (0, 1))).max() < 25


def test_restore_undoes_a_random_appearance() -> None:
    scene = open_scene("toy/reach")
    names = ("geom_rgba", "mat_rgba", "light_diffuse", "tex_data")
    before = {name: getattr(scene.model, name).copy() for name in names}
    appearance = Appearance(scene.model)
    appearance.draw(np.random.default_rng(0))
    assert not np.array_equal(before["geom_rgba"], scene.model.geom_rgba)
    appearance.restore()
    assert all(np.array_equal(before[name], getattr(scene.model, name)) for name in names)


def test_viewpoints_are_aimed_at_moving_bodies() -> None:
    scene, rng = open_scene("toy/reach"), np.random.default_rng(0)
    scene.reset(rng)
    region = moving_region(scene.model, scene.data)
    for closeup, nearest in ((True, 1.5), (False, 4.0)):
        viewpoint = random_viewpoint(scene.model, scene.data, closeup, rng)
        assert np.linalg.norm(viewpoint.lookat - region.positions, axis=1).min() < region.radius
        assert viewpoint.distance < nearest * region.radius and -75 <= viewpoint.elevation <= -5


def test_joints_stay_in_their_ranges_and_states_finite(arm: Path) -> None:
    scene, rng = open_scene(str(arm)), np.random.default_rng(0)
    angles = []
    for _ in range(20):
        scene.reset(rng)
        angles.append(float(scene.data.qpos[0]))
        scene.advance(rng)
        assert np.isfinite(scene.data.qpos).all() and scene.data.time > 0
    assert max(np.abs(angles)) < np.pi / 2 and np.std(angles) > 0.3


@needs_metaworld
def test_no_image_is_of_an_evaluated_initial_state(tmp_path: Path) -> None:
    settings = replace(SMALL, scenes=("metaworld/hammer",), frames=30, frames_per_scene=10, shard=30)
    render_frames(settings, tmp_path / "frames", workers=1)
    hashes = {about["initial_state_hash"] for _, about in _read(tmp_path / "frames")}
    spec = TaskSpec("metaworld/hammer", observe=("proprio",))
    evaluated = {plan.initial_state_hash for plan in plan_episodes(spec, 25, 10_000)}
    assert len(hashes) == 3 and all(len(each) == 12 for each in hashes) and not hashes & evaluated


@pytest.mark.parametrize("package", ["dm_control", "gymnasium_robotics"])
def test_scenes_of_other_packages(package: str, tmp_path: Path) -> None:
    """Their paths are recorded without this machine's folders."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")
    pattern = {"dm_control": "suite/walk*.xml", "gymnasium_robotics": "envs/assets/adroit_hand/adroit_door.xml"}[
        package
    ]
    settings = replace(SMALL, scenes=(f"{package}:{pattern}",), frames=4, frames_per_scene=4)
    render_frames(settings, tmp_path / "frames", workers=1)
    images = _read(tmp_path / "frames")
    assert {str(about["scene"]).replace("walker", "walk*") for _, about in images} == {f"{package}:{pattern}"}
    assert max(image.std() for image, _ in images) > 10


def test_sources_select_tasks_and_files(arm: Path) -> None:
    (arm.parent / "broken.xml").write_text("<mujoco><worldbody><geom/></worldbody>")
    assert scene_names([str(arm.parent / "a*.xml"), "toy"]) == [str(arm), "toy/reach"]
    for source, error, words in (
        ("toy/raech", UnknownName, "no scene 'toy/raech'"),
        ("nowhere/*.xml", UnknownName, "nowhere"),
        ("no_such_package:*.xml", UnknownName, "no_such_package"),
    ):
        with pytest.raises(error, match=words):
            scene_names([source])
    with pytest.raises(BadInput, match=r"cannot read .*broken\.xml"):
        open_scene(str(arm.parent / "broken.xml"))
    with pytest.raises(BadInput, match="cannot read"):
        render_frames(replace(SMALL, scenes=(str(arm.parent / "broken.xml"),)), arm.parent / "frames")
    assert not (arm.parent / "frames").exists()


@pytest.mark.skipif("metaworld/reach" in registry.installed(), reason="needs metaworld to be missing")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(MissingExtra, match="dmc"):
        scene_names(["dm_control:suite/*.xml"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scenes=toy/reach", "scene_camera_prob=1.5"], "scene_camera_prob=1.5"),
        (["scenes=toy/reach", "render=[quick]"], "no render quality 'quick'"),
        (["scenes=toy/reach", "image_size=4"], "image_size=4"),
        (["scenes=[]"], "scenes is empty"),
        (["scenes=arm.xml"], "no scene 'arm.xml'"),
        ([], "render_frames needs scenes=..."),
    ],
)
def test_bad_settings_are_refused_with_a_message(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["render_frames", *words, f"out={tmp_path / 'out'}"]) == 1
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown
    assert not (tmp_path / "out").exists()
