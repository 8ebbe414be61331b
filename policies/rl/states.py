"""All that a learner needs to go on exactly: networks, optimisers, buffer, random states, episodes under way.

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
from .task_vec_env import TaskVecEnv

_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining")


def save_state(folder: Path, model: Any, venv: EmbeddedVecEnv, numbers: dict[str, Any]) -> None:
    """Write ``state-<steps>`` into `folder` and delete older ones.

    Args:
        numbers: of the run, ready for JSON.
    """
    name = f"state-{model.num_timesteps:09d}"
    partial, final = folder / f"{name}.partial", folder / name
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)
    arrays = {**_replay(model), **_under_way(model, venv)}
    require_space(partial / "size", sum(array.nbytes for array in arrays.values()))
    tensors, optimisers = _torch_state(model)
    save_checkpoint(partial / "learner.safetensors", Checkpoint("rl-state", tensors, {}, step=model.num_timesteps))
    for key, array in arrays.items():
        (partial / f"{key}.npy").parent.mkdir(parents=True, exist_ok=True)
        np.save(partial / f"{key}.npy", array, allow_pickle=False)
    kind, keys, place, has_gauss, gauss = np.random.get_state()
    np.save(partial / "numpy_random.npy", keys)
    facts = {
        "counters": {name: getattr(model, name) for name in _COUNTERS},
        "optimisers": optimisers,
        "buffer": None if not hasattr(model, "replay_buffer") else [model.replay_buffer.pos, model.replay_buffer.full],
        "numpy_random": [kind, int(place), int(has_gauss), float(gauss)],
        "actions_random": model.action_space.np_random.bit_generator.state,
        "episodes": [list(model.ep_info_buffer or []), [bool(each) for each in model.ep_success_buffer or []]],
        "arrays": sorted(arrays),
        "numbers": numbers,
    }
    write_json(partial / "state.json", facts)
    partial.rename(final)
    for old in folder.glob("state-*"):
        if old != final:
            shutil.rmtree(old)


def latest_state(folder: Path) -> Path | None:
    """Return the newest whole state, if there is one."""
    found = [each for each in folder.glob("state-*") if each.suffix != ".partial" and (each / "state.json").is_file()]
    return max(found, default=None)


def load_state(path: Path, model: Any, venv: EmbeddedVecEnv) -> dict[str, Any]:
    """Put `model` and `venv` where `save_state` left them; returns its numbers.

    Raises:
        CheckpointError: if the folder is damaged or of another learner.
        DataError: if the simulator does not repeat the episodes under way.
    """
    facts = read_json(path / "state.json")
    try:
        arrays = {key: np.load(path / f"{key}.npy", allow_pickle=False) for key in facts["arrays"]}
        keys = np.load(path / "numpy_random.npy", allow_pickle=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it to begin from the start") from error
    checkpoint = load_checkpoint(path / "learner.safetensors", "rl-state")
    _load_torch_state(model, checkpoint.tensors, facts["optimisers"], path)
    for name, value in facts["counters"].items():
        setattr(model, name, value)
    model._setup_learn(0, reset_num_timesteps=False)  # makes the lists of recent episodes, resets the environments
    model.ep_info_buffer.extend(facts["episodes"][0])
    model.ep_success_buffer.extend(facts["episodes"][1])
    if facts["buffer"] is not None:
        _load_replay(model, arrays, *facts["buffer"])
    tasks: Any = venv.venv
    assert isinstance(tasks, TaskVecEnv)
    tasks.take_up({key.removeprefix("episodes/"): value for key, value in arrays.items() if "episodes/" in key})
    venv.frames = arrays.get("frames")
    model._last_obs = {key.removeprefix("last/"): value for key, value in arrays.items() if key.startswith("last/")}
    model._last_episode_starts = arrays["starts"]
    model.action_space.np_random.bit_generator.state = facts["actions_random"]
    torch.set_rng_state(checkpoint.tensors["random"])
    if "random_cuda" in checkpoint.tensors:
        torch.cuda.set_rng_state(checkpoint.tensors["random_cuda"])
    kind, place, has_gauss, gauss = facts["numpy_random"]
    np.random.set_state((kind, keys, place, has_gauss, gauss))
    return facts["numbers"]


def _torch_state(model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors of networks, optimisers, variables and generators, and which steps of optimisers are numbers."""
    tensors, scalars = {"random": torch.get_rng_state()}, {}
    if model.device.type == "cuda":
        tensors["random_cuda"] = torch.cuda.get_rng_state()
    modules, variables = model._get_torch_save_params()
    for name in modules:
        part = _attribute(model, name)
        if isinstance(part, nn.Module):
            tensors |= {f"{name}/{key}": value for key, value in part.state_dict().items()}
            continue
        scalars[name] = sorted(part.state_dict()["state"])
        for index, slots in part.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{slot}": value for slot, value in slots.items() if value is not None}
    for name in variables:
        tensors[name] = _attribute(model, name).detach()
    return {key: value.clone() for key, value in tensors.items()}, scalars


def _load_torch_state(model: Any, tensors: dict[str, Tensor], optimisers: dict[str, Any], source: Path) -> None:
    modules, variables = model._get_torch_save_params()
    for name in modules:
        part, prefix = _attribute(model, name), f"{name}/"
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
        _attribute(model, name).data.copy_(tensors[name])


def _attribute(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name)
    return model


def _replay(model: Any) -> dict[str, np.ndarray]:
    """Return the filled part of the replay buffer; a rollout buffer is empty wherever a state is written."""
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None:
        return {}
    filled = slice(buffer.size())
    arrays = {f"replay/{name}": getattr(buffer, name)[filled] for name in ("actions", "rewards", "dones", "timeouts")}
    for name in ("observations", "next_observations"):
        arrays |= {f"replay/{name}-{key}": values[filled] for key, values in getattr(buffer, name).items()}
    return arrays


def _load_replay(model: Any, arrays: dict[str, np.ndarray], pos: int, full: bool) -> None:
    buffer = model.replay_buffer
    buffer.pos, buffer.full = pos, full
    for key, values in arrays.items():
        folder, _, name = key.partition("/")
        if folder != "replay":
            continue
        part, _, observed = name.partition("-")
        target = getattr(buffer, part)
        (target[observed] if observed else target)[: len(values)] = values


def _under_way(model: Any, venv: EmbeddedVecEnv) -> dict[str, np.ndarray]:
    tasks: Any = venv.venv
    arrays = {f"episodes/{key}": value for key, value in tasks.under_way().items()}
    arrays |= {f"last/{key}": value for key, value in model._last_obs.items()}
    arrays["starts"] = np.asarray(model._last_episode_starts)
    return arrays if venv.frames is None else {**arrays, "frames": venv.frames}
