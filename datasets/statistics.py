"""How vectors are normalised: an offset and a scale for each element, from the training frames.

Nothing is clipped: values outside the range seen in training stay outside [-1, 1].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError, UnknownName, closest
from .dataset import EpisodeDataset

MODES = ("none", "mean_std", "min_max", "quantile")
_QUANTILES = (0.01, 0.99)
_SMALLEST = 1e-6  # scale below which an element is constant and keeps its unit


@dataclass(frozen=True)
class FeatureStatistics:
    """Normalised = (value - offset) / scale; mode "none" leaves values as they are."""

    mode: str = "none"
    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()


Statistics = dict[str, FeatureStatistics]  # by feature


def statistics_of(values: np.ndarray, mode: str) -> FeatureStatistics:
    """Return the statistics of a vector.

    Args:
        values: (n, D).
        mode: "mean_std" gives mean 0 and standard deviation 1; "min_max" and "quantile" map the range, and the range
            between the 1st and 99th percentile, to [-1, 1]; "none" gives the values themselves.

    Raises:
        UnknownName: for another mode.
        DataError: if a value is not finite.
    """
    if mode not in MODES:
        raise UnknownName(f"no statistics {mode!r}{closest(mode, MODES)}; there are: {', '.join(MODES)}")
    if mode == "none":
        return FeatureStatistics()
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise DataError("statistics need finite values; remove frames with NaN or infinite values")
    if mode == "mean_std":
        offset, scale = values.mean(0), values.std(0)
    else:
        low, high = (values.min(0), values.max(0)) if mode == "min_max" else np.quantile(values, _QUANTILES, axis=0)
        offset, scale = (low + high) / 2, (high - low) / 2
    scale = np.where(scale < _SMALLEST, 1.0, scale)
    return FeatureStatistics(mode, tuple(offset.tolist()), tuple(scale.tolist()))


def dataset_statistics(dataset: EpisodeDataset, rows: np.ndarray, modes: Mapping[str, str]) -> Statistics:
    """Return the statistics of some features over `rows` of a data set.

    Args:
        modes: feature -> mode, as `statistics_of` takes it.
    """
    found: Statistics = {}
    for key, mode in modes.items():
        values = np.zeros((0, 0)) if mode == "none" else dataset.column(key)[rows]
        found[key] = statistics_of(values, mode)
    return found


def statistics_from_json(values: Mapping[str, Any]) -> Statistics:
    """Rebuild statistics that went through JSON as nested dicts."""
    return {
        key: FeatureStatistics(each["mode"], tuple(each["offset"]), tuple(each["scale"]))
        for key, each in values.items()
    }
