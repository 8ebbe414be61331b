"""Rooms and tables in perspective, from a pinhole camera and boxes.

Each is drawn from a random generator, (S, S, 3) uint8 RGB for a side S, in a millisecond or two.
"""

import cv2
import numpy as np

from .paint import Colour, any_colour, backdrop, noise, polygon, shaded, vivid

_FACES = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))  # of a box's corners
_SUN = np.array([0.45, 0.8, -0.4])  # where light comes from: right, up, from behind the camera


def rooms(generator: np.random.Generator, side: int) -> np.ndarray:
    """Draw the inside of a room: floor, walls, a window or image, furniture."""
    width, height, depth = generator.uniform(3, 5.5), generator.uniform(2.3, 3.2), generator.uniform(3, 7)  # [m]
    eye = np.array([generator.uniform(-0.25, 0.25) * width, generator.uniform(1, 1.8), -0.4])
    camera = _Camera(eye, generator.normal(0, 0.15), generator.uniform(-0.02, 0.22), generator.uniform(0.6, 0.95), side)
    image = np.empty((side, side, 3), np.uint8)
    wall, floor, ceiling = any_colour(generator, 90), any_colour(generator, 40), any_colour(generator, 170)
    image[:] = wall
    near, left, right = 0.0, -width / 2, width / 2
    room = _corners((left, 0, near), (right, height, depth))
    for face, colour in ((3, ceiling), (4, shaded(wall, 0.8)), (5, shaded(wall, 0.92)), (1, wall)):
        polygon(image, camera.project(_walled(room[list(_FACES[face])])), colour)
    ground = room[list(_FACES[2])]
    tiles = _tiles(generator, floor, 64)
    camera.lay(image, tiles, _walled(ground))
    for _ in range(int(generator.integers(1, 4))):  # windows, doors, images
        at, span = generator.uniform(left * 0.8, right * 0.5), generator.uniform(0.5, 1.4)
        door = generator.random() < 0.3
        low, high = (0.0, 2.0) if door else np.sort(generator.uniform(0.7, height - 0.2, 2))
        if generator.random() < 0.5:
            place = [(at, low, depth), (at + span, low, depth), (at + span, high, depth), (at, high, depth)]
        else:
            side_wall, far = (left, right)[generator.integers(2)], generator.uniform(1.2, depth - span)
            place = [(side_wall, low, far), (side_wall, low, far + span), (side_wall, high, far + span)]
            place.append((side_wall, high, far))
        points = camera.project(np.array(place))
        polygon(image, points, any_colour(generator, 30 if door else 120))
        polygon(image, points, any_colour(generator, 30), 1 + side // 96)
    boxes = []
    for _ in range(int(generator.integers(1, 6))):
        size = generator.uniform((0.3, 0.3, 0.3), (1.4, 1.5, 0.9))
        corner = generator.uniform((left, 0, 1.0), (right - size[0], 0.01, max(1.1, depth - size[2])))
        boxes.append((_corners(corner, corner + size), any_colour(generator)))
    camera.draw(image, boxes)
    return image


def tables(generator: np.random.Generator, side: int) -> np.ndarray:
    """Draw coloured blocks on a table, seen from above at a slant, with their shadows."""
    distance, pitch = generator.uniform(0.75, 1.3), generator.uniform(0.5, 1.1)  # [m], [rad] down
    eye = np.array([generator.uniform(-0.25, 0.25), distance * np.sin(pitch), -distance * np.cos(pitch)])
    camera = _Camera(eye, -np.arctan2(eye[0], -eye[2]), pitch, generator.uniform(0.9, 1.4), side)
    image = backdrop(generator, side)
    half = generator.uniform(0.35, 0.6, 2)
    top = np.array([(-half[0], 0, -half[1]), (half[0], 0, -half[1]), (half[0], 0, half[1]), (-half[0], 0, half[1])])
    camera.draw(image, [(_corners((-half[0], -0.05, -half[1]), (half[0], 0, half[1])), any_colour(generator, 60))])
    camera.lay(image, _tiles(generator, any_colour(generator, 80), 96), top)
    boxes = []
    shadows = image.copy()
    for _ in range(int(generator.integers(2, 9))):
        size = (
            generator.uniform(0.04, 0.2, 3) if generator.random() < 0.5 else np.full(3, generator.uniform(0.06, 0.15))
        )
        middle = generator.uniform(-0.7, 0.7, 2) * half
        corners = _corners(-size / 2, size / 2)
        turn = generator.uniform(0, np.pi)
        corners[:, 0], corners[:, 2] = (
            np.cos(turn) * corners[:, 0] - np.sin(turn) * corners[:, 2] + middle[0],
            np.sin(turn) * corners[:, 0] + np.cos(turn) * corners[:, 2] + middle[1],
        )
        corners[:, 1] += size[1] / 2
        boxes.append((corners, vivid(generator)))
        fall = corners - _SUN * (corners[:, 1:2] / _SUN[1])  # down to the table, away from the light
        hull = cv2.convexHull(camera.project(fall).astype(np.float32))[:, 0]
        polygon(shadows, hull, (0, 0, 0))
    image = cv2.addWeighted(image, 0.6, shadows, 0.4, 0)
    camera.draw(image, boxes)
    return image


class _Camera:
    """A pinhole camera in metres: x right, y up, z away; turned by `yaw` and down by `pitch` [rad]."""

    def __init__(self, eye: np.ndarray, yaw: float, pitch: float, focal: float, side: int) -> None:
        self.eye, self._side, self._focal = eye, side, focal * side
        cos, sin = np.cos(yaw), np.sin(yaw)
        turned = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        cos, sin = np.cos(pitch), np.sin(pitch)
        self._rotation = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]) @ turned

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return the pixels (n, 2) of points (n, 3)."""
        seen = (points - self.eye) @ self._rotation.T
        scale = self._focal / np.maximum(seen[:, 2:], 0.05)
        return self._side / 2 + seen[:, :2] * (1, -1) * scale

    def lay(self, image: np.ndarray, texture: np.ndarray, corners: np.ndarray) -> None:
        """Draw a texture onto a flat quadrilateral (4, 3)."""
        count = len(texture)
        frame = np.array([[0, 0], [count, 0], [count, count], [0, count]], np.float32)
        seen = self.project(corners).astype(np.float32)
        matrix = cv2.getPerspectiveTransform(frame, seen)
        size = (self._side, self._side)
        drawn = cv2.warpPerspective(texture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        mask = np.zeros(size, np.uint8)
        polygon(mask, seen, (255, 255, 255))
        cv2.copyTo(drawn, mask, image)

    def draw(self, image: np.ndarray, boxes: list[tuple[np.ndarray, Colour]]) -> None:
        """Draw boxes of corners (8, 3), the farthest first, each face as light falls on it."""
        for corners, colour in sorted(boxes, key=lambda box: -float(np.linalg.norm(box[0].mean(0) - self.eye))):
            middle = corners.mean(0)
            pixels = self.project(corners)
            for face in _FACES:
                quad = corners[list(face)]
                outward = quad.mean(0) - middle
                if outward @ (self.eye - quad.mean(0)) > 0:
                    light = 0.55 + 0.45 * float(outward @ _SUN) / (float(np.linalg.norm(outward)) + 1e-9)
                    polygon(image, pixels[list(face)], shaded(colour, light))


def _corners(low: object, high: object) -> np.ndarray:
    """Return the corners (8, 3) of a box, in the order that `_FACES` counts on."""
    (a, b, c), (d, e, f) = np.asarray(low, float), np.asarray(high, float)
    return np.array([(x, y, z) for z in (c, f) for y in (b, e) for x in (a, d)])


def _tiles(generator: np.random.Generator, colour: Colour, side: int) -> np.ndarray:
    """Return a floor or table top (S, S, 3): wood, tiles, carpet or plain."""
    grain = cv2.resize(generator.random((side, 4), np.float32), (side, side)) * 0.3 + 0.75
    kind = generator.integers(4)
    if kind == 0:  # planks
        grain = np.repeat(generator.uniform(0.7, 1.05, 8), side // 8)[:, None].astype(np.float32) * grain
    elif kind == 1:  # tiles
        count = int(generator.integers(3, 9))
        checks = (np.indices((count, count)).sum(0) % 2).astype(np.float32) * generator.uniform(0.15, 0.6) + 0.6
        grain = cv2.resize(checks, (side, side), interpolation=cv2.INTER_NEAREST)
    elif kind == 2:  # carpet
        grain = 0.6 + 0.5 * noise(generator, side, 0.9)
    return np.clip(grain[..., None] * np.array(colour, np.float32), 0, 255).astype(np.uint8)


def _walled(points: np.ndarray) -> np.ndarray:
    """Bring the near end of a wall in front of the camera."""
    points = points.copy()
    points[:, 2] = np.maximum(points[:, 2], 0.05)
    return points
