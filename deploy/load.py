"""Where a robot's policy comes from: a bundle, a server, or a checkpoint, the only one that needs torch."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from ..errors import BadInput
from ..files import sha256_of
from ..robots.commands import Run
from ..run_folder import digest
from .runtime.bundle import CARD, Manifest, check_gate
from .runtime.policy import Policy


def load_policy_source(command: Run, stack: ExitStack) -> tuple[Manifest, Policy, str]:
    """Return the policy that a command names, its card, and a hash of both.

    Args:
        stack: closes what was opened.

    Raises:
        BadInput: unless one of bundle, checkpoint and server is given.
        CheckpointError: for a bundle that is damaged, or int8 and did not pass the gate.
        RemoteError: if the server cannot be reached, or refuses.
    """
    given = [name for name in ("bundle", "checkpoint", "server") if getattr(command, name) is not None]
    if len(given) != 1:
        raise BadInput(
            "one policy is needed: bundle=FOLDER (of pixio-robot export), checkpoint=FILE or server=HOST:PORT; got "
            f"{', '.join(given) or 'none'}"
        )
    if command.bundle is not None:
        from .runtime.runtime import Runtime

        check_gate(command.bundle, command.allow_unverified)
        runtime = Runtime.load(command.bundle, command.threads)
        return runtime.card, runtime, sha256_of(Path(command.bundle) / CARD)
    if command.server is not None:
        from .serve.client import RemotePolicy
        from .serve.token_file import read_token

        token = None if command.token_file is None else read_token(Path(command.token_file))
        remote = stack.enter_context(RemotePolicy(command.server, token))
        return remote.card, remote, digest(asdict(remote.card))
    from ..hardware import choose_device
    from .eager import eager_policies

    assert command.checkpoint is not None
    card, policies, inputs = eager_policies(command.checkpoint, choose_device(command.device))
    return card, policies(), inputs
