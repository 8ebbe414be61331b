"""Points, registration, crops and resizes: laws on analytic scenes and on renders with known depth."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from pixio_robot.cameras.frame import Frame, Intrinsics, metric, rgbd_frame, to_sensor_units
from pixio_robot.cameras.geometry import (
    crop,
    points,
    registered,
    resize,
    resize_depth,
    squared,
)
from pixio_robot.cameras.lenses import project, rays
from pixio_robot.cameras.registration import register
from pixio_robot.envs.registry import make
from pixio_robot.errors import BadInput

PLAIN = Intrinsics(64, 48, 50.0, 52.0, 31.0, 24.5)
LENSES = [
    PLAIN,
    PLAIN._replace(model="opencv", coefficients=(-0.1, 0.02, 0.001, -0.002, 0.003)),
    PLAIN._replace(model="opencv", coefficients=(0.5, -2.6, 0.0003, -0.0002, 1.4, 0.4, -2.4, 1.3)),
    PLAIN._replace(model="inverse_brown_conrady", coefficients=(0.05, -0.03, 0.001, 0.0005, 0.01)),
]


def _pose(turn: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = cv2.Rodrigues(np.array(turn, float))[0]
    matrix[:3, 3] = shift
    return matrix


def _plane(known: Intrinsics, normal: tuple[float, float, float], distance: float) -> np.ndarray:
    """Return the depth of the plane n.p = distance, seen by every pixel, from the formula alone."""
    columns, rows = np.meshgrid(np.arange(known.width), np.arange(known.height))
    x, y = (columns - known.cx) / known.fx, (rows - known.cy) / known.fy
    return (distance / (normal[0] * x + normal[1] * y + normal[2])).astype(np.float32)


@pytest.mark.parametrize("lens", LENSES, ids=lambda lens: f"{lens.model}{len(lens.coefficients)}")
def test_projection_inverts_rays(lens: Intrinsics) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.uniform((0, 0), (lens.width - 1, lens.height - 1), (200, 2))
    z = rng.uniform(0.2, 5, (200, 1))
    there = np.column_stack([rays(lens, pixels) * z, z])
    assert np.abs(project(lens, there) - pixels).max() < 1e-3
    assert (np.abs(rays(lens, pixels) - rays(PLAIN, pixels)).max() > 1e-3) == lens.distorted


def test_opencv_agrees_on_projection() -> None:
    there = np.random.default_rng(1).uniform((-0.4, -0.3, 1), (0.4, 0.3, 3), (50, 3))
    for lens in LENSES[:3]:
        theirs = cv2.projectPoints(
            there, np.zeros(3), np.zeros(3), lens.matrix, np.array(lens.coefficients or (0.0,) * 5)
        )
        assert np.abs(project(lens, there) - theirs[0][:, 0]).max() < 1e-9


def test_invalid_depth_stays_invalid() -> None:
    sent = np.array([[0, 1, 65535], [700, 65534, 2]], np.uint16)
    depth, valid = metric(sent, 0.001)
    assert valid.tolist() == [[False, True, False], [True, True, True]]
    assert (depth[~valid] == 0).all() and depth[1, 0] == pytest.approx(0.7)
    floats = np.array([[np.nan, np.inf, -np.inf], [-1, 0, 1e-9], [1e6, 0.5, 3.0]], np.float32)
    depth, valid = metric(floats)
    assert valid.sum() == 2 and depth[valid].tolist() == [0.5, 3.0] and (depth[~valid] == 0).all()
    with pytest.raises(BadInput, match="unit"):
        metric(sent)
    with pytest.raises(BadInput, match="integers or floats"):
        metric(np.zeros((2, 2, 1)), 0.001)


@pytest.mark.parametrize("unit", [0.001, 0.0001, 1 / 5000, 0.00025])
def test_sensor_units_round_trip(unit: float) -> None:
    sent = np.arange(65535, dtype=np.uint16)[None]
    depth, valid = metric(sent, unit)
    again = to_sensor_units(depth, unit)
    assert np.array_equal(again[valid], sent[valid])
    assert np.array_equal(metric(again, unit)[0], depth)
    with pytest.raises(BadInput, match="does not fit"):
        to_sensor_units(np.array([[70.0]], np.float32), 0.001)


def test_integers_and_floats_have_the_same_bounds() -> None:
    depth, valid = metric(np.array([[9, 12, 2**31 - 1]], np.int32), 1e-4)
    assert valid.tolist() == [[False, True, False]] and depth[0, 1] == np.float32(12) * np.float32(1e-4)
    assert not depth[~valid].any()


def test_depth_that_is_not_finite_is_invalid_everywhere() -> None:
    known = Intrinsics(32, 24, 30.0, 30.0, 15.5, 11.5)
    whole = np.full((24, 32), 1.5, np.float32)
    whole[4:9, 4:9] = 0
    broken = whole.copy()
    broken[4:9, 4:9] = [np.nan, np.inf, -np.inf, -1, np.nan]
    target = known._replace(fx=31.0)
    assert np.array_equal(register(broken, known, target, np.eye(4)), register(whole, known, target, np.eye(4)))
    assert np.array_equal(resize_depth(broken, 12, 16), resize_depth(whole, 12, 16))


def test_registration_with_itself_changes_nothing() -> None:
    depth = _plane(PLAIN, (0.1, -0.2, 1), 1.5)
    depth[10:20, 30:33] = 0
    assert np.allclose(register(depth, PLAIN, PLAIN, np.eye(4)), depth, rtol=1e-6)
    assert np.allclose(register(depth, LENSES[2], LENSES[2], np.eye(4)), depth)


@pytest.mark.parametrize("lens", LENSES[1:], ids=lambda lens: f"{lens.model}{len(lens.coefficients)}")
@pytest.mark.parametrize("finer", [1, 2, 3])
def test_a_registered_plane_is_the_plane_of_the_other_camera(lens: Intrinsics, finer: int) -> None:
    """Other pose, other lens, other size: what arrives is what the formula says of the other camera."""
    normal, distance = np.array([0.1, -0.15, 1.0]), 1.2
    columns, rows = np.meshgrid(np.arange(lens.width), np.arange(lens.height))
    seen = rays(lens, np.column_stack([columns.ravel(), rows.ravel()]))
    depth = (distance / (seen @ normal[:2] + 1)).astype(np.float32).reshape(lens.height, lens.width)
    transform = _pose((0.01, -0.02, 0.015), (0.03, -0.01, 0.005))
    target = Intrinsics(60 * finer, 44 * finer, 55.0 * finer, 54.0 * finer, 29.0 * finer, 21.0 * finer)
    moved_normal = transform[:3, :3] @ normal
    expected = _plane(target, tuple(moved_normal), distance + float(moved_normal @ transform[:3, 3]))
    drawn = register(depth, lens, target, transform)
    inner = np.s_[6 * finer : -6 * finer, 6 * finer : -6 * finer]
    assert (drawn[inner] > 0).all(), "a seam"
    assert np.abs(drawn[inner] / expected[inner] - 1).max() < 0.012  # half a pixel of a slanted plane


def test_the_nearest_surface_occludes() -> None:
    depth = np.full((48, 64), 2.0, np.float32)
    depth[10:30, 20:40] = 0.5
    drawn = register(depth, PLAIN, PLAIN, _pose((0, 0, 0), (0.1, 0, 0)))
    shifts = {z: 0.1 * PLAIN.fx / z for z in (0.5, 2.0)}
    assert shifts[0.5] == 10 and (drawn[12:28, 31:49] == 0.5).all(), "the near square moved by its own disparity"
    assert set(np.unique(drawn)) == {0.0, 0.5, 2.0}, "no distance between the two"
    assert (drawn[12:28, 25:29] == 0).all(), "what the near square hid stays unknown"


def test_points_behind_the_other_camera_are_not_rendered() -> None:
    depth = np.full((48, 64), 0.3, np.float32)
    assert not register(depth, PLAIN, PLAIN, _pose((0, 0, 0), (0, 0, -1.0))).any()


def test_rendered_depth_of_two_cameras_agrees() -> None:
    """The toy's two cameras see the same scene; registered, one's depth is the other's wherever both look."""
    env = make("toy/reach", observe=("depth",), cameras=("front", "top"), image_size=96, render="fast")
    observation, _ = env.reset(seed=1)
    known = env.calibration()
    env.close()
    lens = {name: Intrinsics.from_matrix(each.intrinsics, 96, 96) for name, each in known.items()}
    transform = np.linalg.inv(known["top"].camera_to_world) @ known["front"].camera_to_world
    drawn = register(observation["depth"], lens["front"], lens["top"], transform)
    truth = observation["depth_top"]
    both = (drawn > 0) & (truth > 0)
    assert both.mean() > 0.3
    apart = np.abs(drawn[both] - truth[both])
    assert np.median(apart) < 0.003 and np.mean(apart < 0.02) > 0.95  # the rest are edges seen from elsewhere


