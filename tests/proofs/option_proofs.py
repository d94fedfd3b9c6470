"""Each option's effect, and the tests that prove it: they fail if the option always has its default (pin_option.py).

If that does not show one of the places in which the option acts, a line of the code is changed instead.

python tests/proofs/option_proofs.py              run every test without the effect: it must fail; prints the table
python tests/proofs/option_proofs.py lr momentum  only these options
python tests/proofs/option_proofs.py --docs       write docs/options.md
"""

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

import pin_option
import torch
from options_page import options_page

from trainable.core.config import TrainConfig
from trainable.core.options import format_value

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "options.md"
COPIED = ("trainable", "tune", "tests", "search_spaces", "train.py", "pyproject.toml")


class Proof(NamedTuple):
    """A test that fails if the option always has its default, which shows that the option does what it should.

    Or, with a file: a test that fails if `line` of trainable/**/file.py is changed to `broken`.
    """

    option: str
    test: str
    file: str = ""
    line: str = ""
    broken: str = ""
    gpu: bool = False


def pin(option: str, test: str, *, gpu: bool = False) -> Proof:
    """Return a proof by the default. test: "module::name" for tests/test_module.py::test_name."""
    return Proof(option, test, gpu=gpu)


def cut(option: str, file: str, line: str, broken: str, test: str, *, gpu: bool = False) -> Proof:
    """Return a proof by a line, for a place that the default does not show."""
    return Proof(option, test, file, line, broken, gpu)


# Tests of more than one proof, or of a line.
CASES = "data::cases_of_data_dir_are_prepared_in_cache_dir"
TEST_ONLY = "cli::test_only_writes_predictions_whose_files_give_the_scores_that_are_said"
SEED_OF_NETWORK = "loop::seed_draws_the_initial_weights_and_the_dropout"
SEED_OF_PATCHES = "patches::seed_draws_the_place_of_a_patch_and_the_order_of_the_cases"
FAST = "fast::a_gpu_trains_fast_unless_told_otherwise"
NETWORK = "unet3d::config_s_options_reach_the_network"
BASE_LOSS = "losses::config_chooses_the_base_loss_and_its_parameters"
BATCH_DICE = "losses::config_chooses_dice_and_tversky_per_batch_or_per_patch"
DECAY = "optimizers::weights_decay_and_biases_and_norms_do_not"
MOMENTUM = "optimizers::momentum_is_nesterov_s_or_plain_as_torch_has_them"
AVERAGE = "weight_average::the_average_is_validated_and_saved_and_predicts"
AMP = "loop::amp_computes_in_its_precision_on_a_gpu"
PLATEAU = "loop::plateau_and_patience_watch_the_metric_at_each_validation"
ADDS_INPUT = "unet3d::residual_block_adds_its_input"
DROPS = "unet3d::dropout_acts_in_training_only_and_on_whole_channels"
KEEPS_LESS = "unet3d::gradient_checkpointing_keeps_less_for_the_backward_pass_only_in_training"
ROTATION = "augment::rotation_keeps_lengths_and_angles_and_stays_within_15_degrees_an_axis"
SCHEDULES = "optimizers::lr_over_epochs_equals_torch_s_own"

