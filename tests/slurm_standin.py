"""Stand-ins for Slurm's sbatch, srun, scontrol and scancel, for machines without Slurm: they start real processes here.

`write_programs` makes the four programs, which call this file. A job has as many nodes as it asks for, all on this
machine, each with one CPU. Its state is in the folder that SLURM_STANDIN names: `batch.pid` is the shell that runs the
script, `step.pids` the processes of srun, `state` the job's state if it is not RUNNING, `requeued` a request.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

JOB = "4711"
PROGRAMS = ("sbatch", "srun", "scontrol", "scancel")


def write_programs(folder: Path) -> None:
    """Write the four programs into a folder, to be the first one in PATH."""
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f'#!/bin/bash\nexec {sys.executable} {Path(__file__).resolve()} {name} "$@"\n')
        program.chmod(0o755)


def sbatch(words: list[str], state: Path) -> int:
    """Run a script's job to its end, again after each request to requeue it; its output goes to `state`/job.log.

    Of the options in front of the script only --nodes=N and --cpus-per-task=N count. Returns the script's exit code.
    """
    options = dict(word.removeprefix("--").split("=") for word in words if word.startswith("--") and "=" in word)
    script = next(index for index, word in enumerate(words) if not word.startswith("--"))
    job = {
        "SLURM_JOB_ID": JOB,
        "SLURM_JOB_NUM_NODES": options["nodes"],
        "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
        "SLURMD_NODENAME": "n0",
    }
    while True:
        with (state / "job.log").open("a") as log:
            batch = subprocess.Popen(
                ["bash", *words[script:]], stdout=log, stderr=log, env=os.environ | job, start_new_session=True
            )
            (state / "batch.pid").write_text(str(batch.pid))
            code = batch.wait()
        if not (state / "requeued").exists():
            return code
        (state / "requeued").unlink()


def srun(words: list[str], state: Path) -> int:
    """Run a command once per node, or --ntasks-per-node=N times on each, at once; return the largest exit code.

    A TERM kills all, as the real srun does.
    """
    command = words[next(index for index, word in enumerate(words) if not word.startswith("--")) :]
    each = next((int(word.rpartition("=")[2]) for word in words if word.startswith("--ntasks-per-node=")), 1)
    count = int(os.environ["SLURM_JOB_NUM_NODES"]) * each
    tasks = [
        subprocess.Popen(
            command, start_new_session=True,
            env=os.environ | {
                "SLURM_NODEID": str(task // each), "SLURM_CPUS_ON_NODE": "1", "SLURM_NTASKS": str(count),
                "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % each),
            },
        )
        for task in range(count)
    ]  # fmt: skip

    def kill(*_: object) -> None:
        for task in tasks:
            os.killpg(task.pid, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill)
    (state / "step.pids").write_text(" ".join(str(task.pid) for task in tasks))
    return max(abs(task.wait()) for task in tasks)


def scontrol(words: list[str], state: Path) -> int:
    """Show a node, the job or the names of its nodes, or requeue the job."""
    if words[:2] == ["show", "node"]:
        print(f"NodeName={words[2]} Arch=x86_64\n   NodeAddr=127.0.0.1 NodeHostName={words[2]} Version=22.05.8")
    elif words[:2] == ["show", "hostnames"]:
        print("\n".join(["localhost"] * int(os.environ["SLURM_JOB_NUM_NODES"])))
    elif words == ["show", "job", JOB]:
        name = (state / "state").read_text() if (state / "state").exists() else "RUNNING"
        print(f"JobId={JOB} JobName=voxtune\n   JobState={name} Reason=None Dependency=(null)")
    elif words == ["requeue", JOB]:
        (state / "requeued").touch()
    else:
        sys.exit(f"scontrol: no such words here: {words}")
    return 0


def scancel(words: list[str], state: Path) -> int:
    """Send TERM to the tasks of srun."""
    assert words == ["--signal=TERM", f"{JOB}.0"], words
    for pid in (state / "step.pids").read_text().split():
        os.killpg(int(pid), signal.SIGTERM)
    return 0


if __name__ == "__main__":
    sys.exit(globals()[sys.argv[1]](sys.argv[2:], Path(os.environ["SLURM_STANDIN"])))
