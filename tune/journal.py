"""The run's Optuna study on disk, the one source of truth on its trials. Only the driver writes to it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from trainable.config import REGIONS
from tune.study import StudyConfig

JOURNAL = "journal.log"
STUDY = "voxtune"
STOP, CONTINUE = "STOP", "CONTINUE"
WORST_SCORE = 0.0  # what an infeasible trial is told with: Dice of nothing right

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def cut_half_line(path: Path) -> int:
    """Cut a journal back to its last newline, as a crash may leave half a line; returns the bytes cut."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return len(data) - whole


class WholeLines(JournalFileBackend):
    """A journal file that a full disk leaves whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append all of these entries, or none and OSError."""
        before = self.path.stat().st_size
        try:
            super().append_logs(logs)
        except OSError:
            os.truncate(self.path, before)
            raise


def read_trials(run: Path, name: str = STUDY) -> list[FrozenTrial]:
    """The trials of a run, also while a sweep writes them; none before its first."""
    if not (run / JOURNAL).exists():
        return []
    storage = JournalStorage(JournalFileBackend(str(run / JOURNAL)))
    studies = {summary.study_name for summary in optuna.get_all_study_summaries(storage)}
    if name not in studies:
        return []
    return [t for t in optuna.load_study(study_name=name, storage=storage).trials if t.state != TrialState.WAITING]


