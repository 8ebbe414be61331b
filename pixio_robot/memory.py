"""Peak memory of this process and its child processes."""

import threading
from types import TracebackType

import psutil


class PeakMemory:
    """Samples, twice a second, the memory of this process and its children; use as a context manager.

    Shared pages count once (proportional set size) on Linux.
    """

    def __init__(self) -> None:
        self.megabytes = 0.0  # highest sum seen [MiB]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        this = psutil.Process()
        while True:
            total = sum(_used(process) for process in [this, *this.children(recursive=True)])
            self.megabytes = max(self.megabytes, total / 2**20)
            if self._stop.wait(0.5):
                return


def _used(process: psutil.Process) -> int:
    try:
        info = process.memory_full_info()
        return int(getattr(info, "pss", info.rss))
    except psutil.Error:  # it has ended
        return 0