PROOFS = [
    # data
    pin("data_dir", CASES),
    pin("cache_dir", CASES),
    pin("skip_bad_cases", "data::bad_cases_are_refused_or_left_out_and_listed"),
    pin("labels", "labels::labels_of_the_option_decide_and_a_change_of_them_prepares_anew"),
    pin("split_file", "data::split_file_says_which_case_is_for_what"),
    pin("patients", "patients::a_table_says_which_cases_are_of_one_patient_in_prepare_data"),
    pin(
        "allow_split_patients",
        "patients::a_split_file_that_tears_a_patient_is_refused_unless_said_otherwise_and_kept_on_resume",
    ),
    pin("allow_seen_cases", "seen_cases::seen_cases_that_are_allowed_are_on_record_and_said_with_every_score"),
    pin("val_fraction", "cases::fractions_are_shares_of_all_cases"),
    pin("test_fraction", "cases::fractions_are_shares_of_all_cases"),
    pin("folds", "cases::folds_partition_what_the_test_part_leaves"),
    pin("fold", "cases::folds_partition_what_the_test_part_leaves"),
    pin("background", "intensities::background_option_makes_that_value_0_in_the_cache"),
    pin("resample", "spacing::resample_brings_only_cases_beyond_10_percent_to_the_median_of_all_cases"),
    pin("seed", "cases::split_is_seeded_disjoint_and_blind_to_order"),
    pin("seed", SEED_OF_NETWORK),
    cut("seed", "train_epoch", "words = [config.seed", "words = [0", SEED_OF_NETWORK),  # of the dropout
    pin("seed", SEED_OF_PATCHES),
    cut("seed", "patches", "rng([self.config.seed, epoch, lap, 1])", "rng([epoch, lap, 1])", SEED_OF_PATCHES),
    pin("seed", "augment::a_patch_depends_on_seed_epoch_and_index_not_on_global_generators"),
    # run
    pin("output_dir", "cli::results_go_into_output_dir"),
    pin("resume", "loop::interrupted_and_resumed_equals_uninterrupted_bit_for_bit"),
    pin("pretrained", "loop::pretrained_weights_are_those_a_training_starts_from"),
    pin("test_only", TEST_ONLY),
    pin("members", "ensemble::members_named_with_test_only_are_averaged_with_the_resumed_one"),
    pin("save_predictions", TEST_ONLY),
    pin("lesion_wise", TEST_ONLY),
    pin("device", "training::device_is_the_one_asked_for[cpu-True-cpu]"),
    pin("device", "training::device_is_the_one_asked_for[auto-True-cuda]"),  # in its second half, cuda without a GPU
    pin("deterministic", "loop::deterministic_algorithms_are_asked_for_during_the_training_alone"),
    pin("fast", FAST, gpu=True),
    cut("fast", "step", "self.use_cuda_graphs = config.fast and", "self.use_cuda_graphs =", FAST, gpu=True),
    cut("fast", "fused_kernels", "return config.fast and", "return", FAST, gpu=True),
    pin("num_workers", "patches::num_workers_threads_read_the_patches"),
    # length
    pin("epochs", "loop::interrupted_and_resumed_equals_uninterrupted_bit_for_bit"),
    pin("epochs", SCHEDULES),
    pin("patches_per_epoch", "patches::epoch_has_one_patch_per_case_or_as_many_as_requested"),
    pin("val_freq", "loop::val_freq_validates_every_so_many_epochs_and_the_last"),
    pin("val_cases", "loop::val_cases_are_the_same_ones_each_time_evenly_spread"),
    pin("save_freq", "loop::save_freq_keeps_numbered_checkpoints"),
    pin("metric", "loop::metric_chooses_the_region_that_picks_the_best_epoch"),
    cut("metric", "loop", 'val[config.metric.removeprefix("val_")]', 'val["dice_mean"]', PLATEAU),
    pin("patience", "loop::patience_ends_a_training_that_does_not_improve"),
    pin("max_skipped_steps", "loop::too_many_skipped_steps_in_a_row_end_the_training_and_say_where"),
    # network: what its classes are given, and what they make of it
    pin("depth", NETWORK),
    pin("base_channels", NETWORK),
    pin("max_channels", NETWORK),
    pin("residual", NETWORK),
    cut("residual", "unet3d", "None if self.skip is None else self.skip(x)", "None", ADDS_INPUT),
    pin("deep_supervision", NETWORK),
    pin("dropout", NETWORK),
    cut("dropout", "unet3d", "y = self.dropout(norm_act(", "y = (norm_act(", DROPS),
    pin("gradient_checkpointing", NETWORK),
    cut(
        "gradient_checkpointing", "unet3d", "if self.gradient_checkpointing and self.training:", "if False:", KEEPS_LESS
    ),
    # patches
    pin("target_shape", "patches::patch_is_a_piece_of_its_case_with_its_statistics"),
    pin("target_shape", "inference::windows_leave_no_trace_if_a_voxel_s_logits_depend_only_on_it"),
    pin("batch_size", "patches::epoch_has_one_patch_per_case_or_as_many_as_requested"),
    pin("tumour_share", "patches::tumour_share_is_met_at_even_intervals"),
    pin("patch_overhang", "patches::patch_overhang_lets_patches_reach_beyond_the_box_by_that_share"),
    # loss
    pin("base_loss", BASE_LOSS),
    pin("loss_weights", "losses::loss_weights_are_base_then_dice"),
    pin("batch_dice", BATCH_DICE),
    cut("batch_dice", "losses", "tversky_beta, batch=config.batch_dice", "tversky_beta, batch=True", BATCH_DICE),
    pin("focal_gamma", BASE_LOSS),
    pin("focal_alpha", BASE_LOSS),
    pin("tversky_alpha", BASE_LOSS),
    pin("tversky_beta", BASE_LOSS),
    # optimizer
    pin("optimizer", "optimizers::adam_and_adamw_are_torch_s"),
    pin("lr", "optimizers::adam_and_adamw_are_torch_s[adam-Adam]"),
    pin("lr", "optimizers::adam_and_adamw_are_torch_s[adamw-AdamW]"),
    pin("lr", MOMENTUM),
    pin("weight_decay", DECAY),
    cut("weight_decay", "optimizers", '"weight_decay": 0.0', '"weight_decay": config.weight_decay', DECAY),
    pin("momentum", MOMENTUM),
    pin("nesterov", MOMENTUM),
    pin("gradient_clipping", "loop::clipping_limits_the_update_and_reports_the_norm_before_it"),
    pin("accumulation_steps", "loop::accumulated_micro_batches_give_the_update_of_one_batch"),
    pin("accumulation_steps", "loop::share_of_step_sums_to_one_in_every_step"),
    pin("ema_decay", "weight_average::average_is_the_one_computed_by_hand"),
    cut("ema_decay", "validation", "validate(training.validated_network,", "validate(training.network,", AVERAGE),
    cut("ema_decay", "checkpoint", 'state.get("ema") or state["network"]', 'state["network"]', AVERAGE),
    pin("amp", AMP, gpu=True),
    cut("amp", "state", "init_scale=2.0**16 if self.scaled else 1.0", "init_scale=1.0", AMP, gpu=True),
    # schedule
    pin("scheduler", SCHEDULES),
    pin("warmup_epochs", "optimizers::warm_up_rises_linearly_to_lr_and_the_cosine_takes_the_epochs_left"),
    pin("min_lr", "optimizers::cosine_ends_at_min_lr_and_stays_there"),
    pin("min_lr", "optimizers::plateau_stops_at_min_lr"),
    pin("plateau_factor", "optimizers::plateau_stops_at_min_lr"),
    pin("plateau_patience", "optimizers::plateau_reduces_after_one_validation_more_than_its_patience_without_gain"),
    pin("step_size", SCHEDULES),
    pin("step_gamma", SCHEDULES),
    pin("milestones", SCHEDULES),
    pin("exponential_gamma", SCHEDULES),
    pin("poly_power", SCHEDULES),
    # augmentation
    pin("augment", "batches::augmentation_can_be_switched_off"),
    pin("augment_strength", "augment::strength_0_leaves_everything_but_flips"),
    pin("flip_prob", "augment::flip_turns_image_and_target_alike"),
    cut("rotate_prob", "spatial", "rng.random() < config.rotate_prob", "rng.random() < 0", ROTATION),
    pin("rotate_prob", "augment::each_transform_comes_as_often_as_its_probability"),  # given as 0
    pin("zoom_prob", "augment::zoom_magnifies_every_axis_by_up_to_a_fifth"),
    pin("scale_prob", "augment::scale_multiplies_each_channel_by_up_to_a_tenth"),
    pin("shift_prob", "augment::shift_adds_up_to_a_tenth_to_each_channel"),
    pin("gamma_prob", "augment::gamma_keeps_each_channel_s_minimum_and_maximum_and_bends_between"),
    pin("noise_prob", "augment::noise_has_up_to_a_tenth_of_a_deviation"),
    pin("blur_prob", "augment::blur_of_a_patch_is_between_half_a_voxel_and_one_wide"),
    pin("lowres_prob", "augment_quality::low_resolution_is_of_half_of_the_channels_and_0_5_to_1"),
    pin("contrast_prob", "augment_quality::contrast_scales_about_the_mean_by_0_75_to_1_25_within_the_range"),
    pin("brightness_prob", "augment_quality::brightness_multiplies_each_channel_by_0_75_to_1_25"),
    # inference
    pin("overlap", "inference::logits_equal_monai_s_gaussian_sliding_window_one_by_one"),
    pin("mirror", "inference::mirror_averages_the_eight_mirrored_volumes"),
    pin("min_component", "inference::tumours_below_min_component_are_removed"),
    pin("et_threshold", "inference::et_below_its_threshold_becomes_tc"),
]


