"""Each option's effect, the test that proves it, and the line whose change takes the effect away.

python tests/option_proofs.py              run every test on the changed line: it must fail; prints the table
python tests/option_proofs.py lr momentum  only these options
python tests/option_proofs.py --docs       write docs/options.md
"""

# ruff: noqa: E501  (a table)

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from trainable.options import options_table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "options.md"


class Proof(NamedTuple):
    """What shows that an option does what it says: `line` of `file` changed to `broken` makes `test` fail."""

    option: str
    file: str
    line: str
    broken: str
    test: str
    gpu: bool = False


def proof(option: str, file: str, line: str, broken: str, test: str, **facts: bool) -> Proof:
    """A proof; names of files without their folder and ending."""
    module, name = test.split("::")
    return Proof(option, f"trainable/{file}.py", line, broken, f"tests/test_{module}.py::test_{name}", **facts)


def default(option: str, file: str, prefix: str, value: object, test: str) -> Proof:
    """A proof by a constant in the place of config.<option>, behind a prefix that makes the place unique."""
    return proof(option, file, f"{prefix}config.{option}", f"{prefix}{value!r}", test)


def never(name: str, test: str) -> Proof:
    """A proof by an augmentation that never comes."""
    return proof(
        f"{name}_prob", "augment", f"rng.random() < config.{name}_prob", "rng.random() < 0", f"augment::{test}"
    )


