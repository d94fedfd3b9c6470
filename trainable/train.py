"""Train one recipe in its output folder, with its logs."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from trainable.cases.case_search import case_around
from trainable.cases.grid import Spacing
from trainable.core.command_name import train_command
from trainable.core.config import TrainConfig
from trainable.core.console import terminal_width
from trainable.core.device import check_precision, choose_device
from trainable.core.division import micro_batch_groups
from trainable.core.errors import InputError
from trainable.core.files import atomic_write_text
from trainable.core.gpu_memory import memory_taken_by_others
from trainable.core.locks import lock_folder
from trainable.core.logger import logger
from trainable.core.option_files import save_options
from trainable.core.options import option_names, to_dict
from trainable.core.ranks import from_main, is_main, started_by_one_torchrun, world_size
from trainable.data.empty_regions import check_regions
from trainable.data.prepare import Data, prepare_data
from trainable.data.split import load_split, save_split, seen_line
from trainable.training.case_scores import case_rows
from trainable.training.checkpoint import find_checkpoint, load_latest_valid, load_metadata, spacing_of
from trainable.training.epoch_result import EndReason, EpochResult
from trainable.training.loop import fit
from trainable.training.seen_cases import cases_by_part
from trainable.training.state import TrainingState, same_options
from trainable.training.training_dir import BEST, LATEST, TrainingDir
from trainable.training.training_log import TrainingLog, epoch_line, read_rows

FULL_DISK_HINT = ": there is no space for it; free some"


def resume_hint(config: TrainConfig) -> str:
    """Return a sentence on how to go on with an interrupted training, to append to a message.

    It is "" before the first checkpoint, and for a test.
    """
    latest = TrainingDir(config.output_dir).latest
    if config.test_only or not latest.exists():
        return ""
    if config.resume is not None and not same_options(config, saved_options(latest)):
        return ". Nothing was trained by this call; give the same command again"
    folder = shlex.quote(str(config.output_dir))
    return f". The last finished epoch is kept; go on with: {resume_command()} --resume {folder}"


def saved_options(path: Path) -> dict[str, Any]:
    """Return the options in a checkpoint, as plain values; none if it cannot be read."""
    with contextlib.suppress(InputError):
        return dict(load_metadata(path)["config"])
    return {}


def resume_command() -> str:
    """Return the command that starts a training on as many processes as this one has; which launcher if it is known."""
    if world_size() == 1:
        return train_command()
    if not started_by_one_torchrun():
        return f"the same launcher and {train_command()}"
    program = "train.py" if train_command().endswith("train.py") else "-m tune train"
    return f"torchrun --nproc-per-node {world_size()} {program}"


def out_of_memory(config: TrainConfig) -> str:
    """Return a message on what did not fit into the GPU's memory, who else holds it, and which options need less."""
    free, total = torch.cuda.mem_get_info(choose_device(config))
    patch = " x ".join(map(str, config.target_shape))
    used = torch.cuda.max_memory_allocated()
    taken = memory_taken_by_others(1)
    others = f"; {taken}" if taken else ""
    ways = ["to free that memory, or another GPU with CUDA_VISIBLE_DEVICES"] * bool(taken)
    if config.amp == "off":
        ways.append("--amp bf16 (half the memory)")
    if config.batch_size > 1:
        same = config.batch_size * config.accumulation_steps
        steps = "" if config.test_only else f" --accumulation_steps {same} (as many patches per step)"
        ways.append(f"--batch_size 1{steps}")
    if not config.gradient_checkpointing and not config.test_only:
        ways.append("--gradient_checkpointing (the same result, slower)")
    ways.append("a smaller --target_shape")
    return (
        f"out of GPU memory with batch_size {config.batch_size}, target_shape {patch}, amp {config.amp}: of the card's "
        f"{total / 2**30:.1f} GiB this training took {used / 2**30:.1f} and {free / 2**30:.1f} are free now{others}. "
        f"Try {', '.join(ways)}"
    )