def node(test: str) -> str:
    """Return the name that pytest has for a test."""
    module, name = test.split("::")
    return f"tests/test_{module}.py::test_{name}"


def source(proof: Proof, root: Path) -> Path:
    """Return the file of a proof by a line."""
    (path,) = (root / "trainable").rglob(f"{proof.file}.py")
    return path


def changed(proof: Proof, root: Path) -> str:
    """Return the text of that file with the line changed."""
    path = source(proof, root)
    text = path.read_text()
    assert text.count(proof.line) == 1, f"{proof.option}: {proof.line!r} is {text.count(proof.line)} times in {path}"
    return text.replace(proof.line, proof.broken)


def without_effect(proof: Proof, root: Path) -> tuple[list[str], dict[str, str]]:
    """Remove the effect from a copy of the code; returns the arguments and environment variables for pytest."""
    if not proof.file:
        return ["-p", pin_option.__name__], {pin_option.VARIABLE: proof.option}
    source(proof, root).write_text(changed(proof, root))
    return [], {}


def run(tests: Sequence[str], proof: Proof | None = None) -> str:
    """Run tests on a copy of the code, without the effect of the proof's option: "failed", "passed" or "skipped".

    Raises:
        RuntimeError: if no test was completed: a fixture failed, or there is no test of this name.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, root / name)
        arguments, variables = without_effect(proof, root) if proof else ([], {})
        paths = [folder, str(root / "tests" / "proofs"), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu or not gpu", "-p", "no:cacheprovider"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | variables
        command += [*arguments, *map(node, tests)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, env=environment)
    verdict = re.search(r"^\d+ (failed|passed|skipped)\b.* in [\d.]+s", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or not verdict:
        raise RuntimeError(f"{tests}: {done.stdout}{done.stderr}")
    return verdict[1]


def verdict_of(proof: Proof) -> str:
    """Return the verdict of a proof's test without the effect."""
    return "needs a GPU" if proof.gpu and not torch.cuda.is_available() else run([proof.test], proof)


