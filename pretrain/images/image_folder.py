"""Folders of image files; sub-folders are labels.

Shapes: N images.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .image_set import ImageSet, files_fingerprint


class ImageFolder(ImageSet):
    """Image files below a folder. They have labels if all are in sub-folders and there are two or more of these.

    Args:
        root: the folder.
        files: the image files below it.
    """

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self._root = root
        paths = [file.relative_to(root).as_posix() for file in files]
        names = [path.encode("utf-8", "surrogateescape") for path in paths]
        self._text = b"".join(names)  # one string, since worker processes would copy a list item by item
        self._ends = np.cumsum([len(name) for name in names])
        self.fingerprint = files_fingerprint(root, files)
        kinds = sorted({path.partition("/")[0] for path in paths})
        if len(kinds) > 1 and all("/" in path for path in paths):
            numbers = {kind: number for number, kind in enumerate(kinds)}
            self.classes = tuple(kinds)
            self.labels = np.array([numbers[path.partition("/")[0]] for path in paths], np.int32)

    def __len__(self) -> int:
        return len(self._ends)

    def read(self, index: int) -> bytes:
        return Path(self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        begin = int(self._ends[index - 1]) if index else 0
        return str(self._root / self._text[begin : int(self._ends[index])].decode("utf-8", "surrogateescape"))
