"""Pre-train on Slurm: examples/slurm_pretrain.py --nodes 2 --gpus 8 --partition gpu -- images=/shards out=runs/b."""

import argparse
import os
import signal

import submitit

from pixio_robot.cli import run


class Pretraining:
    """One process of ``pixio-robot pretrain``; submitit starts one for each GPU."""

    def __call__(self, overrides: list[str]) -> None:
        requeue, aside, process = signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGTERM), os.getpid()
        asked = []

        # Slurm sends SIGUSR2 before the time is up. submitit's handler would requeue and exit at once, between two
        # checkpoints; its handler for SIGTERM does nothing, and the training loop puts in one that ends the run with a
        # checkpoint and status 143. So SIGUSR2 becomes SIGTERM, and submitit's handler runs after the checkpoint.
        def stop(number, frame):
            if os.getpid() == process and not asked:  # processes that read images inherit this
                asked.append(number)
                if signal.getsignal(signal.SIGTERM) == aside:  # no loop runs, so there is nothing to write
                    requeue(number, frame)
                os.kill(process, signal.SIGTERM)

        signal.signal(signal.SIGUSR2, stop)
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)  # LOCAL_RANK says which
        status = run(["pretrain", *overrides])
        if asked and status == 128 + signal.SIGTERM:
            requeue(signal.SIGUSR2, None)  # it does not return in the first process
        elif status:
            raise RuntimeError(f"pixio-robot pretrain {' '.join(overrides)} ended with status {status}")

    def checkpoint(self, overrides: list[str]) -> submitit.helpers.DelayedSubmission:
        """Return what the requeued job does: the same command, which resumes from its last checkpoint."""
        return submitit.helpers.DelayedSubmission(self, overrides)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--cluster", choices=("slurm", "local", "debug"), default="slurm", help="where to run")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of each machine, one process each; 0 uses the CPU")
    parser.add_argument("--cpus", type=int, default=12, help="cores for each process")
    parser.add_argument("--hours", type=float, default=24.0, help="time limit, after which the job is requeued")
    parser.add_argument("--partition", help="of the cluster")
    parser.add_argument("overrides", nargs="+", metavar="key=value", help="settings of pixio-robot pretrain, after --")
    given = parser.parse_args()
    executor = submitit.AutoExecutor("runs/submitit", cluster=given.cluster, slurm_max_num_timeout=1000)
    executor.update_parameters(nodes=given.nodes, gpus_per_node=given.gpus, tasks_per_node=max(given.gpus, 1))
    executor.update_parameters(cpus_per_task=given.cpus, timeout_min=round(60 * given.hours), name="pixio-pretrain")
    executor.update_parameters(slurm_partition=given.partition, slurm_signal_delay_s=300)
    job = executor.submit(Pretraining(), given.overrides)
    print(f"job {job.job_id}: {job.paths.stdout}")
    if given.cluster != "slurm":
        job.results()  # waits, and raises what went wrong
