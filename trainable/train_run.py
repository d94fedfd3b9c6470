"""Train one recipe in its output folder, with its logs."""

from __future__ import annotations

import errno
import shlex
from pathlib import Path

import torch

from trainable.core.config import TrainConfig
from trainable.core.device import choose_device
from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text, lock_folder
from trainable.core.options import (
    save_options,
)
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import load_split, save_split
from trainable.training import checkpoint
from trainable.training.epoch_result import EpochResult
from trainable.training.loop import fit
from trainable.training.run_log import RunLog, epoch_line
from trainable.training.state import TrainingState

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROOM = ": there is no room for it; make some"


def resume_hint(config: TrainConfig) -> str:
    """What of an interrupted training is safe, and how to go on from it; nothing before its first checkpoint."""
    latest = config.output_dir / "checkpoints" / checkpoint.LATEST
    if config.test_only or not latest.exists():
        return ""
    folder = shlex.quote(str(config.output_dir))
    return f". The last finished epoch is kept; go on with: python train.py --resume {folder}"


def out_of_memory(config: TrainConfig) -> str:
    """What did not fit into the GPU, and what to lower."""
    free, total = torch.cuda.mem_get_info(choose_device(config))
    patch = " x ".join(map(str, config.target_shape))
    used = torch.cuda.max_memory_allocated()
    ways = []
    if config.amp == "off":
        ways.append("--amp bf16 (half the memory)")
    if config.batch_size > 1:
        same = config.batch_size * config.accumulation_steps
        steps = "" if config.test_only else f" --accumulation_steps {same} (as many patches a step)"
        ways.append(f"--batch_size 1{steps}")
    if not config.gradient_checkpointing and not config.test_only:
        ways.append("--gradient_checkpointing (the same result, slower)")
    ways.append("a smaller --target_shape")
    return (
        f"out of GPU memory with batch_size {config.batch_size}, target_shape {patch}, amp {config.amp}: of the card's "
        f"{total / 2**30:.1f} GiB this training took {used / 2**30:.1f} and {free / 2**30:.1f} are free now. "
        f"Try {', '.join(ways)}"
    )


def train(config: TrainConfig, data: Data | None = None) -> EpochResult:
    """Train in output_dir, with its logs. data: its cases where they are prepared."""
    output = config.output_dir
    refuse_sweep(output)
    with lock_folder(output):
        if config.resume is None:
            refuse_used(output)
        check_files(config)
        data = data or prepare_data(config)
        log = RunLog(output)

        def on_start(training: TrainingState) -> None:
            save_options(config, output / "training_config.json")
            save_split(data.split, output / "split.json")
            atomic_write_text(output / "skipped_cases.txt", "".join(f"{reason}\n" for reason in data.skipped))
            print(training_summary(config, data), flush=True)
            if training.epoch:
                print(f"goes on after epoch {training.epoch} at lr {training.schedule.lr:.2e}", flush=True)
            if training.row and not log.has(training.epoch):  # a kill came between the last checkpoint and its row
                log.write(training.row)

        def on_epoch_end(result: EpochResult) -> None:
            row = result.row()
            log.write(row, result.pictures)
            print(epoch_line(row, config.epochs), flush=True)

        result = fit(config, data, on_epoch_end, on_start)
        print(outcome_summary(result, config))
        if data.skipped:
            print(f"{len(data.skipped)} bad cases were left out, see {output}/skipped_cases.txt")
        return result


def check_files(config: TrainConfig) -> None:
    """Raise InputError for what a training would only miss after its cases are prepared."""
    choose_device(config)
    if config.pretrained is not None:
        checkpoint.find_checkpoint(config.pretrained, wanted=checkpoint.BEST)
    if config.split_file is not None:
        load_split(config.split_file)


def refuse_sweep(output: Path) -> None:
    """Raise InputError for the folder of a sweep, or one of those that a sweep itself writes there."""
    for folder in (output, output.parent):
        if all((folder / name).exists() for name in ("study.yaml", "journal.log")):
            raise InputError(f"{output} belongs to the sweep {folder}; take another --output_dir")


def refuse_used(output: Path) -> None:
    """Raise InputError where another training's files would be written over."""
    if (output / "checkpoints" / checkpoint.LATEST).exists() or (output / "metrics.csv").exists():
        raise InputError(
            f"{output} holds a training already; go on with --resume {output} or take another --output_dir"
        )


def training_summary(config: TrainConfig, data: Data) -> str:
    """What is about to be trained, in two lines."""
    parts = ", ".join(f"{len(getattr(data.split, part))} {part}" for part in ("train", "val", "test"))
    if 0 < config.val_cases < len(data.split.val):
        parts += f", {config.val_cases} of val validated each time"
    device = choose_device(config).type
    precision = "float32" if device == "cpu" or config.amp == "off" else config.amp
    return f"cases: {parts}; cache: {data.folder}\ndevice: {device}, {precision}; output: {config.output_dir}"


def outcome_summary(result: EpochResult, config: TrainConfig) -> str:
    """How a training ended, and what to do next."""
    if result.end_reason == "non_finite":
        return (
            f"stopped: {result.note}. Lower --lr, or set --gradient_clipping 1.0 or --amp bf16; look at those cases. "
            f"Nothing was learnt from these steps{resume_hint(config) or '; no epoch was finished before'}"
        )
    reason = f"patience of {config.patience} validations" if result.end_reason == "patience" else "last epoch"
    score = f"best {config.metric} {result.best_score:.4f} at epoch {result.best_epoch}"
    best = result.checkpoints / checkpoint.BEST
    return (
        f"ended by {reason}; {score if result.best_epoch else 'its weights, as nothing is validated'}: {best}\n"
        f"test it: python train.py --resume {shlex.quote(str(best))} --test_only"
    )
