"""Everything that a learner needs to resume exactly: networks, optimisers, buffer, random states, running episodes.

A state is a folder of arrays and JSON, without pickles, for the run that wrote it; policies to share are other files.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...checkpoint import Checkpoint, load_checkpoint, load_strictly, save_checkpoint
from ...errors import CheckpointError
from ...files import require_space
from ...run_folder import read_json, write_json
from .embedded_env import EmbeddedVecEnv

_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining")


def save_state(folder: Path, learner: Any, venv: EmbeddedVecEnv, numbers: dict[str, Any]) -> None:
    """Write ``state-<steps>`` into `folder` and delete older ones.

    Args:
        numbers: of the run, ready for JSON.
    """
    name = f"state-{learner.num_timesteps:09d}"
    partial, final = folder / f"{name}.partial", folder / name
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)
    arrays = {**_replay(learner), **_running(learner, venv)}
    require_space(partial / "size", sum(array.nbytes for array in arrays.values()))
    tensors, optimisers = _torch_state(learner)
    save_checkpoint(partial / "learner.safetensors", Checkpoint("rl-state", tensors, {}, step=learner.num_timesteps))
    for key, array in arrays.items():
        (partial / f"{key}.npy").parent.mkdir(parents=True, exist_ok=True)
        np.save(partial / f"{key}.npy", array, allow_pickle=False)
    kind, keys, place, has_gauss, gauss = np.random.get_state()
    np.save(partial / "numpy_random.npy", keys)
    buffer = getattr(learner, "replay_buffer", None)
    facts = {
        "counters": {name: getattr(learner, name) for name in _COUNTERS},
        "optimisers": optimisers,
        "buffer": None if buffer is None else [buffer.pos, buffer.full],
        "numpy_random": [kind, int(place), int(has_gauss), float(gauss)],
        "actions_random": learner.action_space.np_random.bit_generator.state,
        "episodes": [list(learner.ep_info_buffer or []), [bool(each) for each in learner.ep_success_buffer or []]],
        "arrays": sorted(arrays),
        "numbers": numbers,
    }
    write_json(partial / "state.json", facts)
    partial.rename(final)
    for old in folder.glob("state-*"):
        if old != final:
            shutil.rmtree(old)


def latest_state(folder: Path) -> Path | None:
    """Return the latest complete state, if there is one."""
    found = [each for each in folder.glob("state-*") if each.suffix != ".partial" and (each / "state.json").is_file()]
    return max(found, default=None)


def load_state(path: Path, learner: Any, venv: EmbeddedVecEnv) -> dict[str, Any]:
    """Restore `learner` and `venv` from a state, and return its numbers.

    Raises:
        CheckpointError: if the folder is damaged or of another learner.
        DataError: if the simulator does not repeat the running episodes.
    """
    facts = read_json(path / "state.json")
    try:
        arrays = {key: np.load(path / f"{key}.npy", allow_pickle=False) for key in facts["arrays"]}
        keys = np.load(path / "numpy_random.npy", allow_pickle=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it to start again") from error
    checkpoint = load_checkpoint(path / "learner.safetensors", "rl-state")
    _load_torch_state(learner, checkpoint.tensors, facts["optimisers"], path)
    for name, value in facts["counters"].items():
        setattr(learner, name, value)
    learner._setup_learn(0, reset_num_timesteps=False)  # makes the lists of recent episodes, resets the environments
    learner.ep_info_buffer.extend(facts["episodes"][0])
    learner.ep_success_buffer.extend(facts["episodes"][1])
    if facts["buffer"] is not None:
        _load_replay(learner, arrays, *facts["buffer"])
    venv.tasks.load_state_dict(_part(arrays, "episodes/"))
    venv.load_state_dict(_part(arrays, "frames/"))
    learner._last_obs = _part(arrays, "last/")
    learner._last_episode_starts = arrays["starts"]
    learner.action_space.np_random.bit_generator.state = facts["actions_random"]
    torch.set_rng_state(checkpoint.tensors["random"])
    if "random_cuda" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["random_cuda"])
    kind, place, has_gauss, gauss = facts["numpy_random"]
    np.random.set_state((kind, keys, place, has_gauss, gauss))
    return facts["numbers"]


def _torch_state(learner: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors of networks, optimisers, variables and generators, and the indices of optimiser states."""
    tensors, indices = {"random": torch.get_rng_state()}, {}
    if learner.device.type == "cuda":
        tensors["random_cuda"] = torch.cuda.get_rng_state()
    modules, variables = learner._get_torch_save_params()
    for name in modules:
        part = _attribute(learner, name)
        if isinstance(part, nn.Module):
            tensors |= {f"{name}/{key}": value for key, value in part.state_dict().items()}
            continue
        indices[name] = sorted(part.state_dict()["state"])
        for index, slots in part.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{slot}": value for slot, value in slots.items() if value is not None}
    for name in variables:
        tensors[name] = _attribute(learner, name).detach()
    return {key: value.clone() for key, value in tensors.items()}, indices


def _load_torch_state(learner: Any, tensors: dict[str, Tensor], optimisers: dict[str, Any], source: Path) -> None:
    modules, variables = learner._get_torch_save_params()
    for name in modules:
        part, prefix = _attribute(learner, name), f"{name}/"
        mine = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if isinstance(part, nn.Module):
            load_strictly(part, mine, source)
            continue
        slots: dict[int, dict[str, Tensor]] = {index: {} for index in optimisers[name]}
        for key, value in mine.items():
            index, slot = key.split("/")
            slots[int(index)][slot] = value
        part.load_state_dict({**part.state_dict(), "state": slots})
    for name in variables:
        _attribute(learner, name).data.copy_(tensors[name])


def _attribute(value: Any, path: str) -> Any:
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _replay(learner: Any) -> dict[str, np.ndarray]:
    """Return the filled part of the replay buffer; a rollout buffer is empty whenever a state is written."""
    buffer = getattr(learner, "replay_buffer", None)
    if buffer is None:
        return {}
    filled = slice(buffer.size())
    arrays = {f"replay/{name}": getattr(buffer, name)[filled] for name in ("actions", "rewards", "dones", "timeouts")}
    for name in ("observations", "next_observations"):
        arrays |= {f"replay/{name}-{key}": values[filled] for key, values in getattr(buffer, name).items()}
    return arrays


def _load_replay(learner: Any, arrays: dict[str, np.ndarray], pos: int, full: bool) -> None:
    buffer = learner.replay_buffer
    buffer.pos, buffer.full = pos, full
    for key, values in arrays.items():
        folder, _, name = key.partition("/")
        if folder != "replay":
            continue
        part, _, observed = name.partition("-")
        target = getattr(buffer, part)
        (target[observed] if observed else target)[: len(values)] = values


def _running(learner: Any, venv: EmbeddedVecEnv) -> dict[str, np.ndarray]:
    """Return what restores the running episodes: environments, frames and the latest observations."""
    arrays = {f"episodes/{key}": value for key, value in venv.tasks.state_dict().items()}
    arrays |= {f"frames/{key}": value for key, value in venv.state_dict().items()}
    arrays |= {f"last/{key}": value for key, value in learner._last_obs.items()}
    return {**arrays, "starts": np.asarray(learner._last_episode_starts)}


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
