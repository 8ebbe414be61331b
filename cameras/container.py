"""What recordings in containers such as MKV and MP4 share: PyAV opens them, and they are closed once."""

from pathlib import Path
from typing import Any

import av

from ..errors import DataError
from .camera import CameraRequest
from .playback import Playback


class ContainerFile(Playback):
    """A file of tracks; a subclass calls `open_container` when it starts.

    Args:
        path: the file.
    """

    def __init__(self, path: str, request: CameraRequest) -> None:
        super().__init__(request)
        self.path = Path(path)
        self.container: Any = None  # av.container.InputContainer while it is open

    def open_container(self, what: str) -> Any:
        """Open the file and return the container.

        Args:
            what: it should be, for the message.

        Raises:
            DataError: if it cannot be read.
        """
        try:
            self.container = av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{self.path} is no {what} that can be read: {error}") from error
        return self.container

    def stop(self) -> None:
        container, self.container = self.container, None
        if container is not None:
            container.close()