def _frame() -> Frame:
    rng = np.random.default_rng(0)
    depth = _plane(PLAIN, (0.1, -0.2, 1), 1.5)
    depth[rng.random(depth.shape) < 0.1] = 0
    return rgbd_frame(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), depth, PLAIN)


def test_crops_and_resizes_keep_the_points() -> None:
    frame = _frame()
    assert frame.depth is not None and frame.intrinsics is not None
    whole = points(frame.depth, frame.intrinsics)
    part = crop(frame, 5, 7, 30, 40)
    assert part.depth is not None and part.intrinsics is not None and part.rgb is not None
    assert np.allclose(points(part.depth, part.intrinsics), whole[5:35, 7:47], atol=1e-6)
    assert part.intrinsics[:2] == (40, 30) and part.rgb.shape == (30, 40, 3)
    smooth = replace(frame, depth=_plane(PLAIN, (0.1, -0.2, 1), 1.5))
    for height, width in ((24, 32), (96, 128), (16, 64)):
        small = resize(smooth, height, width)
        assert small.depth is not None and small.intrinsics is not None and small.valid is not None
        seen = points(small.depth, small.intrinsics)[2:-2, 2:-2].reshape(-1, 3)
        assert np.abs(seen @ (0.1, -0.2, 1) - 1.5).max() < 0.01, "the plane is where it was"
        assert small.valid.all() and small.is_registered