def change_of(proof: Proof) -> str:
    """Return what a proof changes, in words."""
    if not proof.file:
        return f"always {format_value(TrainConfig.model_fields[proof.option].default)}"
    return f"{source(proof, ROOT).relative_to(ROOT)}: {proof.line} -> {proof.broken}"


def page() -> str:
    """Return the page of options for the docs."""
    tests: dict[str, list[str]] = {}
    for proof in PROOFS:
        name = node(proof.test).removeprefix("tests/").partition("[")[0]
        if name not in tests.setdefault(proof.option, []):
            tests[proof.option].append(name)
    return options_page(tests)


def main(arguments: Sequence[str]) -> int:
    """Run the proofs in parallel and print the table; returns 1 if a test passed in spite of its change."""
    if list(arguments) == ["--docs"]:
        PAGE.write_text(page())
        return 0
    chosen = [proof for proof in PROOFS if not arguments or proof.option in arguments]
    tests = sorted({proof.test for proof in chosen if torch.cuda.is_available() or not proof.gpu})
    intact = run(tests) if tests else "passed"
    print(f"{len(tests)} tests on the code as it is: {intact}", flush=True)
    if intact != "passed":
        return 1
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        verdicts = list(pool.map(verdict_of, chosen))
    for proof, verdict in zip(chosen, verdicts, strict=True):
        print(f"{proof.option:24}{verdict:14}{proof.test.split('::')[1][:76]:78}{change_of(proof)}")
    failed, waiting = verdicts.count("failed"), verdicts.count("needs a GPU")
    survived = len(verdicts) - failed - waiting
    print(
        f"{len(chosen)} changes to {len({proof.option for proof in chosen})} options: "
        f"{failed} made their test fail, {survived} did not, {waiting} need a GPU"
    )
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
