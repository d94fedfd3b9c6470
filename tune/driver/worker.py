"""One trial of a sweep on Ray: a recipe in, reports and checkpoints out. The only file here that imports Ray."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from ray import tune as ray_tune

from trainable.core.config import TrainConfig
from trainable.core.files import hold_shared_lock, scratch_dir
from trainable.core.options import make_config
from trainable.data.prepare import Data
from trainable.data.split import load_split
from trainable.training import checkpoint
from trainable.training.epoch_result import EpochResult, Row
from trainable.training.loop import fit
from trainable.training.run_log import epoch_line
from tune.driver.gpu_sharing import share_memory

Fit = Callable[[TrainConfig, Data, Callable[[EpochResult], None]], EpochResult]
fit_to_storage: Fit = partial(
    fit, save=checkpoint.save_single
)  # what a trial writes is copied to the sweep's storage at once

MAX_LEAKED_BYTES = 64 * 2**20  # bytes of GPU memory that a process may keep between trials
MAX_PINNED_BYTES = (
    2 * 2**30
)  # bytes of pinned memory that it may keep; to let go of them and pin anew takes half a second a GiB
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)


class TrialSpec(TypedDict):
    """What the driver sends to a trial's process.

    recipe: a TrainConfig as plain values, with cache_dir and split_file. checkpoint: path or URI of the folder to go
    on from, or None. threads: CPU threads that torch may use. gpu_share: of one GPU, or how many. held: a file that
    tells that this process lives.
    """

    number: int
    recipe: dict[str, Any]
    checkpoint: str | None
    threads: int
    gpu_share: float
    held: str


class FreshProcess(Exception):
    """The trial before left GPU memory behind."""


def run_trial(spec: TrialSpec, fit: Fit) -> None:
    """Train one recipe and report each validated epoch with its checkpoint.

    A restored trial first repeats the report of its checkpoint's epoch, which the driver may have missed. Ray ends a
    stopped trial by SystemExit inside `report`, in the thread behind the training, which then ends too.
    """
    hold_shared_lock(Path(spec["held"]))
    freeze_imports()
    clean_process()
    run_in_trainer_thread(lambda: torch.set_num_threads(spec["threads"]))
    recipe = make_config(spec["recipe"], f"trial {spec['number']}")
    if recipe.device != "cpu":
        share_memory(spec["gpu_share"])
    assert recipe.cache_dir is not None
    assert recipe.split_file is not None
    data = Data(recipe.cache_dir, load_split(recipe.split_file))
    with scratch_dir("voxtune-") as scratch, capture_stdout() as text:
        trouble: Row = {}
        recipe = recipe.model_copy(update={"output_dir": scratch, "save_freq": recipe.epochs + 1})
        try:
            restored = restore_checkpoint(spec, scratch)
            if restored is not None:
                row = checkpoint.load_checkpoint(restored)["row"]
                ray_tune.report({**row, "log": f"goes on after epoch {row['epoch']}\n"})
                if row["end_reason"]:
                    return
                recipe = recipe.model_copy(update={"resume": restored})
            run_in_trainer_thread(lambda: fit(recipe, data, lambda result: report(result, recipe, text)))
        except torch.cuda.OutOfMemoryError as error:
            print(f"out of GPU memory: {str(error).splitlines()[0]}")
            trouble = {"end_reason": "oom"}  # the exception holds the tensors: free them outside of it
        except OSError as error:
            if error.errno not in DISK_FULL_ERRNOS:
                raise
            trouble = {"end_reason": "", "disk_full": f"a full disk on {platform.node()}: {error}"}
        if trouble:
            free_memory()
            ray_tune.report({"epoch": 0, **trouble, "log": drain(text)})


def run_in_trainer_thread(work: Callable[[], Any]) -> Any:
    """Do some work in the thread that trains in this process, whichever trial's thread asks.

    Ray gives each trial a thread of its own, but what cudnn has planned is kept by thread, and takes a while to plan.
    """
    return trainer_thread().submit(work).result()


@lru_cache(1)
def trainer_thread() -> ThreadPoolExecutor:
    """The thread that trains in this process."""
    return ThreadPoolExecutor(1, "trainer")


@lru_cache(1)
def freeze_imports() -> None:
    """Let the garbage collector pass over what a process has imported; that took 0.3 s a trial."""
    gc.collect()
    gc.freeze()


def free_memory() -> int:
    """Let go of what a trial leaves in its process (schedulers hold a network in a cycle); the bytes still taken."""
    gc.collect()
    if not torch.cuda.is_initialized():
        return 0
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    if torch.cuda.memory.host_memory_stats().get("allocated_bytes.current", 0) > MAX_PINNED_BYTES:
        torch._C._host_emptyCache()  # of blocks of other sizes, which trials of other recipes had
    return torch.cuda.memory_allocated()


def clean_process() -> None:
    """Make sure that the trial before is gone from this process.

    Raises:
        FreshProcess: where it left GPU memory taken; the driver was told that this is no failure of the trial.
    """
    if (left := free_memory()) > MAX_LEAKED_BYTES:
        text = f"{left / 2**20:.0f} MiB of GPU memory were left by the trial before: goes on in a fresh process"
        ray_tune.report({"epoch": 0, "end_reason": "", "fresh_process": True, "log": text + "\n"})
        raise FreshProcess(text)


def restore_checkpoint(spec: TrialSpec, scratch: Path) -> Path | None:
    """The checkpoint to go on from, copied here: Ray's own after a worker's death, else the driver's."""
    source = ray_tune.get_checkpoint()
    if source is None and spec["checkpoint"] is not None:
        source = ray_tune.Checkpoint(spec["checkpoint"])
    if source is None:
        return None
    return checkpoint.find_checkpoint(Path(source.to_directory(str(scratch / "restored"))))


def report(result: EpochResult, recipe: TrainConfig, text: io.StringIO) -> None:
    """Tell Ray of a validated or last epoch, with the folder of its checkpoints.

    Where the epoch is the best so far, best_model.pth stands for latest.pth too.
    """
    row = result.row()
    print(epoch_line(row, recipe.epochs))
    row["device"] = torch.cuda.get_device_name() if torch.cuda.is_initialized() else f"CPU, {platform.machine()}"
    if result.end_reason == "non_finite":
        print(result.note)
        ray_tune.report({**row, "log": drain(text)})
    elif result.val is not None or result.end_reason:
        folder = ray_tune.Checkpoint.from_directory(str(result.checkpoints))
        ray_tune.report({**row, "log": drain(text)}, checkpoint=folder)


@contextlib.contextmanager
def capture_stdout() -> Any:
    """Collect what the trial prints; the driver writes it to the trial's stdout.log."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        yield text


def drain(text: io.StringIO) -> str:
    """What was printed since the last call."""
    value = text.getvalue()
    text.seek(0)
    text.truncate()
    return value
