"""The keys of the commands that run jobs side by side."""

from dataclasses import dataclass
from typing import Any

from .errors import BadInput
from .jobs.launch import Launch
from .settings import key


@dataclass
class EngineSettings:
    """Who runs the jobs, how many at once, and what each gets."""

    engine: str = key("local", "who runs jobs: local, ray, slurm", free=True)
    jobs: int | None = key(None, "jobs at a time; null is one for each `threads` cores, of ray and slurm all", 1, True)
    threads: int = key(1, "threads of a job", least=1, free=True)
    memory: float | None = key(None, "memory for all local jobs together [GB]; null is 80 % of what is free", free=True)
    gpus: float = key(0, "GPUs of a job under ray (shares too) and slurm", free=True)
    slurm: Any = key(None, "further settings of submitit, e.g. {slurm_partition: gpu, timeout_min: 600}", free=True)

    def launch(self) -> Launch:
        """Return these settings as `jobs` takes them.

        Raises:
            BadInput: if `slurm` has no names of settings.
        """
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            slurm = OmegaConf.to_container(OmegaConf.create(self.slurm or {}))
        except OmegaConfBaseException:
            slurm = None
        if not isinstance(slurm, dict):
            raise BadInput(f"slurm={self.slurm} names no settings; give e.g. slurm='{{timeout_min: 600}}'")
        named = {str(name): value for name, value in slurm.items()}
        return Launch(self.engine, self.jobs, self.threads, self.memory, self.gpus, named)
