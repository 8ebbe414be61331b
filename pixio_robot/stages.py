"""How long the stages of a run took, kept in its folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from .run_folder import write_json


@dataclass
class Stages:
    """How long each stage took and where its time went, summed over interrupted runs; kept in ``stages.json``.

    What workers do side by side counts once, as their mean; what is in no share is start-up and waiting.
    """

    path: Path
    times: dict[str, dict[str, Any]] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[dict[str, float]]:
        """Time a stage; the caller puts where its seconds went into the yielded dict, nothing if all was reused."""
        spent: dict[str, float] = {}
        began = perf_counter()
        try:
            yield spent
        finally:
            entry = self.times.setdefault(name, {"seconds": 0.0, "spent": {}})
            entry["reused"] = not spent
            if spent or not entry["spent"]:
                entry["seconds"] += perf_counter() - began
            for what, seconds in spent.items():
                entry["spent"][what] = entry["spent"].get(what, 0.0) + seconds
            write_json(self.path, self.times)

    def summary(self) -> dict[str, Any]:
        """Return, for each stage, its seconds, whether this run reused it, and the shares of its time."""
        return {
            name: {
                "seconds": round(entry["seconds"], 2),
                "reused": entry["reused"],
                "shares": {what: round(spent / entry["seconds"], 4) for what, spent in entry["spent"].items()},
            }
            for name, entry in self.times.items()
        }
