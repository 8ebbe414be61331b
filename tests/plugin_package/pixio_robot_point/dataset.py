import hashlib
from pathlib import Path

import numpy as np

from pixio_robot.datasets.dataset import EpisodeDataset, Feature, KeyMap


class NpzDataset(EpisodeDataset):
    """A folder of ``episode_*.npz``; each holds the features of one episode, frame by frame."""

    @classmethod
    def recognises(cls, source: str) -> bool:
        return any(Path(source).glob("episode_*.npz"))

    def __init__(self, source: str, keys: KeyMap | None = None) -> None:
        self.source, self.provenance = source, {}
        self._files = sorted(Path(source).glob("episode_*.npz"))
        episodes = [dict(np.load(file)) for file in self._files]
        self.lengths = np.array([len(each["action"]) for each in episodes], np.int64)
        self.features, self._columns = {}, {}
        for key in episodes[0]:
            values = np.concatenate([each[key] for each in episodes])
            kind = "image" if values.ndim == 4 else "vector"
            self.features[key] = Feature(kind, values.shape[1:], str(values.dtype))
            self._columns[key] = values

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"".join(file.read_bytes() for file in self._files)).hexdigest()

    def split(self, name: str) -> np.ndarray:
        return np.arange(len(self.lengths) if name == "train" else 0)

    def read(self, key: str, rows: np.ndarray) -> np.ndarray:
        self.feature(key)  # raises if there is none of this name
        return self._columns[key][rows]