def test_resized_depth_stays_between_valid_distances() -> None:
    rng = np.random.default_rng(3)
    depth = rng.uniform(0.5, 4, (60, 80)).astype(np.float32)
    depth[rng.random(depth.shape) < 0.4] = 0
    small = resize_depth(depth, 20, 20)
    blocks = depth.reshape(20, 3, 20, 4).swapaxes(1, 2).reshape(20, 20, 12)
    share = (blocks > 0).mean(-1)
    assert np.array_equal(small > 0, share >= 0.5), "valid where at least half is"
    kept = np.where(blocks > 0, blocks, np.nan)[share >= 0.5]
    assert np.allclose(small[share >= 0.5], np.nanmean(kept, -1), rtol=1e-5), "the mean of what is valid"
    for height, width in ((23, 31), (60, 80), (100, 140)):
        changed = resize_depth(depth, height, width)
        seen = changed[changed > 0]
        assert seen.min() >= 0.5 - 1e-4 and seen.max() <= 4 + 1e-4, "never below or above what was measured"
    assert not resize_depth(np.zeros((9, 9), np.float32), 4, 4).any()


def test_a_square_of_the_right_size_is_the_frame_itself() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    depth = np.random.default_rng(0).random((32, 32), dtype=np.float32) + 0.1
    frame = rgbd_frame(rgb, depth, Intrinsics(32, 32, 30, 30, 15.5, 15.5))
    same = squared(frame, 32)
    assert np.array_equal(same.rgb, rgb) and np.array_equal(same.depth, depth) and same.intrinsics == frame.intrinsics
    wide = squared(_frame(), 24)
    assert wide.rgb is not None and wide.rgb.shape == (24, 24, 3) and wide.intrinsics is not None
    assert wide.intrinsics.cx == pytest.approx((PLAIN.cx - 8 + 0.5) / 2 - 0.5)


