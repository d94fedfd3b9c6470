"""The run's Optuna study on disk, the one source of truth on its trials. Only the driver writes to it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.search_space import IntersectionSearchSpace
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from trainable.core.brats import REGIONS
from trainable.core.errors import InputError
from trainable.core.logger import logger
from trainable.training.epoch_result import EndReason
from tune.search.asha import Decision
from tune.search.journal_file import JOURNAL, AtomicJournalBackend, check_journal, truncate_partial_line
from tune.search.optuna_compat import set_intermediate_value, trial_id
from tune.search.sampler import make_sampler
from tune.search.trial_progress import BestEpoch, Progress, stopped_at
from tune.spec.run_record import DEFAULT_STUDY_NAME
from tune.spec.sweep_config import SweepConfig
from tune.spec.trial_spec import Report

INFEASIBLE_SCORE = 0.0  # reported to Optuna for an infeasible trial: the Dice if nothing is right
OOM_CONSTRAINT = "gpu_memory"  # the constraint that a trial out of memory violates

optuna.logging.set_verbosity(optuna.logging.ERROR)  # `voxtune check` names the options that are drawn at random
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def read_trials(run_dir: Path, study_name: str = DEFAULT_STUDY_NAME) -> list[FrozenTrial]:
    """Return the trials of a run, also while a sweep writes them.

    Raises:
        InputError: the journal is missing, or has lines that are not its own.
    """
    path = run_dir / JOURNAL
    if not path.exists():
        raise InputError(f"{path} is missing; restore it, it holds the sweep's trials")
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        if study_name not in optuna.get_all_study_names(storage):
            return []
        trials = optuna.load_study(study_name=study_name, storage=storage).trials
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); restore the file, it holds the sweep's trials") from None
    return [frozen for frozen in trials if frozen.state != TrialState.WAITING]


def error_summary(error: str) -> str:
    """Return the line of a traceback that names the error, which other lines may follow."""
    lines = error.strip().splitlines() or ["unknown error"]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt)\b", line)]
    return (named or lines)[-1]


class Journal:
    """Proposes trials, records what they report, and reports to Optuna how they ended.

    study: Optuna's, in RUN/journal.log.
    """

    def __init__(self, run_dir: Path, config: SweepConfig, *, reset: bool = False) -> None:
        """Open or create the study. The caller holds the run's lock.

        reset: delete a study of this name left by a failed launch.
        """
        self.config = config
        path = run_dir / JOURNAL
        if path.exists():
            if cut := truncate_partial_line(path):
                logger.warning(f"{path}: cut half a line ({cut} bytes) that a crash left")
            check_journal(path)
        name, storage = config.record.study, JournalStorage(AtomicJournalBackend(path))
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
        """Return nothing for Ray's snapshot of its tuner, which voxtune never reads."""
        return {}

    def trials(self) -> list[FrozenTrial]:
        """Return every trial that was handed out."""
        return [frozen for frozen in self.study.get_trials(deepcopy=False) if frozen.state != TrialState.WAITING]

    def own_trials(self) -> list[FrozenTrial]:
        """Return those of trials() that were not imported from another run."""
        return [frozen for frozen in self.trials() if "source" not in frozen.user_attrs]

    def enqueue_first(self, params: Sequence[dict[str, Any]]) -> None:
        """Have these params tried first, if no trial was yet; options that are left out are sampled."""
        if len(self.study.get_trials(deepcopy=False)) == len(self.trials()) and not self.own_trials():
            for params_of_trial in params:
                self.study.enqueue_trial(params_of_trial, skip_if_exists=True)

    def import_trial(self, frozen: FrozenTrial, params: dict[str, Any] | None, extra: dict[str, Any]) -> None:
        """Add a trial of another study.

        Args:
            frozen: the trial, whose state, scores and attributes are kept.
            params: its params in this study; None if it is outside this study's space. It then keeps its number and
                is reported to Optuna as FAIL, which samplers ignore.
            extra: attributes that overlay the trial's.
        """
        state = frozen.state if params is not None else TrialState.FAIL
        attrs = {**frozen.user_attrs, **extra}
        values: list[float] | None = None
        constraints: dict[str, float] | None = None
        if state == TrialState.COMPLETE:
            values = self._values(frozen.values[0], Progress.from_attrs(attrs))
            constraints = self._constraints(infeasible=bool(frozen.constraints.get(OOM_CONSTRAINT)))
        self.study.add_trial(
            create_trial(
                state=state,
                values=values,
                params=params or {},
                distributions=self.config.space.distributions(params) if params is not None else {},
                user_attrs=attrs,
                constraints=constraints,
                intermediate_values=frozen.intermediate_values,
            )
        )

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Return a new trial: its number and option values.

        The sampler is seeded from the study's seed and the trial's number, so that a proposal depends on what is known
        and not on when the sweep was interrupted.
        """
        trials = self.trials()
        self.study.sampler = make_sampler(self.config, len(trials), self.search_space, trials)
        return self._propose(self.study.ask())

    def reattach(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the trials that an interrupted sweep left running.

        Those whose end is in the journal are reported to Optuna as ended instead.
        """
        interrupted, trials = [], self.trials()
        for frozen in trials:
            if frozen.state != TrialState.RUNNING:
                continue
            self.study.sampler = make_sampler(self.config, frozen.number, self.search_space, trials)
            number, values = self._propose(Trial(self.study, trial_id(frozen)))
            if self.stopped(number) or self.progress(number).end_reason or "hung" in frozen.user_attrs:
                self.tell(number)
            else:
                interrupted.append((number, values))
        return interrupted

    def _propose(self, trial: Trial) -> tuple[int, dict[str, Any]]:
        self._running[trial.number] = trial
        return trial.number, self.config.space.suggest(trial)

    def attrs(self, number: int) -> dict[str, Any]:
        """Return the attributes of a running trial in the journal."""
        return self._running[number].user_attrs

    def progress(self, number: int) -> Progress:
        """Return how far a running trial has come."""
        return Progress.from_attrs(self.attrs(number))

    def stopped(self, number: int) -> bool:
        """Return whether early stopping has ended this trial."""
        return stopped_at(self.attrs(number)) is not None

    def record(self, number: int, report: Report, checkpoint: str | None = None) -> None:
        """Record a report, and the path of its checkpoint below the run's storage.

        If the epoch is in the journal already (a restored trial repeats it), only the seconds count.
        """
        trial, before, epoch = self._running[number], self.progress(number), int(report["epoch"])
        progress = replace(before, seconds=before.seconds + report.get("time_this_iter_s", 0.0))
        if report["end_reason"] == EndReason.OUT_OF_MEMORY:
            progress = replace(progress, end_reason=EndReason.OUT_OF_MEMORY)
        if epoch > before.epoch:
            progress = replace(
                progress,
                epoch=epoch,
                end_reason=EndReason(report["end_reason"]),
                device=report.get("device"),
                checkpoint=checkpoint or before.checkpoint,
            )
            score = self.config.objective.score
            if score in report and not self.config.objective.cost:  # with two objectives Optuna takes none of these
                set_intermediate_value(self.study, trial, epoch, float(report[score]))
            if score in report and report["best_epoch"] == epoch:
                scores = cast(Mapping[str, float], report)
                dice = {region: scores[f"val_dice_{region}"] for region in REGIONS}
                progress = replace(progress, best=BestEpoch(epoch, report["best_score"], dice))
        if progress != before:  # written last and in one entry: a report that a kill cut off is recorded again
            trial.set_user_attr("progress", progress.to_attrs())

    def record_rung(self, number: int, rung: int, value: float, decision: Decision) -> None:
        """Record a decision of early stopping before it is acted on."""
        rungs = {**self.attrs(number).get("rungs", {}), str(rung): {"value": value, "decision": decision}}
        self._running[number].set_user_attr("rungs", rungs)

    def record_hung(self, number: int, text: str) -> None:
        """Record that a trial hung, before its process is ended: it has failed, unless its end is in the journal."""
        self._running[number].set_user_attr("hung", text)

    def record_error(self, number: int, text: str) -> None:
        """Record the line of an error that names it; the trial's error.txt has the whole text."""
        text = self.attrs(number).get("hung", text)
        self._running[number].set_user_attr("error", error_summary(text)[:500])

    def finalize_ended(self) -> None:
        """Report to Optuna the trials whose end is in the journal only, as the sweep ended at that moment."""
        for number in list(self._running):
            self.tell(number)

    def tell(self, number: int, *, failed: bool = False) -> TrialState | None:
        """Report the final state derived from the journal to Optuna.

        COMPLETE with its best score if it ended by itself, also if infeasible (out of memory); PRUNED if early stopping
        or a loss that is not finite stopped it; FAIL if an error came before such an end.

        Returns:
            The state, or None if the trial was only interrupted.
        """
        trial, progress = self._running[number], self.progress(number)
        infeasible = progress.end_reason == EndReason.OUT_OF_MEMORY
        score = INFEASIBLE_SCORE if infeasible or progress.best is None else progress.best.score
        if self.stopped(number) or progress.end_reason == EndReason.NON_FINITE:
            state = TrialState.PRUNED
        elif progress.end_reason:
            state = TrialState.COMPLETE
            for name, constraint in self._constraints(infeasible=infeasible).items():
                trial.set_constraint(name, constraint)
        elif failed or "hung" in self.attrs(number):
            state = TrialState.FAIL
        else:
            return None
        self.study.tell(trial, self._values(score, progress) if state == TrialState.COMPLETE else None, state=state)
        del self._running[number]
        return state

    def _constraints(self, *, infeasible: bool) -> dict[str, float]:
        """Return the memory constraint to report to Optuna; GPSampler needs it of every trial if any trial has it."""
        return {OOM_CONSTRAINT: float(infeasible)} if infeasible or self.config.searcher.type == "gp" else {}

    def _values(self, score: float, progress: Progress) -> list[float]:
        """Return the objectives to report to Optuna: the score, and the cost if one is configured."""
        return [score] if self.config.objective.cost is None else [score, self.config.cost_of(progress.seconds)]
