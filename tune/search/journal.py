"""The run's Optuna study on disk, the one source of truth on its trials. Only the driver writes to it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.search_space import IntersectionSearchSpace
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from trainable.core.brats import REGIONS
from trainable.core.errors import InputError
from tune.search.journal_file import (
    JOURNAL,
    AtomicJournalBackend,
    check_journal,
    truncate_partial_line,
)
from tune.search.sampler import make_sampler
from tune.spec.sweep_config import DEFAULT_STUDY_NAME, SweepConfig

STOP, CONTINUE = "STOP", "CONTINUE"
INFEASIBLE_SCORE = 0.0  # what an infeasible trial is told with: Dice of nothing right
OOM_CONSTRAINT = "gpu_memory"  # the constraint that a trial out of memory has violated

optuna.logging.set_verbosity(optuna.logging.ERROR)  # `voxtune check` says what is drawn at random
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def read_trials(run_dir: Path, name: str = DEFAULT_STUDY_NAME) -> list[FrozenTrial]:
    """The trials of a run, also while a sweep writes them.

    Raises:
        InputError: where the journal is missing, or has lines that are none of it.
    """
    if not (run_dir / JOURNAL).exists():
        raise InputError(f"{run_dir / JOURNAL} is missing; restore it, it holds the sweep's trials")
    try:
        storage = JournalStorage(JournalFileBackend(str(run_dir / JOURNAL)))
        if name not in optuna.get_all_study_names(storage):
            return []
        trials = optuna.load_study(study_name=name, storage=storage).trials
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{run_dir / JOURNAL} is damaged ({error}); restore the file, it holds the sweep's trials"
        ) from None
    return [trial for trial in trials if trial.state != TrialState.WAITING]


def progress_of(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """How far a trial has come, of its attributes in the journal.

    epoch: the last reported; seconds: that it ran; end_reason: why it ended by itself; checkpoint: the place of the
    newest; best: epoch, score and Dice of each region; device: that it trained on.
    """
    return {"epoch": 0, "seconds": 0.0, "end_reason": "", "checkpoint": None, "best": {}, **attrs.get("progress", {})}


def error_summary(error: str) -> str:
    """Of a traceback the line that names the error, which other lines may follow."""
    lines = error.strip().splitlines() or ["unknown error"]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt)\b", line)]
    return (named or lines)[-1]


class Journal:
    """Asks for trials, records what they report and tells how they ended."""

    def __init__(self, run_dir: Path, config: SweepConfig, *, reset: bool = False) -> None:
        """Open or create the study. The caller holds the run's lock.

        anew: begin with an empty study, whatever an attempt to begin it has left.
        """
        self.config = config
        path = run_dir / JOURNAL
        if path.exists():
            if cut := truncate_partial_line(path):
                print(f"{path}: cut half a line ({cut} bytes) that a crash left")
            check_journal(path)
        name, storage = config.name, JournalStorage(AtomicJournalBackend(path))
        if reset and name in optuna.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        self.study = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=["maximize", "minimize"] if config.objective.cost else ["maximize"],
            load_if_exists=True,
        )
        self.search_space = IntersectionSearchSpace(include_pruned=True)
        self._running: dict[int, Trial] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def trials(self) -> list[FrozenTrial]:
        """Every trial that was handed out."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    def own_trials(self) -> list[FrozenTrial]:
        """Those of trials() that were not taken over from another run."""
        return [trial for trial in self.trials() if "source" not in trial.user_attrs]

    def enqueue_first(self, params: Sequence[dict[str, Any]]) -> None:
        """Have these parameters tried first, where nothing was yet; those left out are sampled."""
        if len(self.study.get_trials(deepcopy=False)) == len(self.trials()) and not self.own_trials():
            for each in params:
                self.study.enqueue_trial(each, skip_if_exists=True)

    def import_trial(self, trial: FrozenTrial, params: dict[str, Any] | None, extra: dict[str, Any]) -> None:
        """Add a trial of another study under these params, with its state, scores and attributes, overlaid by extra.

        One without params, outside this study's space, keeps its number and is told FAIL, which samplers ignore.
        """
        state = trial.state if params is not None else TrialState.FAIL
        attrs = {**trial.user_attrs, **extra}
        values: list[float] | None = None
        constraints: dict[str, float] | None = None
        if state == TrialState.COMPLETE:
            values = self._values(trial.values[0], progress_of(attrs))
            constraints = self._constraints(infeasible=bool(trial.constraints.get(OOM_CONSTRAINT)))
        self.study.add_trial(
            create_trial(
                state=state,
                values=values,
                params=params or {},
                distributions=self.config.space.distributions(params) if params is not None else {},
                user_attrs=attrs,
                constraints=constraints,
                intermediate_values=trial.intermediate_values,
            )
        )

    def ask(self) -> tuple[int, dict[str, Any]]:
        """A new trial: its number and option values.

        The sampler is seeded from the study's seed and the trial's number, so that a proposal depends on what is known
        and not on when the sweep was interrupted.
        """
        trials = self.trials()
        self.study.sampler = make_sampler(self.config, len(trials), self.search_space, trials)
        return self._propose(self.study.ask())

    def reattach(self) -> list[tuple[int, dict[str, Any]]]:
        """The trials that an interrupted sweep left running, told where their end is on record."""
        found, trials = [], self.trials()
        for frozen in trials:
            if frozen.state != TrialState.RUNNING:
                continue
            self.study.sampler = make_sampler(self.config, frozen.number, self.search_space, trials)
            number, values = self._propose(Trial(self.study, frozen._trial_id))
            if self.stopped(number) or self.progress(number)["end_reason"] or "hung" in frozen.user_attrs:
                self.tell(number)
            else:
                found.append((number, values))
        return found

    def _propose(self, trial: Trial) -> tuple[int, dict[str, Any]]:
        self._running[trial.number] = trial
        return trial.number, self.config.space.suggest(trial)

    def attrs(self, number: int) -> dict[str, Any]:
        """What is on record of a running trial."""
        return self._running[number].user_attrs

    def progress(self, number: int) -> dict[str, Any]:
        """How far a running trial has come."""
        return progress_of(self.attrs(number))

    def stopped(self, number: int) -> bool:
        """Did early stopping end this trial?"""
        return any(rung["decision"] == STOP for rung in self.attrs(number).get("rungs", {}).values())

    def record(self, number: int, row: Mapping[str, Any], checkpoint: str | None = None) -> None:
        """Record a report, and where its checkpoint lies below the run's storage.

        Of one of an epoch on record already (repeated by a restored trial) the seconds alone count.
        """
        trial, epoch, progress = self._running[number], int(row["epoch"]), self.progress(number)
        progress["seconds"] += row.get("time_this_iter_s", 0.0)
        if row["end_reason"] == "oom":
            progress["end_reason"] = "oom"
        if epoch > progress["epoch"]:
            progress |= {"epoch": epoch, "end_reason": row["end_reason"], "device": row.get("device")}
            progress |= {"checkpoint": checkpoint} if checkpoint else {}
            score = self.config.objective.score
            if score in row and not self.config.objective.cost:  # with two objectives Optuna has none of these
                # not trial.report, which keeps the score of an epoch that a kill had trained anew
                self.study._storage.set_trial_intermediate_value(trial._trial_id, epoch, float(row[score]))
            if score in row and row["best_epoch"] == epoch:
                dice = {region: row[f"val_dice_{region}"] for region in REGIONS}
                progress["best"] = {"epoch": epoch, "score": row["best_score"], "dice": dice}
        if progress != self.progress(number):  # last, and whole: what was cut off before it is recorded again
            trial.set_user_attr("progress", progress)

    def record_rung(self, number: int, rung: int, value: float, decision: str) -> None:
        """Record a decision of early stopping before it is acted on."""
        rungs = {**self.attrs(number).get("rungs", {}), str(rung): {"value": value, "decision": decision}}
        self._running[number].set_user_attr("rungs", rungs)

    def record_hung(self, number: int, text: str) -> None:
        """Record that a trial hung, before its process is ended: it has then failed, if no end is on record."""
        self._running[number].set_user_attr("hung", text)

    def record_error(self, number: int, text: str) -> None:
        """Record the line of an error that names it; the trial's error.txt holds all of it."""
        text = self.attrs(number).get("hung", text)
        self._running[number].set_user_attr("error", error_summary(text)[:500])

    def finalize_ended(self) -> None:
        """Tell the end of trials whose end is on record and was not told, as the sweep ended in that moment."""
        for number in list(self._running):
            self.tell(number)

    def tell(self, number: int, *, failed: bool = False) -> TrialState | None:
        """End a trial as the record says; returns its state, or None where it was only interrupted.

        COMPLETE with its best score where it ended by itself, also infeasible (out of memory); PRUNED where early
        stopping or a loss that is not finite stopped it; FAIL where an error came before such an end.
        """
        trial, progress = self._running[number], self.progress(number)
        reason = progress["end_reason"]
        score = INFEASIBLE_SCORE if reason == "oom" else progress["best"].get("score", INFEASIBLE_SCORE)
        if self.stopped(number) or reason == "non_finite":
            state = TrialState.PRUNED
        elif reason:
            state = TrialState.COMPLETE
            for name, constraint in self._constraints(infeasible=reason == "oom").items():
                trial.set_constraint(name, constraint)
        elif failed or "hung" in self.attrs(number):
            state = TrialState.FAIL
        else:
            return None
        self.study.tell(trial, self._values(score, progress) if state == TrialState.COMPLETE else None, state=state)
        del self._running[number]
        return state

    def _constraints(self, *, infeasible: bool) -> dict[str, float]:
        """What Optuna is told of a trial's memory; GPSampler wants that of each, where it is told of any."""
        return {OOM_CONSTRAINT: float(infeasible)} if infeasible or self.config.searcher.type == "gp" else {}

    def _values(self, score: float, progress: dict[str, Any]) -> list[float]:
        """What Optuna is told of a trial: its score, and what it has cost where that is asked for."""
        return [score] if self.config.objective.cost is None else [score, self.config.cost_of(progress)]
