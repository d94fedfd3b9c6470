"""A trial of a sweep in its process: a recipe in, reports and checkpoints out."""

from __future__ import annotations

import contextlib
import io
import platform
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import ray
import torch
from PIL import Image
from ray import tune as ray_tune

from trainable.core.config import TrainConfig
from trainable.core.device import device_name
from trainable.core.files import atomic_write
from trainable.core.gpu_memory import memory_taken_by_others
from trainable.core.locks import hold_shared_lock, scratch_dir
from trainable.core.logger import init_logger, logger
from trainable.core.options import make_config
from trainable.core.rank_group import LostNodeError
from trainable.data.cache import CacheError
from trainable.data.prepare import Data
from trainable.training.case_scores import case_rows
from trainable.training.epoch_result import EndReason, EpochResult, Pictures
from trainable.training.training_log import epoch_line
from tune.driver.processes.gpu_share import missing_gpu, share_memory
from tune.driver.processes.node_ranks import other_nodes
from tune.driver.processes.node_trouble import NodeTroubleError, trouble_of_this_node
from tune.driver.processes.progress_board import BoardAddress, ProgressSender
from tune.driver.processes.run_cases import cases_as_begun, cases_of
from tune.driver.processes.stack_dump import StackDump, dump_stacks_of_hang
from tune.driver.processes.trainer_memory import MAX_LEAKED_BYTES, TAKEN_MEMORY_PAUSE, GpuMemoryTakenError, free_memory
from tune.driver.processes.trainer_thread import freeze_imports, run_in_trainer_thread
from tune.driver.processes.trial_fit import Fit
from tune.driver.processes.trial_ranks import fit_trial
from tune.driver.processes.trial_restore import Restored, restore_checkpoint
from tune.run.provenance import digest_of
from tune.run.run_dir import TrialDir
from tune.spec.sections import processes_per_node
from tune.spec.trial_spec import Report, TrialSpec

SIGN_OF_LIFE: Report = {"epoch": 0, "end_reason": "", "sign_of_life": True, "log": "", "time_this_iter_s": 0.0}
SIGN_OF_LIFE_AT = 0.2  # of report_timeout: the driver hears of a trial that trains without a validation so often


class FreshProcess(Exception):
    """The trial before has left GPU memory occupied in this process."""


def run_trial(spec: TrialSpec, fit: Fit, board: BoardAddress | None = None) -> None:
    """Train one recipe in this process, and report each validated or last epoch with its checkpoints.

    Cases that this machine lacks are prepared before. A restored trial first repeats the report of its checkpoint's
    epoch, which the driver may have missed, or to which it goes back; if that was the last one, nothing is trained.
    Running out of GPU memory, a full disk, cases that are gone or have changed since the run began, and a reserved GPU
    that torch does not see are reported, other errors are raised, also that other processes hold the GPU memory. Ray
    stops a trial by raising SystemExit inside `report`. That happens in the background thread; the training loop
    re-raises it.

    Args:
        spec: what to train.
        fit: trains a recipe on cases, and calls a function after each epoch, and one with its progress in between.
        board: address of a ProgressBoard; None if nobody looks at what the trial is doing between its reports.
    """
    init_logger()
    hold_shared_lock(Path(spec["lock_file"]))
    freeze_imports()
    clean_process()
    run_in_trainer_thread(lambda: torch.set_num_threads(spec["cpu"]))
    recipe = make_config(spec["recipe"], f"trial {spec['number']}")
    if recipe.device != "cpu":
        if spec["gpu_share"] and (missing := missing_gpu(spec["gpu_share"])):  # else it would train on the CPU
            ray_tune.report(dict(sweep_error(missing)))
            return
        share_memory(spec["gpu_share"])
    data = cases_of(recipe)
    with (
        scratch_dir("voxtune-") as scratch,
        capture_stdout() as text,
        dump_stacks_of_hang(Path(spec["stdout_log"]), spec["report_timeout"]) as dump,
    ):
        failure: Report | None = None
        taken = ""
        recipe = recipe.model_copy(update={"output_dir": scratch, "save_freq": recipe.epochs + 1})
        trial = TrialReports(spec, recipe, text, dump, ProgressSender(board, spec["number"]))
        trial.say_where()
        try:
            with trouble_of_this_node():
                train_on(spec, recipe, data, fit, trial)
        except LostNodeError as error:
            ask_for_fresh_process(str(error))  # this one's place is tied to the lost node
            raise
        except torch.cuda.OutOfMemoryError as error:
            logger.info(f"out of GPU memory: {str(error).splitlines()[0]}")
            taken = memory_taken_by_others(spec["gpu_share"])
            failure = {"epoch": 0, "end_reason": EndReason.OUT_OF_MEMORY.value, "log": ""}
        except NodeTroubleError as error:
            failure = sweep_error(str(error))
        if failure is not None:  # outside of `except`, since the exception holds the tensors
            free_memory()
            if taken:  # it says nothing of the recipe: an error, after which the trial is restarted
                time.sleep(TAKEN_MEMORY_PAUSE)
                raise GpuMemoryTakenError(taken)
            trial.send(failure)