def train(
    config: TrainConfig,
    data: Data | None = None,
    on_epoch: Callable[[EpochResult], object] = lambda _: None,
    *,
    flush: bool = True,
    tests_follow: bool = False,
) -> EpochResult:
    """Train in output_dir, with its logs and its checkpoints; return the last epoch's result.

    A training that diverges raises no error: its result has the end_reason NON_FINITE.

    Args:
        config: all options of the training.
        data: its cases, if they are prepared already; None to prepare those of data_dir.
        on_epoch: called in the background with each epoch's result, once that is logged.
        flush: flush files to the disk, so that they survive a crash of the machine too. Where several trainings use
            a disk, each waits until it has written the checkpoints of all.
        tests_follow: the caller scores the test cases itself, so do not print how to.

    Of several processes that train together each must call this; rank 0 alone prepares the cases, writes and prints.

    Raises:
        InputError: if output_dir is in use or belongs to another training or a sweep, the cases, a file or the device
            cannot be used, no training case has a tumour, or a resumed training has ended already.
    """
    micro_batch_groups(config, world_size())
    if not is_main():
        return train_with_main(config, flush=flush)
    paths = TrainingDir(config.output_dir)
    refuse_sweep(paths.path)
    if config.resume is None:
        refuse_data_folder(config)
    with lock_folder(paths.path):
        if config.resume is None:
            refuse_used(paths.path)
            refuse_other_split_file(config)
        check_files(config)
        data = data or prepare_data(config, begun_with=begun_spacing(config))
        check_regions(data.folder, data.split)
        from_main((config, data))
        options = to_dict(config)
        log = TrainingLog(paths.path, options={name: options[name] for name in option_names(role="recipe")})
        seen = ""

        def on_start(training: TrainingState) -> None:
            nonlocal seen
            seen = begin_output(config, data, training, log, flush=flush)

        def on_epoch_end(result: EpochResult) -> None:
            row = result.row()
            log.write(row, result.pictures, case_rows(result.epoch, result.case_scores))
            logger.info(epoch_line(row, config.epochs, terminal_width()))
            on_epoch(result)

        result = fit(config, data, on_epoch_end, on_start, flush=flush)
        log.end(failed=result.end_reason == EndReason.NON_FINITE)
        logger.info("\n".join(filter(None, [outcome_summary(result, config, tests_follow=tests_follow), seen])))
        if data.skipped:
            logger.info(f"{len(data.skipped)} bad cases were left out, see {paths.skipped_cases}")
        return result


def begun_spacing(config: TrainConfig) -> Spacing | None:
    """Return the voxel size in mm that a resumed training has; None for a new one, or one that older code began."""
    return None if config.resume is None else spacing_of(load_latest_valid(config.resume)[1])


def begin_output(config: TrainConfig, data: Data, training: TrainingState, log: TrainingLog, *, flush: bool) -> str:
    """Write the files of output_dir that are there from the start, and print what is trained.

    Returns:
        A line on the val and test cases that the pretrained weights have seen; "" if there are none.
    """
    paths, seen = TrainingDir(config.output_dir), seen_line(training.history.seen_of(cases_by_part(data)), data.split)
    save_options(config, paths.config, fsync=flush)
    save_split(data.split, paths.split, fsync=flush)
    if config.resume is None or not paths.skipped_cases.exists():  # resumed, it looks at no bad case again
        atomic_write_text(paths.skipped_cases, "".join(f"{reason}\n" for reason in data.skipped), fsync=flush)
    logger.info("\n".join(filter(None, [training_summary(config, data), seen])))
    if training.epoch:
        logger.info(f"goes on after epoch {training.epoch} at lr {training.schedule.lr:.2e}")
    if training.row and not log.has(training.epoch):  # a kill came between the last checkpoint and its row
        log.write(training.row, case_rows=training.case_rows)
    return seen


def train_with_main(config: TrainConfig, *, flush: bool) -> EpochResult:
    """Train together with rank 0, which calls `train` and does all that is done once; return the same result.

    Raises:
        InputError: if a file or the device cannot be used, or the options are not those of rank 0.
    """
    check_files(config)
    main_config, data = from_main((config, None))
    assert data is not None
    own, others = to_dict(config), to_dict(main_config)
    if differing := [name for name in own if own[name] != others[name]]:
        name = differing[0]
        raise InputError(f"{name} is {own[name]!r} here and {others[name]!r} for process 0; give all the same options")
    return fit(config, data, flush=flush)


def check_files(config: TrainConfig) -> None:
    """Raise InputError now, not after the cases are prepared, if the GPU or a file is missing, or it cannot do bf16.

    The file of `split_file` is also read, and refused if it is damaged; that of `pretrained` is not opened.
    """
    check_precision(config, choose_device(config))
    if config.pretrained is not None:
        find_checkpoint(config.pretrained, wanted=BEST)
    if config.split_file is not None:
        load_split(config.split_file)


def refuse_sweep(output: Path) -> None:
    """Raise InputError if the folder is that of a sweep or anywhere in it, such as RUN/best or a trial's checkpoint.

    Folders in RUN/retrain and RUN/confirm are for trainings.
    """
    if re.fullmatch(r"checkpoint_\d{6}", output.name):  # Ray's name, also in a --storage elsewhere
        raise InputError(f"{output} is a checkpoint of a sweep, which deletes it; take another --output_dir")
    for folder in (output, *output.parents):
        if all((folder / name).exists() for name in ("study.yaml", "journal.log")):
            place = output.relative_to(folder).parts
            if len(place) < 2 or place[0] not in ("retrain", "confirm"):
                raise InputError(f"{output} belongs to the sweep {folder}; take another --output_dir")


def refuse_data_folder(config: TrainConfig) -> None:
    """Raise InputError if output_dir is the folder data_dir, or in it a case's folder or below one."""
    output, data_dir = config.output_dir, config.data_dir
    if not isinstance(data_dir, Path):
        return
    if output.resolve() == data_dir.resolve():
        raise InputError(f"{output} is the folder of the cases; take another --output_dir")
    if (case := case_around(output, data_dir)) is not None:
        raise InputError(f"{output} belongs to the case in {case}; take another --output_dir")


