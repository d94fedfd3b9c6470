"""The command `voxtune train`, or `python train.py` in a checkout: flags made from TrainConfig, then train or test."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import torch
import torch.distributed as dist

from trainable.core.command_name import DEFAULT, set_train_command, train_command
from trainable.core.config import TrainConfig
from trainable.core.device import choose_device
from trainable.core.division import scale_to_processes
from trainable.core.errors import InputError
from trainable.core.files import FULL_DISK_ERRNOS, user_path
from trainable.core.idle_options import idle_options, idle_text
from trainable.core.launched_rank import INTERRUPTED, LaunchedRank
from trainable.core.logger import init_logger, logger
from trainable.core.option_errors import did_you_mean
from trainable.core.option_files import load_options
from trainable.core.options import (
    absolute_path,
    help_text,
    make_config,
    option_info,
    option_names,
    path_options,
    to_dict,
)
from trainable.core.ranks import join, read_launch, world_size
from trainable.data.cache import CacheError
from trainable.evaluate import evaluate
from trainable.train import FULL_DISK_HINT, out_of_memory, refuse_data_folder, refuse_used, resume_hint, train
from trainable.training.checkpoint import find_checkpoint, load_checkpoint, load_latest_valid
from trainable.training.ensemble import find_models, is_ensemble
from trainable.training.epoch_result import EndReason
from trainable.training.state import check_resumable
from trainable.training.training_dir import BEST, LATEST, TRAINED_OPTIONS, TrainingDir

USAGE = """
  %(prog)s --data_dir DIR --output_dir DIR [options]        a new training
  %(prog)s --config FILE --data_dir DIR --output_dir DIR    a new training with an exported recipe
  %(prog)s --resume DIR [--lr N ...]                        go on with a training
  %(prog)s --resume DIR --test_only [--save_predictions]    score its test cases
  torchrun --nproc-per-node N train.py ...                  a training on N GPUs"""
EPILOG = (
    "DIR/checkpoints contains latest.pth, to go on from, and best_model.pth; DIR/metrics.csv and TensorBoard in DIR "
    "show the epochs. Exit codes: 0 done, 1 the training diverged, 2 something to correct, 130 Ctrl-C."
)


def main(argv: Sequence[str] | None = None, prog: str = DEFAULT) -> int:
    """Train or test as the flags say, alone or together with other processes (see core/ranks.py).

    Args:
        argv: the flags; those of this process if None.
        prog: the command in use, as help and messages print it.

    Returns:
        The exit code: 0, 1 if the training diverged, 2 for what the user must correct, 130 after Ctrl-C.

    Raises:
        SystemExit: after --help (0), or for a flag without its value (2).
    """
    init_logger()
    set_train_command(prog)
    argv = sys.argv[1:] if argv is None else argv
    try:
        launch = read_launch()
        if launch is None:
            return run(argv)
        if dist.is_initialized():  # by Ray Train, to which the process belongs
            logger.addFilter(lambda record: launch.rank == 0 or record.levelno >= logging.ERROR)
            return run(argv, lambda cuda: join(launch, None, cuda=cuda))
        process = LaunchedRank(launch)
    except InputError as error:
        return report_error(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    process.run(lambda: run(argv, lambda cuda: join(launch, process.store, cuda=cuda)))


def run(argv: Sequence[str], join_others: Callable[[bool], None] | None = None) -> int:
    """Train or test as the flags say; return the exit code.

    join_others: joins the processes that train together, on GPUs or not; None for a single process.
    """
    try:
        options = read_flags(argv)
        scaled = options.pop("scale_batch", False)
        config = resolve(options)
        if join_others is not None:
            if config.test_only:
                raise InputError("--test_only is done by one process; start it without torchrun")
            join_others(choose_device(config).type == "cuda")
        if scaled:
            config = scale_batch(config, world_size())
    except (InputError, OSError) as error:
        return report_error(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    given = options.keys() & TrainConfig.model_fields.keys()
    if idle := idle_text(idle_options(config, sorted(given))):
        logger.warning(idle)
    return exit_code_of(lambda: train_or_test(config, given), config)


def train_or_test(config: TrainConfig, given: Collection[str]) -> int:
    """Train, or score the test cases with test_only; return 1 if the training diverged, else 0.

    given: names of the options that the user gave, which act on all models that are tested together.
    """
    if config.test_only:
        evaluate(config, given=given)
        return 0
    return int(train(config).end_reason == EndReason.NON_FINITE)


def exit_code_of(work: Callable[[], int], config: TrainConfig) -> int:
    """Train by some function; return the exit code, its own or that of the error that it met, which is printed."""
    try:
        return work()
    except CacheError as error:  # also in the middle of a training
        return report_error(f"{error}{resume_hint(config)}")
    except InputError as error:
        return report_error(error)
    except OSError as error:
        return report_error(f"{error}{FULL_DISK_HINT if error.errno in FULL_DISK_ERRNOS else ''}{resume_hint(config)}")
    except torch.OutOfMemoryError:
        return report_error(f"{out_of_memory(config)}{resume_hint(config)}")
    except KeyboardInterrupt:
        logger.info(f"\nstopped{resume_hint(config) or '; no epoch was finished yet'}")
        return INTERRUPTED


def scale_batch(config: TrainConfig, processes: int) -> TrainConfig:
    """Return a config whose step has `processes` times as many micro-batches, and print what a step has.

    Raises:
        InputError: if a training is resumed: its step stays as it is on any number of GPUs.
    """
    if config.resume is not None:
        raise InputError("--scale_batch is for a new training; a resumed one keeps its step, on any number of GPUs")
    if processes == 1:
        logger.info("scale_batch: this is one process, so a step stays as it is")
        return config
    scaled = scale_to_processes(config, processes)
    patches = config.batch_size * config.accumulation_steps
    logger.info(
        f"scale_batch: a step has {patches * processes} patches, {patches} for each of {processes} processes "
        f"(accumulation_steps {scaled.accumulation_steps} is saved); lr stays {config.lr:g}"
    )
    return scaled


def report_error(error: object) -> int:
    """Print an error that the user must correct; return the exit code 2."""
    logger.error(f"error: {error}")
    return 2


def make_parser() -> argparse.ArgumentParser:
    """Return a parser with one flag per option of TrainConfig, in its groups, and three of the command line.

    A bool option is a pair of flags, --NAME and --no-NAME; other values stay text, or lists of text, for TrainConfig to
    check. Options that are not given are left out of the result.
    """
    parser = argparse.ArgumentParser(
        prog=train_command(),
        usage=USAGE,
        description="Train a 3D U-Net on BraTS cases, go on with a training, or score its held-out test cases.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, help="YAML or JSON file of options; flags override it")
    parser.add_argument(
        "--focal_loss", action="store_true", default=argparse.SUPPRESS, help="short for --base_loss focal"
    )
    parser.add_argument(
        "--scale_batch", action="store_true", default=argparse.SUPPRESS,
        help="on N GPUs, N times as many micro-batches per step; by default they share the step as it is",
    )  # fmt: skip
    groups: dict[str, Any] = {}
    for name, field in TrainConfig.model_fields.items():
        heading = option_info(name).group
        group = groups.setdefault(heading, parser.add_argument_group(heading))
        keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name}
        keywords["help"] = help_text(name).replace("%", "%%")
        arguments = [a for a in get_args(field.annotation) if a is not type(None)]
        if field.annotation is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        elif name == "amp":
            keywords |= {"nargs": "?", "const": "fp16", "metavar": "KIND"}
        elif ... in arguments:
            keywords |= {"nargs": "*", "metavar": "PATH" if Path in arguments else "N"}
        elif get_origin(field.annotation) is tuple:
            keywords |= {"nargs": len(arguments), "metavar": "N"}
        else:
            keywords["metavar"] = "N" if field.annotation in (int, float) else name.upper()
        group.add_argument(f"--{name}", **keywords)
    return parser


def read_flags(argv: Sequence[str]) -> dict[str, Any]:
    """Return the options given as flags or in the file of --config; a flag overrides the file.

    Raises:
        InputError: for an unknown flag or option, a file that cannot be read, or one with an option that belongs on
            the command line.
        SystemExit: after --help (0), or for a flag without its value (2).
    """
    parser = make_parser()
    known, unknown = parser.parse_known_args(argv)
    names = [f"--{name}" for name in [*TrainConfig.model_fields, "config", "focal_loss", "scale_batch"]]
    for word in unknown:
        raise InputError(f"unknown argument {word!r}{did_you_mean(word, names)}; see {train_command()} --help")
    flags = vars(known)
    config_file = flags.pop("config")
    if flags.get("focal_loss") and flags.setdefault("base_loss", "focal") == "focal":
        del flags["focal_loss"]  # with another base loss it stays, and is refused
    options = load_options(config_file) if config_file else {}
    for name in options:
        if name in [*option_names(one_call=True), "scale_batch"]:
            raise InputError(f"{config_file}: {name} belongs on the command line, not in a file; remove it there")
        if f"--{name}" not in names:
            close = did_you_mean(str(name), list(TrainConfig.model_fields))
            raise InputError(f"{config_file}: unknown option {name!r}{close}")
    return {**options, **flags}


def find_resumed(path: Path, *, test: bool) -> tuple[Path, TrainingDir, dict[str, Any]]:
    """Return what the option `resume` names: its checkpoint, the folder of its training and the checkpoint's state.

    The folder of an ensemble, which can only be tested, is returned as it is, twice, with its first member's state.

    test: whether the model is tested, with its best weights, and no training goes on.

    Raises:
        InputError: if there is no checkpoint, or an ensemble is to be trained further.
    """
    if is_ensemble(path):
        if not test:
            raise InputError(
                f"{path} is an ensemble; score its test cases with --test_only, or resume a member's folder"
            )
        return path, TrainingDir(path), load_checkpoint(find_models([path])[0])
    source, state = load_latest_valid(find_checkpoint(path, wanted=BEST if test else LATEST))
    return source, TrainingDir.of_checkpoint(source), state


def resolve(options: dict[str, Any]) -> TrainConfig:
    """Return the config of this call: given options override those of a resumed checkpoint, which override defaults.

    A resumed training keeps its output folder and the split.json in that folder, unless output_dir or split_file is
    given; `resume` names the checkpoint file. Paths are made absolute, except `resume` and `pretrained`.

    Raises:
        InputError: naming each option that is wrong or that cannot change on resume; or if there is no checkpoint to
            resume from or to test, or the new output_dir of a resumed training has a training or belongs to a case.
    """
    if options.get("resume") is None:
        config = make_config(options, train_command())
        if config.test_only:
            raise InputError("--test_only needs a checkpoint: --resume OUTPUT_DIR/checkpoints/best_model.pth")
    else:
        if options.get("pretrained") is not None:
            raise InputError("--pretrained is what a new training starts from, and --resume goes on with one; drop one")
        source, training_dir, state = find_resumed(user_path(options["resume"]), test=bool(options.get("test_only")))
        saved = {**to_dict(TrainConfig()), **state["config"]}  # older code lacked some of the options
        if not options.get("test_only"):
            saved |= state.get(TRAINED_OPTIONS, {})
        split = {"split_file": training_dir.split} if training_dir.split.exists() else {}
        kept_options = {**saved, **split, "output_dir": training_dir.path, "pretrained": None}
        config = make_config({**kept_options, **options, "resume": source}, train_command(), begun=True)
        check_resumable(config, saved)
        if config.output_dir.resolve() != training_dir.path.resolve():
            refuse_used(config.output_dir)
            refuse_data_folder(config)
        for name, value in to_dict(config).items():
            if name in options and value != saved.get(name) and name not in option_names(one_call=True):
                logger.info(f"resume: {name} is {value} now, {saved[name]} before")
    kept_paths = [name for name in path_options() if not option_info(name).starting_point]
    return config.model_copy(update={name: absolute_path(name, getattr(config, name)) for name in kept_paths})