PROOFS = [
    # data
    proof("data_dir", "data", "find_cases(config.data_dir,", 'find_cases(Path("data"),', "data::cases_of_data_dir_are_prepared_in_cache_dir"),
    default("cache_dir", "data", "cache_folder(config.data_dir, ", None, "data::cases_of_data_dir_are_prepared_in_cache_dir"),
    default("skip_bad_cases", "data", "skip_bad=", False, "data::bad_cases_are_refused_or_left_out_and_listed"),
    proof("split_file", "cases", "if config.split_file:", "if False:", "data::split_file_says_which_case_is_for_what"),
    default("val_fraction", "cases", "rest[: share(", 0.15, "cases::fractions_are_shares_of_all_cases"),
    default("test_fraction", "cases", "test, rest = order[: share(", 0.15, "cases::fractions_are_shares_of_all_cases"),
    proof("folds", "cases", "rest[config.fold :: config.folds] if config.folds else", "", "cases::folds_partition_what_the_test_part_leaves"),
    default("fold", "cases", "rest[", 0, "cases::folds_partition_what_the_test_part_leaves"),
    default("seed", "cases", "default_rng(", 0, "cases::split_is_seeded_disjoint_and_blind_to_order"),
    default("seed", "training", "torch.manual_seed(", 0, "loop::seed_draws_the_initial_weights_and_the_dropout"),
    default("seed", "loop", "SeedSequence([", 0, "loop::seed_draws_the_initial_weights_and_the_dropout"),
    proof("seed", "patches", "rng([self.config.seed, epoch, index])", "rng([epoch, index])", "patches::seed_draws_the_place_of_a_patch_and_the_order_of_the_cases"),
    proof("seed", "patches", "rng([self.config.seed, epoch, lap, 1])", "rng([epoch, lap, 1])", "patches::seed_draws_the_place_of_a_patch_and_the_order_of_the_cases"),
    default("seed", "augment", "rng([", 0, "augment::a_patch_depends_on_seed_epoch_and_index_not_on_global_generators"),
    # run
    proof("output_dir", "cli", 'output = config.output_dir\n    refuse', 'output = Path("output")\n    refuse', "cli::results_go_into_output_dir"),
    proof("resume", "loop", "if config.resume is not None:", "if False:", "loop::interrupted_and_resumed_equals_uninterrupted_bit_for_bit"),
    proof("pretrained", "loop", "if config.pretrained is not None:", "if False:", "loop::pretrained_weights_are_those_a_training_starts_from"),
    proof("test_only", "cli", "if config.test_only:\n            evaluate", "if False:\n            evaluate", "cli::test_only_writes_predictions_whose_files_give_the_scores_that_are_said"),
    proof("save_predictions", "evaluate", "if config.save_predictions:\n            path", "if False:\n            path", "cli::test_only_writes_predictions_whose_files_give_the_scores_that_are_said"),
    proof("lesion_wise", "evaluate", "if config.lesion_wise:", "if False:", "cli::test_only_writes_predictions_whose_files_give_the_scores_that_are_said"),
    proof("device", "training", 'if config.device == "cuda" and', "if False and", "training::device_is_the_one_asked_for"),
    proof("device", "training", 'config.device == "cpu" or', "", "training::device_is_the_one_asked_for"),
    proof("deterministic", "loop", "algorithms(config.deterministic)", "algorithms(False)", "loop::deterministic_algorithms_are_asked_for_during_the_training_alone"),
    proof("fast", "training", "self.graphed = config.fast and", "self.graphed =", "fast::a_gpu_trains_fast_unless_told_otherwise", gpu=True),
    proof("fast", "config", "return self.fast and", "return", "fast::a_gpu_trains_fast_unless_told_otherwise", gpu=True),
    proof("num_workers", "patches", "keys, self._config.num_workers)", "keys, 0)", "patches::num_workers_threads_read_the_patches"),
    # length
    default("epochs", "loop", "training.epoch == ", 5, "loop::interrupted_and_resumed_equals_uninterrupted_bit_for_bit"),
    proof("epochs", "optimizers", "max(1, config.epochs - config.warmup_epochs)", "max(1, 100 - config.warmup_epochs)", "optimizers::lr_over_epochs_equals_torch_s_own"),
    proof("patches_per_epoch", "patches", "config.patches_per_epoch or len(names)", "len(names)", "patches::epoch_has_one_patch_a_case_or_as_many_as_asked"),
    default("val_freq", "loop", "training.epoch % ", 1, "loop::val_freq_validates_every_so_many_epochs_and_the_last"),
    proof("val_cases", "loop", "training.config.val_cases", "20", "loop::val_cases_are_the_same_ones_each_time_evenly_spread"),
    proof("save_freq", "training", "% self.config.save_freq", "% 10", "loop::save_freq_keeps_numbered_checkpoints"),
    proof("metric", "training", 'val[self.config.metric.removeprefix("val_")]', 'val["dice_mean"]', "loop::metric_chooses_the_region_that_picks_the_best_epoch"),
    proof("metric", "loop", 'val[config.metric.removeprefix("val_")]', 'val["dice_mean"]', "loop::plateau_and_patience_watch_the_metric_at_each_validation"),
    proof("patience", "training", "bool(self.config.patience) and", "False and", "loop::patience_ends_a_training_that_does_not_improve"),
    proof("max_skipped_steps", "training", "self.skipped = SkippedSteps(config.max_skipped_steps)", "self.skipped = SkippedSteps(20)", "loop::too_many_skipped_steps_in_a_row_end_the_training_and_say_where"),
    # network
    default("depth", "unet3d", "return UNet3D(\n        ", 4, "unet3d::config_s_options_reach_the_network"),
    default("base_channels", "unet3d", "config.depth,\n        ", 8, "unet3d::config_s_options_reach_the_network"),
    default("max_channels", "unet3d", "config.base_channels,\n        ", 320, "unet3d::config_s_options_reach_the_network"),
    default("residual", "unet3d", "residual=", False, "unet3d::config_s_options_reach_the_network"),
    default("deep_supervision", "unet3d", "deep_supervision=", False, "unet3d::config_s_options_reach_the_network"),
    default("dropout", "unet3d", "dropout=", 0.0, "unet3d::config_s_options_reach_the_network"),
    proof("dropout", "unet3d", "self.dropout(norm_act(self.conv1(x), self.norm1, fused=self.fused))", "norm_act(self.conv1(x), self.norm1, fused=self.fused)", "unet3d::dropout_acts_in_training_only_and_on_whole_channels"),
    proof("residual", "unet3d", "None if self.skip is None else self.skip(x)", "None", "unet3d::residual_block_adds_its_input"),
    proof("gradient_checkpointing", "unet3d", "if self.gradient_checkpointing and self.training:", "if False:", "unet3d::gradient_checkpointing_keeps_less_for_the_backward_pass_in_training_alone"),
    # patches
    proof("target_shape", "patches", "shape, channels = self.config.target_shape,", "shape, channels = (128, 128, 128),", "patches::patch_is_a_piece_of_its_case_with_its_statistics"),
    proof("target_shape", "inference", "image.flip(axes), config.target_shape,", "image.flip(axes), (16, 16, 16),", "inference::windows_leave_no_trace_where_a_voxel_s_logits_are_its_own"),
    proof("batch_size", "patches", "size = config.batch_size", "size = 2", "patches::epoch_has_one_patch_a_case_or_as_many_as_asked"),
    proof("tumour_share", "patches", "int((index + 1) * self.config.tumour_share)", "int((index + 1) / 3)", "patches::tumour_share_is_met_at_even_intervals"),
    # loss
    proof("base_loss", "losses", "BASE_LOSSES[config.base_loss]", 'BASE_LOSSES["bce"]', "losses::config_chooses_the_base_loss_and_its_parameters"),
    proof("loss_weights", "losses", "base_weight, dice_weight = config.loss_weights", "base_weight, dice_weight = 1.0, 1.0", "losses::loss_weights_are_base_then_dice"),
    default("batch_dice", "losses", "beta=0.5, batch=", True, "losses::config_says_whether_dice_and_tversky_are_of_the_batch_or_of_each_patch"),
    default("batch_dice", "losses", "beta=config.tversky_beta, batch=", True, "losses::config_says_whether_dice_and_tversky_are_of_the_batch_or_of_each_patch"),
    default("focal_gamma", "losses", '"gamma": ', 2.0, "losses::config_chooses_the_base_loss_and_its_parameters"),
    proof("focal_alpha", "losses", "(config.focal_alpha, 1 - config.focal_alpha)", "(0.5, 0.5)", "losses::config_chooses_the_base_loss_and_its_parameters"),
    default("tversky_alpha", "losses", "alpha=", 0.3, "losses::config_chooses_the_base_loss_and_its_parameters"),
    default("tversky_beta", "losses", "beta=", 0.7, "losses::config_chooses_the_base_loss_and_its_parameters"),
    # optimizer
    proof("optimizer", "optimizers", "OPTIMIZERS[config.optimizer]", 'OPTIMIZERS["adam"]', "optimizers::adam_and_adamw_are_torch_s"),
    default("lr", "optimizers", "Adam(groups, lr=", 3e-4, "optimizers::adam_and_adamw_are_torch_s"),
    default("lr", "optimizers", "AdamW(groups, lr=", 3e-4, "optimizers::adam_and_adamw_are_torch_s"),
    proof("lr", "optimizers", "lr=config.lr, momentum", "lr=3e-4, momentum", "optimizers::momentum_is_nesterov_s_or_plain_as_torch_has_them"),
    default("weight_decay", "optimizers", '"weight_decay": ', 1e-5, "optimizers::weights_decay_and_biases_and_norms_do_not"),
    proof("weight_decay", "optimizers", '"weight_decay": 0.0', '"weight_decay": config.weight_decay', "optimizers::weights_decay_and_biases_and_norms_do_not"),
    default("momentum", "optimizers", "momentum=", 0.9, "optimizers::momentum_is_nesterov_s_or_plain_as_torch_has_them"),
    proof("nesterov", "optimizers", "nesterov=config.nesterov and", "nesterov=", "optimizers::momentum_is_nesterov_s_or_plain_as_torch_has_them"),
    proof("gradient_clipping", "step", "if training.config.gradient_clipping:", "if False:", "loop::clipping_limits_the_update_and_reports_the_norm_before_it"),
    proof("accumulation_steps", "loop", "if (index + 1) % config.accumulation_steps == 0", "if True", "loop::accumulated_micro_batches_give_the_update_of_one_batch"),
    proof("accumulation_steps", "loop", "share_of_step(index, len(x), loader.patches, config))", "1.0)", "loop::accumulated_micro_batches_give_the_update_of_one_batch"),
    proof("amp", "inference", "enabled=dtype is not None and", "enabled=False and", "loop::amp_computes_in_its_precision_on_a_gpu", gpu=True),
    proof("amp", "training", 'init_scale=2.0**16 if self.scaled else 1.0', "init_scale=1.0", "loop::amp_computes_in_its_precision_on_a_gpu", gpu=True),
    # schedule
    proof("scheduler", "optimizers", "FACTORS[config.scheduler]", 'FACTORS["cosine"]', "optimizers::lr_over_epochs_equals_torch_s_own"),
    default("warmup_epochs", "optimizers", "if epoch < ", 0, "optimizers::warm_up_rises_linearly_to_lr_and_the_cosine_takes_the_epochs_left"),
    proof("min_lr", "optimizers", "config.min_lr / config.lr", "0.0", "optimizers::cosine_ends_at_min_lr_and_stays_there"),
    default("min_lr", "optimizers", "min_lr=", 0.0, "optimizers::plateau_stops_at_min_lr"),
    default("plateau_factor", "optimizers", "factor=", 0.9, "optimizers::plateau_reduces_after_one_validation_more_than_its_patience_without_gain"),
    default("plateau_patience", "optimizers", "patience=", 10, "optimizers::plateau_reduces_after_one_validation_more_than_its_patience_without_gain"),
    default("step_size", "optimizers", "epoch // ", 30, "optimizers::lr_over_epochs_equals_torch_s_own"),
    default("step_gamma", "optimizers", "epoch, config: ", 0.1, "optimizers::lr_over_epochs_equals_torch_s_own"),
    default("exponential_gamma", "optimizers", "epoch, config: ", 0.95, "optimizers::lr_over_epochs_equals_torch_s_own"),
    default("poly_power", "optimizers", "** ", 0.9, "optimizers::lr_over_epochs_equals_torch_s_own"),
    # augmentation
    proof("augment", "batches", "if config.augment:", "if True:", "batches::augmentation_can_be_switched_off"),
    default("augment_strength", "augment", "strength = ", 1.0, "augment::strength_0_leaves_everything_but_flips"),
    never("flip", "flip_turns_image_and_target_alike"),
    never("rotate", "rotation_keeps_lengths_and_angles_and_stays_within_15_degrees_an_axis"),
    never("zoom", "zoom_magnifies_every_axis_by_up_to_a_fifth"),
    never("scale", "scale_multiplies_each_channel_by_up_to_a_tenth"),
    never("shift", "shift_adds_up_to_a_tenth_to_each_channel"),
    never("gamma", "gamma_keeps_each_channel_s_minimum_and_maximum_and_bends_between"),
    never("noise", "noise_has_up_to_a_tenth_of_a_deviation"),
    never("blur", "blur_of_a_patch_is_between_half_a_voxel_and_one_wide"),
    # inference
    default("overlap", "inference", "predictor, ", 0.5, "inference::logits_equal_monai_s_gaussian_sliding_window_one_by_one"),
    proof("mirror", "inference", "MIRRORS if config.mirror else MIRRORS[:1]", "MIRRORS[:1]", "inference::mirror_averages_the_eight_mirrored_volumes"),
    proof("min_component", "inference", "if config.min_component:", "if False:", "inference::tumours_below_min_component_are_removed"),
    default("et_threshold", "inference", "np.count_nonzero(label == 4) < ", 0, "inference::et_below_its_threshold_becomes_tc"),
]  # fmt: skip


