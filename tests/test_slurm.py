"""cluster/slurm/voxtune.sbatch: real sweeps on two nodes of this machine, under stand-ins for Slurm and a real one."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import rows, voxtune, wait_for
from job_environment import ROOT, job_environment, write_space
from slurm_cluster import SlurmCluster, why_not
from slurm_standin import JOB, write_programs

SCRIPT = ROOT / "cluster/slurm/voxtune.sbatch"
REQUEUED = "the job goes back to the queue, and then resumes the sweep"
WITHOUT_SLURM = pytest.mark.skipif(bool(why_not()), reason=f"a real Slurm: {why_not()}")


def two_train(run: Path) -> bool:
    """Return whether the first two trials are both in the middle, which takes both nodes: each has one CPU."""
    return all(0 < len(rows(run / f"trials/{number:04d}")) < 8 for number in (0, 1))


def token_of(pid: str) -> str:
    """Return the token of Ray in the environment of a process."""
    variables = dict(item.split("=", 1) for item in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in item)
    assert variables["RAY_AUTH_MODE"] == "token"
    return variables["RAY_AUTH_TOKEN"]


@pytest.mark.parametrize(
    ("job", "words", "message"),
    [
        (
            "",
            ["run", "demo"],
            "voxtune.sbatch: submit it: sbatch --nodes=2 --gpus-per-node=4 --cpus-per-task=32 --mem=128G "
            "voxtune.sbatch RUN SPACE --data DATA",
        ),
        ("1", [], "launch_or_resume.sh: expected RUN SPACE --data DATA"),
        (
            "1",
            ["run"],
            "launch_or_resume.sh: run has no sweep to resume; to launch one: launch_or_resume.sh run SPACE",
        ),
        ("1", ["run", "--trials", "9"], "launch_or_resume.sh: run has no sweep to resume; to launch one"),
    ],
)
def test_what_it_cannot_do_is_said_before_ray_starts(tmp_path: Path, job: str, words: list[str], message: str) -> None:
    variables = job_environment(tmp_path) | {"SLURM_JOB_ID": job}
    done = subprocess.run(
        ["bash", SCRIPT, *words], env=variables, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr


def test_a_missing_environment_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/bash", SCRIPT, "run"], env={"SLURM_JOB_ID": "1", "PATH": "/usr/bin:/bin"}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no voxtune in PATH; activate the environment of voxtune before sbatch" in done.stderr


@pytest.mark.slow
def test_a_job_of_two_nodes_that_slurm_ends_goes_on_when_it_is_started_again(phantoms: Path, tmp_path: Path) -> None:
    """TERM to the batch shell alone, as `--signal=B:TERM@120` sends it; to Ray's processes alone, as a preemption does;
    to a cancelled job, which stays ended.
    """
    variables = job_environment(tmp_path) | {"SLURM_STANDIN": str(tmp_path)}
    write_programs(tmp_path / "bin")
    run, log = tmp_path / "run", tmp_path / "job.log"
    words = ["--nodes=2", "--cpus-per-task=1", SCRIPT, run, write_space(tmp_path, 5), "--data", phantoms, "--no_report"]
    sbatch = subprocess.Popen(
        [tmp_path / "bin/sbatch", *map(str, words)], env=variables, text=True, stdout=subprocess.PIPE
    )
    wait_for(sbatch, lambda: two_train(run), seconds=300)
    token = token_of((tmp_path / "step.pids").read_text().split()[0])
    os.kill(int((tmp_path / "batch.pid").read_text()), signal.SIGTERM)
    wait_for(sbatch, lambda: "resumed: attempt 2" in log.read_text(), seconds=300)
    subprocess.run([tmp_path / "bin/scancel", "--signal=TERM", f"{JOB}.0"], env=variables, check=True)
    wait_for(sbatch, lambda: "resumed: attempt 3" in log.read_text(), seconds=300)
    (tmp_path / "state").write_text("CANCELLED")
    os.kill(int((tmp_path / "batch.pid").read_text()), signal.SIGTERM)
    assert sbatch.wait(timeout=300) == 143, log.read_text()
    assert log.read_text().count(REQUEUED) == 2
    (tmp_path / "state").unlink()
    done = subprocess.run([tmp_path / "bin/sbatch", *map(str, words)], env=variables, check=False)
    text = log.read_text()
    assert done.returncode == 0, text
    assert text.count(f"voxtune launch {run}, with Ray at ") == 1
    assert text.count(f"voxtune resume {run}, with Ray at ") == 3
    assert not (run / "report.html").exists()  # --no_report holds for all four
    assert "all 5 trials have ended" in text
    assert voxtune("verify", run).returncode == 0
    assert not list(Path("/tmp").glob("voxtune-4711-*"))
    assert len(token) == 64
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[SlurmCluster]:
    """A real Slurm, whose jobs find what this checkout installs."""
    variables = job_environment(tmp_path)
    short = tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)
    with short as folder, SlurmCluster(Path(folder)) as cluster:
        cluster.environment |= variables | {"PATH": f"{variables['PATH']}:/usr/sbin:/sbin"}
        yield cluster


def submit(slurm: SlurmCluster, folder: Path, phantoms: Path) -> None:
    """Submit a sweep of 5 trials on two nodes; its folder is `folder`/run, and its log `folder`/job.log."""
    size = ["--nodes=2", "--cpus-per-task=1", "--time=30", f"--output={folder}/job.log"]
    words = [SCRIPT, folder / "run", write_space(folder, 5), "--data", phantoms, "--no_report"]
    slurm.run("sbatch", *size, *map(str, words))


@pytest.mark.slow
@WITHOUT_SLURM
def test_a_real_slurm_requeues_a_job_that_it_ends_and_not_one_that_is_cancelled(
    slurm: SlurmCluster, phantoms: Path, tmp_path: Path
) -> None:
    """`scancel --batch --signal=TERM` is what `--signal=B:TERM@120` does, at a moment that does not depend on speed."""
    run, log = tmp_path / "run", tmp_path / "job.log"
    submit(slurm, tmp_path, phantoms)
    slurm.wait_until(lambda: two_train(run), log)
    slurm.run("scancel", "1")
    slurm.wait_for("", "squeue", "-h", seconds=120)
    assert REQUEUED not in log.read_text()
    submit(slurm, tmp_path, phantoms)
    slurm.wait_until(lambda: "resumed: attempt 2" in log.read_text(), log)
    slurm.run("scancel", "--batch", "--signal=TERM", "2")
    slurm.wait_until(lambda: REQUEUED in log.read_text(), log)
    slurm.wait_for("", "squeue", "-h", seconds=900)
    text = log.read_text()
    assert text.count("resumed: attempt") == 2
    assert "all 5 trials have ended" in text
    assert voxtune("verify", run).returncode == 0


@pytest.mark.slow
@WITHOUT_SLURM
def test_a_job_that_a_real_slurm_preempts_resumes_after_the_job_that_took_its_nodes(
    slurm: SlurmCluster, phantoms: Path, tmp_path: Path
) -> None:
    """Slurm sends TERM to the processes of srun, and would kill the job after the GraceTime of 60 s."""
    run, log, other = tmp_path / "run", tmp_path / "job.log", tmp_path / "other.log"
    submit(slurm, tmp_path, phantoms)
    slurm.wait_until(lambda: two_train(run), log)
    urgent = f"--wrap=grep -c 'resumed: attempt' {log}"  # nothing is resumed while it has the nodes
    slurm.run("sbatch", "--partition=urgent", "--nodes=2", f"--output={other}", urgent)
    slurm.wait_until(lambda: REQUEUED in log.read_text(), log)
    slurm.wait_for("", "squeue", "-h", seconds=900)
    text = log.read_text()
    assert other.read_text() == "0\n"
    assert text.count("resumed: attempt") == 1
    assert "all 5 trials have ended" in text
    assert voxtune("verify", run).returncode == 0
