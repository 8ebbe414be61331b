"""Six kinds of flat images: textures, figures, branches and text.

Each is drawn from a random generator, (S, S, 3) uint8 RGB for a side S, in a millisecond or two.
"""

import string

import cv2
import numpy as np

from .paint import any_colour, backdrop, noise, palette, polygon

_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_SCRIPT_COMPLEX)
_LETTERS = np.array(list(string.ascii_letters + string.digits))


def clouds(generator: np.random.Generator, side: int) -> np.ndarray:
    """Draw noise of a random spectrum in a random palette: smoke, marble, grass."""
    field = noise(generator, side, generator.uniform(0.35, 1.0))
    if generator.random() < 0.4:  # ridges
        field = np.abs(2 * field - 1)
    return palette(generator)[(255 * field).astype(np.uint8)]


def waves(generator: np.random.Generator, side: int) -> np.ndarray:
    """Draw stripes, checks and plaids, bent a little."""
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) / side
    bend = generator.uniform(0, 0.35) * (noise(generator, side, 0.4) - 0.5)
    angle, count = generator.uniform(0, np.pi), generator.uniform(2, 14)
    along = np.cos(angle) * columns + np.sin(angle) * rows + bend
    across = np.cos(angle) * rows - np.sin(angle) * columns + bend
    first = np.sin(2 * np.pi * count * along)
    second = np.sin(2 * np.pi * count * generator.uniform(0.5, 1.5) * across + 1)
    kind = generator.integers(4)
    field = (first, first * second, first + second, np.maximum(first, second))[kind]
    if generator.random() < 0.5:
        field = np.clip(4 * field, -1, 1)  # sharp edges
    field = (field - field.min()) / max(float(np.ptp(field)), 1e-6)
    return palette(generator)[(255 * field).astype(np.uint8)]


def mosaic(generator: np.random.Generator, side: int) -> np.ndarray:
    """Draw cells around random points, each of its own colour: stones, tiles, scales."""
    cells = int(generator.integers(8, 90))
    ground = np.full((side, side), 255, np.uint8)
    points = generator.integers(0, side, (cells, 2))
    ground[points[:, 0], points[:, 1]] = 0
    distance, owner = cv2.distanceTransformWithLabels(ground, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    shades = palette(generator)[generator.integers(0, 256, cells + 2)]
    image = shades[owner]
    width = np.sqrt(side * side / cells)
    if generator.random() < 0.6:  # dark towards the rim, as if round
        shade = np.clip(1.15 - generator.uniform(0.4, 1.2) * distance / width, 0, 1).astype(np.float32)
        image = cv2.multiply(image, cv2.merge([shade] * 3), dtype=cv2.CV_8U)
    if generator.random() < 0.5:
        seams = cv2.morphologyEx(owner.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        image[seams] = any_colour(generator)
    return image


def shapes(generator: np.random.Generator, side: int) -> np.ndarray:
    """Draw overlapping discs, rings, stars and rectangles on a plain or shaded ground."""
    image = backdrop(generator, side)
    for _ in range(int(generator.integers(3, 14))):
        colour, size = any_colour(generator), side * generator.uniform(0.05, 0.3)
        middle = generator.uniform(0, side, 2)
        kind = generator.integers(4)
        thickness = -1 if generator.random() < 0.75 else int(generator.integers(1, 6))
        if kind == 0:
            axes = (int(size), int(size * generator.uniform(0.4, 1)))
            cv2.ellipse(image, middle.astype(int).tolist(), axes, 360 * generator.random(), 0, 360, colour, thickness)
            continue
        corners = (3, 4, 5, 6, 10)[generator.integers(5)]
        angles = generator.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
        radii = np.full(corners, size)
        if corners == 10:
            radii[::2] *= 0.45  # a star
        points = middle + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
        polygon(image, points, colour, thickness)
    return image


def strokes(generator: np.random.Generator, side: int) -> np.ndarray:
    """Draw branches that fork and thin out, like trees, roots or cracks."""
    image = backdrop(generator, side)
    for _ in range(int(generator.integers(1, 4))):
        colour = any_colour(generator)
        width = generator.uniform(3, 9) * side / 128
        start = np.array([generator.uniform(0.1, 0.9) * side, side])
        branches = [(start, -np.pi / 2 + generator.normal(0, 0.3), side * generator.uniform(0.15, 0.3), width)]
        while branches:
            begin, angle, length, width = branches.pop()
            end = begin + length * np.array([np.cos(angle), np.sin(angle)])
            cv2.line(
                image,
                tuple(begin.astype(int).tolist()),
                tuple(end.astype(int).tolist()),
                colour,
                max(1, round(width)),
                cv2.LINE_AA,
            )
            if length > side * 0.05:
                spread = generator.uniform(0.2, 0.8, 2) * (-1, 1)
                branches += [
                    (end, angle + turn, length * generator.uniform(0.65, 0.85), width * 0.7) for turn in spread
                ]
    return image


def text(generator: np.random.Generator, side: int) -> np.ndarray:
    """Draw lines of letters, straight or tilted: pages, labels, signs."""
    light = generator.random() < 0.6
    paper, ink = ((190, 255), (0, 110)) if light else ((0, 90), (150, 255))
    image = np.empty((side, side, 3), np.uint8)
    image[:] = generator.integers(*paper, 3)
    red, green, blue = map(float, generator.integers(*ink, 3))
    font = _FONTS[generator.integers(len(_FONTS))]
    height = generator.uniform(7, 26) * side / 128
    thickness = 1 if height < 14 else int(generator.integers(1, 3))
    spacing = height * generator.uniform(1.1, 1.6)
    bottom = generator.uniform(0.5, 1) * spacing
    while bottom < side + spacing:
        letters = "".join(generator.choice(_LETTERS, int(2 * side / height)))
        gaps = generator.integers(2, 9, len(letters))
        words = " ".join(letters[begin : begin + gap] for begin, gap in zip(np.cumsum(gaps) - gaps, gaps, strict=True))
        at = (round(generator.uniform(-0.5, 1.5) * height), round(bottom))
        cv2.putText(image, words.strip(), at, font, height / 24, (red, green, blue), thickness, cv2.LINE_AA)
        bottom += spacing
    if generator.random() < 0.5:  # seen from the side
        frame = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
        seen = (frame + generator.normal(0, 0.12 * side, (4, 2))).astype(np.float32)
        around = any_colour(generator)
        matrix = cv2.getPerspectiveTransform(frame, seen)
        return np.asarray(cv2.warpPerspective(image, matrix, (side, side), borderValue=around), np.uint8)
    return image