def train_on(spec: TrialSpec, recipe: TrainConfig, data: Data, fit: Fit, trial: TrialReports) -> None:
    """Train a trial from its last whole checkpoint, if there is one, unless it has ended with that; see run_trial.

    recipe: its output_dir is a folder of this process.
    """
    data = cases_as_begun(data, recipe, Path(spec["contents_file"]), trial.give_sign_of_life)
    trial.data = check_digest(data, spec)
    restored = restore_checkpoint(spec, recipe.output_dir)
    if restored is not None:
        if trial.repeat(restored):
            return
        recipe = recipe.model_copy(update={"resume": restored.file})
    if processes_per_node(spec["gpu_share"]) * spec["nodes"] > 1:
        fit_trial(spec, recipe, data, fit, trial.on_epoch_end, trial.progress.send, trial.give_sign_of_life)
    else:
        run_in_trainer_thread(lambda: fit(recipe, data, trial.on_epoch_end, trial.progress.send))


def reserved_gpus() -> list[int]:
    """Return the indices on this machine of the GPUs that Ray has reserved for this process.

    A GPU that CUDA_VISIBLE_DEVICES names by its UUID has no index, and is left out.
    """
    return sorted(int(gpu) for gpu in ray.get_gpu_ids() if str(gpu).isdecimal())


def sweep_error(reason: str) -> Report:
    """Return the report of a trial that cannot go on for a reason that other trials have too; it ends the sweep."""
    return {"epoch": 0, "end_reason": "", "sweep_error": reason, "log": f"{reason}\n"}


def check_digest(data: Data, spec: TrialSpec) -> str:
    """Return the hash of the prepared cases; raise CacheError if it is not that with which the run began."""
    digest = digest_of(data)
    if spec["data"] not in (None, digest):
        raise CacheError(f"{data.folder}: the cases are not those that the sweep began with; restore them")
    return digest