class Journal:
    """Asks for trials, records what they report and tells how they ended."""

    def __init__(self, run: Path, study: StudyConfig) -> None:
        """Open or create the study. The caller holds the run's lock, so a lock file left behind is stale."""
        self.study_config = study
        path = run / JOURNAL
        if (lock := path.with_name(path.name + ".lock")).is_symlink() or lock.exists():
            lock.unlink()
            print(f"{lock}: removed; a process that was killed left it")
        if path.exists() and (cut := cut_half_line(path)):
            print(f"{path}: cut half a line ({cut} bytes) that a crash left")
        self.study = optuna.create_study(
            study_name=study.record.get("study", STUDY),
            storage=JournalStorage(WholeLines(path)),
            directions=["maximize", "minimize"] if study.study.cost else ["maximize"],
            load_if_exists=True,
        )
        self._live: dict[int, Trial] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def trials(self) -> list[FrozenTrial]:
        """Every trial that was handed out."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    def enqueue_first(self, params: Sequence[dict[str, Any]]) -> None:
        """Have these parameters tried first, where nothing was yet; those left out are sampled."""
        if not self.study.get_trials(deepcopy=False):
            for each in params:
                self.study.enqueue_trial(each)

    def ask(self) -> tuple[int, dict[str, Any]]:
        """A new trial: its number and option values.

        The sampler is seeded from the study's seed and the trial's number, so that a proposal depends on what is known
        and not on when the sweep was interrupted.
        """
        self.study.sampler = make_sampler(self.study_config, len(self.trials()))
        return self._propose(self.study.ask())

    def reattach(self) -> list[tuple[int, dict[str, Any]]]:
        """The trials that an interrupted sweep left running, told where their end is on record."""
        found = []
        for frozen in self.trials():
            if frozen.state != TrialState.RUNNING:
                continue
            self.study.sampler = make_sampler(self.study_config, frozen.number)
            number, values = self._propose(Trial(self.study, frozen._trial_id))
            if self.stopped(number) or frozen.user_attrs.get("end_reason") or frozen.user_attrs.get("hung"):
                self.tell(number)
            else:
                found.append((number, values))
        return found

    def _propose(self, trial: Trial) -> tuple[int, dict[str, Any]]:
        self._live[trial.number] = trial
        return trial.number, self.study_config.space.suggest(trial)

    def attrs(self, number: int) -> dict[str, Any]:
        """What is on record of a running trial."""
        return self._live[number].user_attrs

    def stopped(self, number: int) -> bool:
        """Did early stopping end this trial?"""
        return any(rung["decision"] == STOP for rung in self.attrs(number).get("rungs", {}).values())

    def record(self, number: int, row: Mapping[str, Any]) -> None:
        """Record a report. One of an epoch on record already (repeated by a restored trial) changes nothing."""
        trial, epoch = self._live[number], int(row["epoch"])
        metric = self.study_config.study.score
        if row.get("end_reason") == "oom":
            trial.set_user_attr("end_reason", "oom")
        if epoch <= trial.user_attrs.get("epoch", 0):
            return
        if metric in row:
            if not self.study_config.study.cost:  # Optuna has no intermediate values where there are two objectives
                trial.report(float(row[metric]), epoch)
            if row["best_epoch"] == epoch:
                dice = {region: row[f"val_dice_{region}"] for region in REGIONS}
                trial.set_user_attr("best", {"epoch": epoch, "score": row["best_score"], "dice": dice})
        if row["end_reason"]:
            trial.set_user_attr("end_reason", row["end_reason"])
        trial.set_user_attr("epoch", epoch)  # last: a report that was cut off before it is recorded again

    def record_rung(self, number: int, rung: int, value: float, decision: str) -> None:
        """Record a decision of early stopping before it is acted on."""
        rungs = {**self.attrs(number).get("rungs", {}), str(rung): {"value": value, "decision": decision}}
        self._live[number].set_user_attr("rungs", rungs)

    def record_checkpoint(self, number: int, path: str) -> None:
        """Record where a trial's newest checkpoint lies, below the run's storage."""
        self._live[number].set_user_attr("checkpoint", path)

    def record_seconds(self, number: int, seconds: float) -> None:
        """Add to the wall seconds that a trial has run."""
        self._live[number].set_user_attr("seconds", self.attrs(number).get("seconds", 0.0) + seconds)

    def record_hung(self, number: int, text: str) -> None:
        """Record that a trial hung, before its process is ended: it has then failed, whatever comes."""
        self._live[number].set_user_attr("hung", text)

    def record_error(self, number: int, text: str) -> None:
        """Record the last line of an error; the trial's error.txt holds all of it."""
        text = self.attrs(number).get("hung", text)
        self._live[number].set_user_attr("error", (text.strip().splitlines() or ["unknown error"])[-1][:500])

    def settle(self) -> None:
        """Tell the end of trials whose end is on record and was not told, as the sweep ended in that moment."""
        for number in list(self._live):
            self.tell(number)

    def tell(self, number: int, *, failed: bool = False) -> TrialState | None:
        """End a trial as the record says; returns its state, or None where it was only interrupted.

        COMPLETE with its best score where it ended by itself, also infeasible (out of memory); PRUNED where early
        stopping or a loss that is not finite stopped it; FAIL after an error.
        """
        trial, attrs = self._live[number], self.attrs(number)
        reason = attrs.get("end_reason", "")
        state, value = TrialState.COMPLETE, attrs.get("best", {}).get("score", WORST_SCORE)
        if failed or "hung" in attrs:
            state = TrialState.FAIL
        elif self.stopped(number) or reason == "non_finite":
            state = TrialState.PRUNED
        elif reason == "oom":
            trial.set_constraint("gpu_memory", 1.0)
            value = WORST_SCORE
        elif not reason:
            return None
        values = [value] if self.study_config.study.cost is None else [value, self.study_config.cost_of(attrs)]
        self.study.tell(trial, values if state == TrialState.COMPLETE else None, state=state)
        del self._live[number]
        return state


def make_sampler(study: StudyConfig, number: int) -> optuna.samplers.BaseSampler:
    """The sampler that proposes trial `number`, of which study.at_random lists what it draws at random."""
    seed = int(np.random.SeedSequence([study.study.seed, number]).generate_state(1)[0])
    startup = study.searcher.startup_trials
    samplers = optuna.samplers
    match study.searcher.type:
        case "random":
            return samplers.RandomSampler(seed=seed)
        case "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=startup)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        case _:
            return samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True)
