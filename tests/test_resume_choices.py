"""What a resume keeps of `--no_report` and `--notify` of the launch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from faults import faulty, small_sweep
from helpers import notices_at, voxtune_here

from trainable.data.prepare import Data
from tune.driver.cluster.connection import Cluster
from tune.driver.recording import report_keeper
from tune.driver.sweep import launch, resume
from tune.run.results import read_run
from tune.run.run_dir import RunDir


@pytest.mark.slow
def test_resume_keeps_the_choice_of_a_report_and_reminds_of_a_url_that_is_nowhere(
    cluster: Cluster,
    phantoms: Path,
    prepared: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def report_command(run_dir: RunDir, *, images: str) -> list[str]:
        return [sys.executable, "-c", f"open({str(run_dir.report)!r}, 'w').write({images!r})"]

    monkeypatch.setattr(report_keeper, "report_command", report_command)
    folder = tmp_path / "run"

    def go_on(trials: int, report: bool | None = None, notify: str | None = None) -> str:
        capsys.readouterr()
        more = [f"study.trials={trials}"]
        resume(folder, cluster=cluster, overrides=more, fit=faulty({}), report=report, notify=notify)
        return capsys.readouterr().out

    with notices_at("/hook/secret") as (url, notices):
        config = small_sweep(prepared, phantoms, study={"trials": 1}, train={"epochs": 1})
        launch(config, folder, cluster=cluster, fit=faulty({}), report=False, notify=url)
        assert len(notices) == 1
        assert "--notify was given before, but RUN does not keep its URL" in go_on(2)
        assert len(notices) == 1
        assert not (folder / "report.html").exists()
        assert "--notify" not in go_on(3, report=True, notify=url)
        assert len(notices) == 2
        assert (folder / "report.html").exists()
        (folder / "report.html").unlink()
        go_on(4)
        assert (folder / "report.html").exists()
    texts = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert not any(b"secret" in text for text in texts)
    record = read_run(folder).config.record
    assert (record.report, record.notify) == (True, True)
    assert read_run(folder).trial(3).finished


def test_the_command_that_is_printed_says_that_a_url_is_needed(tmp_path: Path, synthetic_sweep: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for path in synthetic_sweep.iterdir():
        (copy / path.name).symlink_to(path)
    (copy / "study.yaml").unlink()
    text = (synthetic_sweep / "study.yaml").read_text()
    for note, command in ("notify: true", f"voxtune resume {copy} --notify URL\n"), ("", f"voxtune resume {copy}\n"):
        (copy / "study.yaml").write_text(text.replace("\nrecord:\n", f"\nrecord:\n  {note}\n"))
        done = voxtune_here("status", copy)
        assert f"no process drives it now; go on with: {command}" in done.stdout, done.stdout + done.stderr
