"""cluster/launch_or_resume.sh: the command of jobs that may start again, on a machine that has the sweep or has not."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ONE_CORE, SPACE, clean_environment, rows, voxtune, wait_for
from test_storage import BUCKET, Server, server

from trainable.data.prepare import Data

__all__ = ["server"]  # a fixture
ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "cluster/launch_or_resume.sh"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has this checkout's voxtune."""
    program = tmp_path / "bin/voxtune"
    program.parent.mkdir()
    program.write_text(f'#!/bin/bash\nexec {sys.executable} -m tune "$@"\n')
    program.chmod(0o755)
    here = clean_environment() | ONE_CORE
    return here | {"PATH": f"{program.parent}:{here['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "expected RUN SPACE --data DATA"),
        (["--trials", "3", "run", "demo"], "--trials: only --from and --address may stand before RUN"),
        (["--from"], "--from lacks its value"),
    ],
)
def test_wrong_words_are_refused(environment: dict[str, str], words: list[str], message: str) -> None:
    done = subprocess.run(["bash", SCRIPT, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"launch_or_resume.sh: {message}\n"


@pytest.mark.slow
def test_the_same_command_launches_resumes_and_goes_on_from_the_snapshot_on_another_machine(
    environment: dict[str, str], server: Server, phantoms: Path, prepared: Data, tmp_path: Path
) -> None:
    run, space = tmp_path / "sweep", tmp_path / "space.yaml"
    space.write_text(SPACE.replace("trials: 5", "trials: 4").replace("epochs: 4", "epochs: 8"))
    words = [
        "bash", SCRIPT, "--from", server.uri(f"{BUCKET}/again/sweep"), run, space, "--data", phantoms,
        "--storage", server.uri(f"{BUCKET}/again"), "--no_report",
    ]  # fmt: skip

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            list(map(str, words)), env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    first = begin()
    wait_for(first, lambda: len(rows(run / "trials/0000")) > 2)
    first.send_signal(signal.SIGTERM)
    text = first.communicate(timeout=120)[0]
    assert first.returncode == 143, text
    assert "no snapshot there" in text
    assert "no sweep to resume: this launches one" in text
    shutil.rmtree(run)
    second = begin()
    wait_for(second, lambda: (run / "trials/0001").exists())
    second.send_signal(signal.SIGTERM)  # to the script alone, which passes it on
    text = second.communicate(timeout=120)[0]
    assert second.returncode == 143, text
    assert "resumed: attempt 2" in text
    third = begin()
    text = third.communicate(timeout=300)[0]
    assert third.returncode == 0, text
    assert "resumed: attempt 3" in text
    assert "all 4 trials have ended" in text
    assert not (run / "report.html").exists()  # --no_report holds for all three
    assert voxtune("verify", run).returncode == 0