def refuse_used(output: Path) -> None:
    """Raise InputError if a training, this one or another, has left latest.pth or metrics.csv in the folder."""
    paths = TrainingDir(output)
    if paths.latest.exists() or paths.metrics.exists():
        raise InputError(
            f"{output} already contains a training; go on with --resume {output} or take another --output_dir"
        )


def refuse_other_split_file(config: TrainConfig) -> None:
    """Raise InputError if output_dir has a split.json of no training, unless it is the option split_file."""
    paths = TrainingDir(config.output_dir)
    named = config.split_file is not None and config.split_file.resolve() == paths.split.resolve()
    if paths.split.exists() and not paths.config.exists() and not named:
        raise InputError(
            f"{paths.split} is not of a training, and would be overwritten; take another --output_dir, or name it as "
            "--split_file"
        )


def training_summary(config: TrainConfig, data: Data) -> str:
    """Return what is about to be trained, in two lines."""
    parts = ", ".join(f"{len(getattr(data.split, part))} {part}" for part in ("train", "val", "test"))
    if 0 < config.val_cases < len(data.split.val):
        parts += f", {config.val_cases} of val validated each time"
    device = choose_device(config).type
    devices = device if world_size() == 1 else f"{world_size()} x {device}"
    precision: str = "float32" if device == "cpu" or config.amp == "off" else config.amp
    if device == "cpu" and config.amp != "off":
        precision += f" (amp {config.amp} acts on a GPU only)"
    return f"cases: {parts}; cache: {data.folder}\ndevice: {devices}, {precision}; output: {config.output_dir}"


def outcome_summary(result: EpochResult, config: TrainConfig, *, tests_follow: bool = False) -> str:
    """Return how a training ended, and what to do next, unless that follows by itself."""
    if result.end_reason == EndReason.NON_FINITE:
        return (
            f"stopped: {result.note}. Lower --lr, or set --gradient_clipping 1.0 or --amp bf16; look at those cases. "
            f"Nothing of this epoch is kept{hint_after_divergence(result, config)}"
        )
    reason = f"patience of {config.patience} validations" if result.end_reason == EndReason.PATIENCE else "last epoch"
    score = f"best {config.metric} {result.best_score:.4f} at epoch {result.best_epoch}"
    best = result.checkpoints / BEST
    ended = f"ended by {reason}; {score if result.best_epoch else 'its weights, as nothing is validated'}: {best}"
    if tests_follow:
        return ended
    return f"{ended}\ntest it: {train_command()} --resume {shlex.quote(str(best))} --test_only"


def hint_after_divergence(result: EpochResult, config: TrainConfig) -> str:
    """Return from which checkpoint to go on after a training has diverged, to append to a message.

    If no step of the last epoch was good, latest.pth has the weights whose gradient was not finite, and another lr does
    not help there; an earlier checkpoint is named then.
    """
    latest = result.checkpoints / LATEST
    if result.stats.steps or not latest.exists():
        return resume_hint(config) or "; no epoch was finished before"
    said = ". latest.pth already has the weights whose gradient is not finite"
    earlier = newest_with_fewer_steps(latest)
    if earlier is None:
        return f"{said}, and no checkpoint is older; start a new training in another --output_dir"
    return f"{said}; go back to the ones before with: {resume_command()} --resume {shlex.quote(str(earlier))}"


def newest_with_fewer_steps(checkpoint: Path) -> Path | None:
    """Return the newest file in a checkpoint's folder whose weights had fewer steps than its; None if there is none."""
    steps: dict[Path, int] = {}
    for path in sorted(checkpoint.parent.glob("*.pth")):
        with contextlib.suppress(InputError, KeyError):  # damaged, or no checkpoint
            steps[path] = load_metadata(path)["step"]
    fewer = [path for path, count in steps.items() if count < steps.get(checkpoint, 0)]
    return max(fewer, key=lambda path: steps[path], default=None)


def from_last_checkpoint(config: TrainConfig) -> TrainConfig:
    """Return a config that goes on from the last checkpoint in its folder, if there is one."""
    latest = TrainingDir(config.output_dir).latest
    return config.model_copy(update={"resume": latest, "pretrained": None}) if latest.exists() else config


def last_row(paths: TrainingDir) -> Mapping[str, Any]:
    """Return the last row of a training's metrics.csv, {} without one.

    A kill after the last checkpoint and before its row leaves the training without the row; it is then written here.
    """
    if paths.latest.exists() and not any(row["end_reason"] for row in read_rows(paths.metrics)):
        state = load_latest_valid(paths.latest)[1]
        if state["row"]["end_reason"]:
            TrainingLog(paths.path).write(state["row"], case_rows=state.get("case_scores", ""))
    return (read_rows(paths.metrics) or [{}])[-1]
