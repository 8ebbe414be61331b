"""The command line: ``pixio-robot COMMAND key=value ...``. Commands are defined in ``commands.py`` of each folder."""

import logging
import sys
from collections.abc import Callable

from .command import INTERRUPTED
from .command_table import NAMES, find_command
from .config import check_least, command_help, compose, first_job, register, sweep_jobs
from .errors import BadInput, PixioError, Stopped
from .files import explain


def main() -> None:
    """Entry point of ``pixio-robot``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit status; errors become one message, never a traceback."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("pixio_robot").setLevel(logging.INFO)
    debug = "debug=true" in (argument.lower() for argument in arguments)
    return _reporting_errors(lambda: _dispatch(arguments), debug)


def _reporting_errors(work: Callable[[], int], debug: bool, about: str = "") -> int:
    """Run `work` and return its exit status; print errors as one message, with `about` before it."""
    try:
        return work()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signal  # as in shells
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(f"error: {about}{_message(error)}", file=sys.stderr)
        return 1


def _message(error: Exception) -> str:
    if isinstance(error, PixioError):
        return str(error)
    if isinstance(error, OSError):
        return explain(error)
    return (
        f"unexpected error: {type(error).__name__}: {error}\nthis may be a bug; run again with debug=true and report "
        "the traceback"
    )


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("pixio-robot"))
        return 0
    name, rest = arguments[0], arguments[1:]
    command = find_command(name)
    if any(argument in ("-h", "--help") for argument in rest):
        print(command_help(name, [argument for argument in rest if "=" in argument]))
        return 0
    if any(argument in ("-m", "--multirun") for argument in rest):
        overrides = [each for each in rest if each not in ("-m", "--multirun")]
        if command.sweep is None:
            return _sweep(name, overrides)
        if hydra := [each for each in overrides if each.startswith("hydra")]:
            raise BadInput(
                f"{' '.join(hydra)}: sweeps of {name} take engine=local, ray or slurm, not Hydra's launchers"
            )
        return command.sweep([compose(name, job) for job in sweep_jobs(overrides)])
    return command.run(compose(name, rest))


def overview() -> str:
    """Return the text of ``pixio-robot --help``."""
    lines = ["pixio-robot COMMAND key=value ...", "", "Commands (pixio-robot COMMAND --help lists their keys):"]
    for name in NAMES:
        lines.append(f"  {name:<12} {(find_command(name).settings.__doc__ or '').strip()}")
    lines += ["", "  -m           sweep: key=a,b,c runs one job for each combination", "  debug=true   show tracebacks"]
    return "\n".join(lines)


def _sweep(name: str, overrides: list[str]) -> int:
    """Run one job for each combination with Hydra's multirun and launchers; return the worst exit status."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import DictConfig, OmegaConf

    compose(name, first_job(overrides))  # a clear message for what no job could run
    register(name, overrides)
    debug = "debug=true" in overrides
    statuses: list[int] = []

    def job(config: DictConfig) -> None:
        about = HydraConfig.get().job.override_dirname

        def work() -> int:
            settings = OmegaConf.to_object(config)
            check_least(settings, "")
            return find_command(name).run(settings)

        statuses.append(_reporting_errors(work, debug, f"{about}: "))
        if statuses[-1] > 128:  # a signal stops the whole sweep, not one job
            raise KeyboardInterrupt

    before, handlers = sys.argv, logging.getLogger().handlers[:]
    sys.argv = ["pixio-robot", "--multirun", *overrides]
    try:
        hydra.main(config_path="pkg://pixio_robot.configs", config_name=name, version_base="1.3")(job)()
    except KeyboardInterrupt:
        if statuses and statuses[-1] not in (0, INTERRUPTED):
            raise Stopped("the sweep ends here; the same command resumes it", statuses[-1] - 128) from None
        raise
    finally:
        sys.argv = before
        for handler in set(logging.getLogger().handlers) - set(handlers):  # those that Hydra added
            handler.close()
        logging.getLogger().handlers[:] = handlers
    return max(statuses, default=1)