def test_unregistered_frames_cannot_be_cropped() -> None:
    apart = replace(_frame(), depth_to_color=_pose((0, 0, 0), (0.02, 0, 0)))
    for change in (lambda: crop(apart, 0, 0, 4, 4), lambda: resize(apart, 8, 8), lambda: squared(apart, 8)):
        with pytest.raises(BadInput, match="registered"):
            change()
    together = registered(apart)
    assert together.is_registered and together.depth_intrinsics == PLAIN and registered(together) is together
    unknown = replace(apart, depth_to_color=None, intrinsics=None)
    with pytest.raises(BadInput, match="does not provide the colour camera's intrinsics, the pose"):
        registered(unknown)
    with pytest.raises(BadInput, match="not inside"):
        crop(together, 40, 0, 20, 10)


def _drawn_pixel_by_pixel(depth: np.ndarray, source: Intrinsics, target: Intrinsics, pose: np.ndarray) -> np.ndarray:
    """Draw each depth pixel between its projected corners, one after the other, as the definition says."""
    image = np.full((target.height, target.width), np.inf)
    for row, column in np.argwhere(depth > 0):
        corners = np.array([column, row]) + np.array([[-0.499], [0.499]])
        there = np.column_stack([rays(source, corners), np.ones(2)]) * float(depth[row, column])
        there = there @ pose[:3, :3].T + pose[:3, 3]
        far = there[:, 2].mean()
        if there[:, 2].min() <= 1e-6:
            continue
        edges = np.floor(project(target, there) + 0.5)
        (left, top), (right, bottom) = edges.min(axis=0), np.minimum(edges.max(axis=0), edges.min(axis=0) + 15)
        part = np.s_[max(int(top), 0) : max(int(bottom) + 1, 0), max(int(left), 0) : max(int(right) + 1, 0)]
        image[part] = np.minimum(image[part], far)
    return np.where(np.isfinite(image), image, 0)


@pytest.mark.parametrize(
    ("turn", "shift"),
    [
        ((0.02, -0.03, 0.01), (0.05, -0.02, 0.01)),
        ((0.0, 0.0, np.pi), (0.0, 0.1, 0.0)),  # upside down: the corners change places
        ((0.0, 0.5, 0.3), (-0.4, 0.0, 0.2)),  # most of it out of view
        ((0.0, 0.0, 0.0), (0.0, 0.0, -0.6)),  # much nearer, some behind
        ((0.0, np.pi, 0.0), (0.0, 0.0, 0.0)),  # looking away
    ],
)
@pytest.mark.parametrize(
    "target", [(60, 44, 40.0), (150, 100, 130.0), (20, 16, 14.0)], ids=["same", "finer", "coarser"]
)
def test_registration_equals_its_definition(
    turn: tuple[float, float, float], shift: tuple[float, float, float], target: tuple[int, int, float]
) -> None:
    """Whatever is left out as not in view and however it is drawn at once: pixel by pixel it is the same."""
    rng = np.random.default_rng(7)
    source = PLAIN._replace(width=48, height=36, cx=23.0, cy=18.0)
    depth = cv2.GaussianBlur(rng.uniform(0.3, 3, (36, 48)), (0, 0), 2).astype(np.float32)
    depth[8:20, 10:24] = rng.uniform(0.4, 0.8)
    depth[rng.random(depth.shape) < 0.1] = 0
    width, height, focal = target
    for model, coefficients in (("none", ()), ("opencv", (-0.05, 0.01, 0.001, -0.002, 0.0))):
        lens = Intrinsics(width, height, focal, focal, width / 2 - 0.5, height / 2 + 0.5, model, coefficients)
        pose = _pose(turn, shift)
        drawn, expected = register(depth, source, lens, pose), _drawn_pixel_by_pixel(depth, source, lens, pose)
        assert drawn.shape == expected.shape and drawn.dtype == np.float32
        assert np.mean(np.abs(drawn - expected) > 1e-4) < 0.003, "but for edges within rounding of a pixel's"
        assert expected.any() == (turn[1] < 3)
