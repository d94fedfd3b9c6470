"""cluster/launch_or_resume.sh: the command of jobs that may start again, on a machine that has the sweep or has not."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from helpers import ONE_CORE, SPACE, rows, voxtune, wait_for
from job_environment import ROOT, job_environment
from test_storage import BUCKET, Server, server

from trainable.data.prepare import Data

__all__ = ["server"]  # a fixture
SCRIPT = ROOT / "cluster/launch_or_resume.sh"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has what this checkout installs."""
    return job_environment(tmp_path) | ONE_CORE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected RUN SPACE --data DATA"),
        (["run"], "run has no sweep to resume; to launch one: launch_or_resume.sh run SPACE --data DATA"),
        (
            ["--from", "s3://bucket/run", "run", "--trials", "9"],
            "run has no sweep to resume; to launch one",
        ),
        (["--trials", "3", "run", "demo"], "--trials: only --from, --address and --check may stand before RUN"),
        (["--from"], "--from lacks its value"),
    ],
)
def test_wrong_words_are_refused(environment: dict[str, str], words: list[str], message: str) -> None:
    done = subprocess.run(["bash", SCRIPT, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"launch_or_resume.sh: {message}")


@pytest.mark.slow
def test_the_same_command_launches_resumes_and_goes_on_from_the_snapshot_on_another_machine(
    environment: dict[str, str], server: Server, phantoms: Path, prepared: Data, tmp_path: Path
) -> None:
    run, space = tmp_path / "sweep", tmp_path / "space.yaml"
    space.write_text(SPACE.replace("trials: 5", "trials: 4").replace("epochs: 4", "epochs: 8"))
    words = [
        "bash", SCRIPT, "--from", server.uri(f"{BUCKET}/again/sweep"), run, space,
        "--storage", server.uri(f"{BUCKET}/again"), "--no_report",
    ]  # fmt: skip

    def begin(*data: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            list(map(str, [*words, *data])), env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    first = begin("--data", phantoms)
    wait_for(first, lambda: len(rows(run / "trials/0000")) > 2, seconds=300)
    first.send_signal(signal.SIGTERM)
    text = first.communicate(timeout=300)[0]
    assert first.returncode == 143, text
    assert "no snapshot there" in text
    assert "no sweep to resume: this launches one" in text
    shutil.rmtree(run)
    second = begin(f"--data={phantoms}")
    wait_for(second, lambda: (run / "trials/0001").exists(), seconds=300)
    second.send_signal(signal.SIGTERM)  # to the script alone, which passes it on
    text = second.communicate(timeout=300)[0]
    assert second.returncode == 143, text
    assert "resumed: attempt 2" in text
    third = begin("--data", phantoms)
    text = third.communicate(timeout=300)[0]
    assert third.returncode == 0, text
    assert "resumed: attempt 3" in text
    assert "all 4 trials have ended" in text
    assert not (run / "report.html").exists()  # --no_report holds for all three
    assert voxtune("verify", run).returncode == 0