class TrialReports:
    """Sends the reports of a trial to Ray, each with what the trial has printed since the last one, and its progress.

    data: hash of the cases that it is trained and scored on; "" before it is known. pictures: the folder for those of
    the best epoch.
    """

    def __init__(
        self, spec: TrialSpec, recipe: TrainConfig, text: io.StringIO, dump: StackDump | None, progress: ProgressSender
    ) -> None:
        self.recipe, self.text, self.dump, self.progress, self.data = recipe, text, dump, progress, ""
        self.gpu_share, self.nodes, self.timeout = spec["gpu_share"], spec["nodes"], spec["report_timeout"]
        self.pictures = TrialDir(Path(spec["stdout_log"]).parent).pictures
        self.last_report = self.last_message = time.monotonic()

    def send(self, report: Report, checkpoints: Path | None = None) -> None:
        """Report to Ray, with the files in `checkpoints` if given; return when the driver has decided.

        Raises:
            SystemExit: if the driver stops the trial.
        """
        seconds = time.monotonic() - self.last_report  # Ray's own number goes wrong if the clock is set
        self.deliver({**report, "time_this_iter_s": seconds}, checkpoints)
        self.last_report = time.monotonic()

    def deliver(self, report: Report, checkpoints: Path | None = None) -> None:
        """Hand a report to Ray with what was printed since the last one, and count anew until the trial has hung."""
        handle = None if checkpoints is None else ray_tune.Checkpoint.from_directory(str(checkpoints))
        ray_tune.report({**report, "data": self.data, "log": report["log"] + drain(self.text)}, checkpoint=handle)
        self.last_message = time.monotonic()
        if self.dump is not None:
            self.dump.restart()

    def say_where(self) -> None:
        """Report the machine and the GPUs that this process runs on, and the trial's other nodes."""
        where: Report = {**SIGN_OF_LIFE, "host": platform.node(), "gpus": reserved_gpus() if self.gpu_share else []}
        if self.nodes > 1:
            where["other_nodes"] = other_nodes()
        self.deliver(where)

    def repeat(self, restored: Restored) -> bool:
        """Repeat the report in a restored checkpoint, with what is wrong with newer ones.

        Returns:
            Whether the trial had ended with that epoch.
        """
        state, how = restored.state, f"goes on after epoch {restored.epoch}" if restored.file else "begins again"
        report = cast(Report, {**state.get("row", {"epoch": 0, "end_reason": ""}), "log": f"{how}\n"})
        if state.get("case_scores"):
            report["case_scores"] = state["case_scores"]
        if restored.damage:
            report |= {"went_back": restored.damage, "went_back_to": restored.path}
            report["log"] = f"{restored.damage}\n{how}\n"
        self.send(report)
        return bool(report["end_reason"])

    def on_epoch_end(self, result: EpochResult, device: str = "") -> None:
        """Print an epoch's line; if the epoch was validated or is the last, report it with its folder of checkpoints.

        After another epoch the driver only gets a sign of life, as often as it needs one.

        If the epoch is the best so far, that folder has best_model.pth only, which replaces latest.pth. If a loss that
        is not finite ended the training, the report has no checkpoints.

        device: the name of the GPU; "" for that of this process.
        """
        row = result.row()
        logger.info(epoch_line(row, self.recipe.epochs))
        row["device"] = device or device_name()
        report = cast(Report, {**row, "log": ""})
        if result.case_scores:
            report["case_scores"] = case_rows(result.epoch, result.case_scores)
        if result.best_epoch == result.epoch:
            save_pictures(result.pictures, self.pictures)
        if result.end_reason == EndReason.NON_FINITE:
            logger.info(result.note)
            self.send(report)
        elif result.val is not None or result.end_reason:
            self.send(report, result.checkpoints)
        else:
            self.give_sign_of_life()

    def give_sign_of_life(self) -> None:
        """Report that the trial goes on, unless that or more was reported a short while ago."""
        if self.timeout is not None and time.monotonic() - self.last_message > SIGN_OF_LIFE_AT * self.timeout:
            self.deliver(SIGN_OF_LIFE)


def save_pictures(pictures: Pictures, folder: Path) -> None:
    """Write pictures as FOLDER/NAME.png; that they cannot be written is printed, and ends no training.

    Nothing is written on a machine that does not see the run's folder.
    """
    if not folder.parent.is_dir():
        return
    try:
        folder.mkdir(exist_ok=True)
        for name, rgb in pictures.items():
            picture = Image.fromarray(rgb)
            atomic_write(folder / f"{name}.png", partial(picture.save, format="PNG"), fsync=False)
    except OSError as error:
        logger.info(f"{folder}: pictures of the validation cases cannot be written: {error}")


def clean_process() -> None:
    """Free what the trial before has left in this process.

    Raises:
        FreshProcess: if more than MAX_LEAKED_BYTES of GPU memory stay occupied. A report is sent before, so that the
            driver does not count this as a failure of the trial.
    """
    if (left := free_memory()) > MAX_LEAKED_BYTES:
        message = f"{left / 2**20:.0f} MiB of GPU memory were left by the trial before: goes on in a fresh process"
        ask_for_fresh_process(message)
        raise FreshProcess(message)


def ask_for_fresh_process(why: str) -> None:
    """Report that this process is about to raise an error after which the trial goes on in another one."""
    report: Report = {"epoch": 0, "end_reason": "", "fresh_process": True, "log": f"{why}\n"}
    report["time_this_iter_s"] = 0.0
    ray_tune.report(dict(report))


@contextlib.contextmanager
def capture_stdout() -> Iterator[io.StringIO]:
    """Collect what this process prints in the text that is yielded; the driver writes it to the trial's stdout.log."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        yield text


def drain(text: io.StringIO) -> str:
    """Return and remove what was printed since the last call."""
    value = text.getvalue()
    text.seek(0)
    text.truncate()
    return value