def changed(proof: Proof) -> str:
    """The text of the file with the effect taken away."""
    text = (ROOT / proof.file).read_text()
    assert text.count(proof.line) == 1, (
        f"{proof.option}: {proof.line!r} stands {text.count(proof.line)} times in {proof.file}"
    )
    return text.replace(proof.line, proof.broken)


def run(tests: Sequence[str], change: Proof | None) -> str:
    """Run tests on a copy of the code, with the line of a proof changed: "failed", "passed" or "needs a GPU"."""
    if change and change.gpu and not torch.cuda.is_available():
        return "needs a GPU"
    with tempfile.TemporaryDirectory() as folder:
        for name in ("trainable", "tune", "tests", "search_spaces", "train.py", "pyproject.toml"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, Path(folder) / name)
        if change:
            (Path(folder) / change.file).write_text(changed(change))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu or not gpu", "-p", "no:cacheprovider", *tests]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    if done.returncode not in (0, 1):  # not a test's verdict
        raise RuntimeError(f"{tests}: {done.stdout}{done.stderr}")
    passed = "passed" if re.search(r"\d+ passed", done.stdout) else "skipped"
    return "failed" if done.returncode else passed


def page() -> str:
    """The table of options for the docs, each with the tests that prove it."""
    tests: dict[str, list[str]] = {}
    for each in PROOFS:
        name = each.test.removeprefix("tests/")
        if name not in tests.setdefault(each.option, []):
            tests[each.option].append(name)
    return options_table({option: "<br>".join(f"`{test}`" for test in names) for option, names in tests.items()})


def main(arguments: Sequence[str]) -> int:
    """Run the proofs side by side and print the table; 1 where a test passed in spite of its change."""
    if list(arguments) == ["--docs"]:
        PAGE.write_text(page())
        return 0
    chosen = [each for each in PROOFS if not arguments or each.option in arguments]
    tests = sorted({each.test for each in chosen if torch.cuda.is_available() or not each.gpu})
    intact = run(tests, None)
    print(f"{len(tests)} tests on the code as it is: {intact}", flush=True)
    if intact != "passed":
        return 1
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        verdicts = list(pool.map(lambda each: run([each.test], each), chosen))
    for each, verdict in zip(chosen, verdicts, strict=True):
        line = f"{each.line.strip()} -> {each.broken.strip()}".replace("\n", " ")
        print(f"{each.option:24}{verdict:14}{each.test.split('::')[1][:76]:78}{each.file}: {line}")
    survived = verdicts.count("passed") + verdicts.count("skipped")
    print(
        f"{len(chosen)} changes to {len({each.option for each in chosen})} options: "
        f"{verdicts.count('failed')} made their test fail, {survived} did not, {verdicts.count('needs a GPU')} need a GPU"
    )
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
