"""What drawn images are made of: colours, palettes, noise, polygons.

Shapes: S side of a square image.
"""

import cv2
import numpy as np

Colour = tuple[float, float, float]  # red, green, blue in 0 to 255


def noise(generator: np.random.Generator, side: int, roughness: float) -> np.ndarray:
    """Return a random field (S, S) float32 in [0, 1]: octaves of noise, each `roughness` times the coarser one."""
    total, weight, cells = np.zeros((side, side), np.float32), 1.0, int(generator.integers(2, 6))
    while cells < side:
        shape = (cells, max(2, int(cells * generator.uniform(0.5, 1.5))))
        octave = generator.random(shape, np.float32)
        total += weight * cv2.resize(octave, (side, side), interpolation=cv2.INTER_CUBIC)
        weight, cells = weight * roughness, cells * 2
    low, high, _, _ = cv2.minMaxLoc(total)
    return (total - np.float32(low)) / np.float32(max(high - low, 1e-6))


def palette(generator: np.random.Generator) -> np.ndarray:
    """Return 256 colours (256, 3) that run through a few random ones."""
    stops = generator.integers(0, 256, (int(generator.integers(2, 6)), 1, 3), np.uint8)
    return cv2.resize(stops, (1, 256), interpolation=cv2.INTER_LINEAR)[:, 0]


def backdrop(generator: np.random.Generator, side: int) -> np.ndarray:
    """Return a plain colour or soft patches of one tone, (S, S, 3) uint8."""
    if generator.random() < 0.3:
        image = np.empty((side, side, 3), np.uint8)
        image[:] = any_colour(generator)
        return image
    cells = int(generator.integers(2, 5))
    patches = np.array(any_colour(generator)) + generator.normal(0, 45, (cells, cells, 3))  # of one tone
    patches = np.clip(patches, 0, 255).astype(np.uint8)
    return cv2.resize(patches, (side, side), interpolation=cv2.INTER_CUBIC)


def polygon(image: np.ndarray, points: np.ndarray, colour: Colour, thickness: int = -1) -> None:
    """Fill a polygon of points (n, 2) [px], or draw its outline where a thickness is given."""
    pixels = np.clip(points * 16, -1e6, 1e6).astype(np.int32)[None]  # in sixteenths
    if thickness < 0:
        cv2.fillPoly(image, pixels, colour, cv2.LINE_AA, 4)
    else:
        cv2.polylines(image, pixels, True, colour, thickness, cv2.LINE_AA, 4)


def any_colour(generator: np.random.Generator, least: int = 0) -> Colour:
    """Return a colour none of whose parts is below `least`."""
    red, green, blue = generator.integers(least, 256, 3)
    return float(red), float(green), float(blue)


def shaded(colour: Colour, light: float) -> Colour:
    """Return a colour under more or less light."""
    red, green, blue = (min(255.0, value * light) for value in colour)
    return red, green, blue


def vivid(generator: np.random.Generator) -> Colour:
    """Return a saturated colour, as toys have."""
    hue = np.array([[[generator.integers(180), generator.integers(170, 256), generator.integers(140, 256)]]], np.uint8)
    red, green, blue = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0]
    return float(red), float(green), float(blue)
