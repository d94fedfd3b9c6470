"""TrainConfig: every option of a training, written once.

The flags of `train.py`, the keys of a sweep's YAML, the table in the docs and the messages of
errors are all derived from the fields below, see options.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

REGIONS = ("WT", "TC", "ET")
MODALITIES = ("flair", "t1", "t1ce", "t2")

Role = Literal["recipe", "protocol", "run"]
Shape3 = tuple[int, int, int]


class InputError(ValueError):
    """What the user gave cannot be used; the message says what, where, what is allowed and what to do."""


def option(default: Any, meaning: str, *, group: str, role: Role, unit: str = "", **checks: Any) -> Any:
    """A field of TrainConfig.

    role: "recipe" may be searched by a sweep; "protocol" defines what scores mean, so a sweep may fix it
    and never search it; "run" says where and how a training runs.
    """
    return Field(default, description=meaning, json_schema_extra={"group": group, "role": role, "unit": unit}, **checks)


class TrainConfig(BaseModel):
    """All options of one training. Frozen; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=False)

    # Where
    data_dir: Path | None = option(None, "Folder with one folder a case.", group="data", role="run")
    output_dir: Path = option(Path("output"), "Folder of this training's results.", group="run", role="run")
    cache_dir: Path | None = option(
        None, "Folder of the preprocessed cases; by default beside data_dir.", group="data", role="run"
    )
    resume: Path | None = option(None, "Checkpoint, or folder of a training, to go on from.", group="run", role="run")
    pretrained: Path | None = option(
        None, "Checkpoint whose weights a new training starts from.", group="run", role="run"
    )
    test_only: bool = option(False, "Score the test cases with --resume, train nothing.", group="run", role="run")
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto", "Device; auto takes a GPU where there is one.", group="run", role="run"
    )
    num_workers: int = option(
        2, "Processes that read patches; 0 reads in the training process.", group="run", role="run", ge=0
    )

    # Which cases
    skip_bad_cases: bool = option(
        False, "Go on without cases that fail a check, and list them.", group="data", role="protocol"
    )
    split_file: Path | None = option(
        None, "JSON with the case names of train, val and test; replaces the fractions.", group="data", role="protocol"
    )
    val_fraction: float = option(0.15, "Share of cases validated on.", group="data", role="protocol", ge=0, lt=1)
    test_fraction: float = option(
        0.15, "Share of cases held out until the end.", group="data", role="protocol", ge=0, lt=1
    )
    folds: int = option(0, "Number of folds of a cross-validation; 0 for none.", group="data", role="protocol", ge=0)
    fold: int = option(0, "Which fold is validated on, from 0.", group="data", role="protocol", ge=0)
    seed: int = option(
        0, "Seed of the split, initial weights, patches and augmentation.", group="data", role="protocol", ge=0
    )

    # How long
    epochs: int = option(
        100, "Epochs; also the horizon of the lr schedule.", group="length", role="protocol", unit="epochs", ge=1
    )
    patches_per_epoch: int = option(
        0, "Patches drawn an epoch; 0 draws one a case.", group="length", role="protocol", unit="patches", ge=0
    )
    val_freq: int = option(
        1, "Validate every so many epochs, and after the last.", group="length", role="protocol", unit="epochs", ge=1
    )
    save_freq: int = option(
        10, "Keep a numbered checkpoint every so many epochs.", group="length", role="run", unit="epochs", ge=1
    )
    metric: Literal["val_dice_mean", "val_dice_WT", "val_dice_TC", "val_dice_ET"] = option(
        "val_dice_mean",
        "Score that picks the best epoch; plateau and patience watch it.",
        group="length",
        role="protocol",
    )
    patience: int = option(
        0, "Stop after so many validations without a better score; 0: never.", group="length", role="protocol", ge=0
    )

    # Network
    depth: int = option(6, "Resolutions of the U-Net.", group="network", role="recipe", ge=2, le=8)
    base_channels: int = option(
        32, "Channels at full resolution; doubled at each resolution.", group="network", role="recipe", ge=1
    )
    max_channels: int = option(320, "Limit of that doubling.", group="network", role="recipe", ge=1)
    residual: bool = option(False, "Residual blocks instead of plain ones.", group="network", role="recipe")
    deep_supervision: bool = option(
        False, "Loss also at the decoder's lower resolutions.", group="network", role="recipe"
    )
    dropout: float = option(
        0.0, "Probability of dropping a channel in each block.", group="network", role="recipe", ge=0, lt=1
    )

    # Patches
    target_shape: Shape3 = option(
        (128, 128, 128), "Size of a patch: depth, height, width.", group="patches", role="recipe", unit="voxels"
    )
    batch_size: int = option(2, "Patches a micro-batch.", group="patches", role="recipe", unit="patches", ge=1)
    tumour_share: float = option(
        1 / 3, "Share of patches centred on tumour, each region its turn.", group="patches", role="recipe", ge=0, le=1
    )

    # Loss
    base_loss: Literal["bce", "focal", "tversky"] = option(
        "bce", "Loss beside Dice; --focal_loss is short for focal.", group="loss", role="recipe"
    )
    loss_weights: tuple[float, float] = option(
        (1.0, 1.0), "Weights of the base loss and of Dice.", group="loss", role="recipe"
    )
    focal_gamma: float = option(2.0, "Focal loss: exponent that mutes easy voxels.", group="loss", role="recipe", ge=0)
    focal_alpha: float = option(
        0.5, "Focal loss: weight of tumour voxels, 1 - alpha that of the rest.", group="loss", role="recipe", gt=0, lt=1
    )
    tversky_alpha: float = option(0.3, "Tversky loss: weight of false positives.", group="loss", role="recipe", ge=0)
    tversky_beta: float = option(0.7, "Tversky loss: weight of false negatives.", group="loss", role="recipe", ge=0)

    # Optimizer
    optimizer: Literal["adam", "adamw", "sgd"] = option("adam", "Optimizer.", group="optimizer", role="recipe")
    lr: float = option(3e-4, "Learning rate that the schedule starts from.", group="optimizer", role="recipe", gt=0)
    weight_decay: float = option(
        1e-5, "Weight decay; none on biases and norms.", group="optimizer", role="recipe", ge=0
    )
    momentum: float = option(0.9, "SGD: momentum (Nesterov's).", group="optimizer", role="recipe", ge=0, lt=1)
    gradient_clipping: float = option(
        0.0, "Largest norm of the gradient; 0 does not clip.", group="optimizer", role="recipe", ge=0
    )
    accumulation_steps: int = option(
        1, "Micro-batches a step (optimizer update).", group="optimizer", role="recipe", ge=1
    )
    amp: Literal["off", "fp16", "bf16"] = option(
        "off", "Mixed precision on a GPU; --amp alone is fp16.", group="optimizer", role="recipe"
    )

    # Learning-rate schedule
    scheduler: Literal["plateau", "cosine", "step", "exponential"] = option(
        "plateau", "Learning-rate schedule, stepped each epoch.", group="scheduler", role="recipe"
    )
    warmup_epochs: int = option(
        0, "Cosine: epochs of linear warm-up.", group="scheduler", role="recipe", unit="epochs", ge=0
    )
    min_lr: float = option(0.0, "Cosine and plateau: lowest learning rate.", group="scheduler", role="recipe", ge=0)
    plateau_factor: float = option(0.5, "Plateau: factor of a reduction.", group="scheduler", role="recipe", gt=0, lt=1)
    plateau_patience: int = option(
        10, "Plateau: validations without a better score before it.", group="scheduler", role="recipe", ge=0
    )
    step_size: int = option(
        30, "Step: epochs between reductions.", group="scheduler", role="recipe", unit="epochs", ge=1
    )
    step_gamma: float = option(0.1, "Step: factor of a reduction.", group="scheduler", role="recipe", gt=0, le=1)
    exponential_gamma: float = option(
        0.95, "Exponential: factor of each epoch.", group="scheduler", role="recipe", gt=0, le=1
    )

    # Augmentation, on the batch on its device
    augment: bool = option(True, "Augment; false for none.", group="augmentation", role="recipe")
    augment_strength: float = option(
        1.0, "Factor on the ranges below; the probabilities stay.", group="augmentation", role="recipe", ge=0, le=3
    )
    flip_prob: float = option(0.5, "Flip, for each axis.", group="augmentation", role="recipe", ge=0, le=1)
    rotate_prob: float = option(
        0.2, "Rotate up to 15 degrees an axis.", group="augmentation", role="recipe", ge=0, le=1
    )
    zoom_prob: float = option(0.2, "Zoom in space by up to 20 %.", group="augmentation", role="recipe", ge=0, le=1)
    scale_prob: float = option(
        0.5, "Multiply intensity by up to 10 %.", group="augmentation", role="recipe", ge=0, le=1
    )
    shift_prob: float = option(
        0.5, "Shift intensity by up to 0.1 deviations.", group="augmentation", role="recipe", ge=0, le=1
    )
    gamma_prob: float = option(
        0.15, "Gamma-correct intensity by up to 30 %.", group="augmentation", role="recipe", ge=0, le=1
    )
    noise_prob: float = option(
        0.15, "Gaussian noise of up to 0.1 deviations.", group="augmentation", role="recipe", ge=0, le=1
    )
    blur_prob: float = option(
        0.1, "Gaussian blur of up to 1 voxel.", group="augmentation", role="recipe", unit="sigma in voxels", ge=0, le=1
    )

    # Whole volumes
    overlap: float = option(
        0.5, "Share that neighbouring windows overlap.", group="inference", role="protocol", ge=0, lt=1
    )
    mirror: bool = option(
        False, "Average the predictions of the 8 mirrored volumes.", group="inference", role="protocol"
    )

    @model_validator(mode="before")
    @classmethod
    def _words_of_the_seed(cls, values: Any) -> Any:
        """`amp: true` is fp16; `focal_loss: true` is `base_loss: focal`."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if isinstance(values.get("amp"), bool):
            values["amp"] = "fp16" if values["amp"] else "off"
        if (focal := values.pop("focal_loss", None)) is not None:
            if not isinstance(focal, bool):
                raise ValueError(f"focal_loss is {focal!r}; expected true or false")
            if focal and values.setdefault("base_loss", "focal") != "focal":
                raise ValueError(f"focal_loss is true and base_loss is {values['base_loss']!r}; drop one of the two")
        return values

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_numbers(cls, value: Any, info: Any) -> Any:
        """Refuse true and false where numbers are asked for; pydantic would read 1 and 0."""
        numbers = value if isinstance(value, list | tuple) else [value]
        asked = cls.model_fields[info.field_name].annotation in (int, float, Shape3, tuple[float, float])
        if asked and any(isinstance(number, bool) for number in numbers):
            raise ValueError("expected a number, not true or false")
        return value

    @model_validator(mode="after")
    def _options_fit_each_other(self) -> TrainConfig:
        check_patch_fits(self.target_shape, self.depth)
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction leave no case to train on; lower one of them")
        if self.folds == 1 or (self.folds and self.fold >= self.folds):
            raise ValueError(
                f"fold is {self.fold} of {self.folds} folds; expected 2 folds or more and a fold below that"
            )
        if min(self.loss_weights) < 0 or sum(self.loss_weights) == 0:
            raise ValueError(f"loss_weights are {list(self.loss_weights)}; expected two of 0 or more, not both 0")
        if self.base_loss == "tversky" and self.tversky_alpha + self.tversky_beta == 0:
            raise ValueError("tversky_alpha and tversky_beta are both 0; expected one above 0")
        return self


def check_patch_fits(target_shape: Shape3, depth: int) -> None:
    """Raise ValueError where a U-Net of this depth cannot take this patch."""
    stride = 2 ** (depth - 1)
    for size in target_shape:
        if size < stride or size % stride:
            near = max(stride, round(size / stride) * stride)
            raise ValueError(
                f"target_shape {list(target_shape)} and depth {depth} do not fit: "
                f"each size must be a multiple of {stride} (2^(depth-1)); the nearest to {size} is {near}"
            )
    if math.prod(size // stride for size in target_shape) == 1:
        raise ValueError(
            f"target_shape {list(target_shape)} and depth {depth} leave one voxel at the lowest resolution, "
            f"which instance norm cannot normalise; double a size or lower depth"
        )
