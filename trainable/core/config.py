"""TrainConfig: every option of a training, written once.

The flags of `train.py`, the keys of a sweep's YAML, the table in the docs and the messages of
errors are all derived from the fields below, see options.py.
"""

from __future__ import annotations

import math
import os
import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Role = Literal["recipe", "protocol", "run"]
Shape3 = tuple[int, int, int]


def option(
    default: Any,
    meaning: str,
    *,
    group: str,
    role: Role,
    unit: str = "",
    guide: str = "",
    fixed: bool = False,
    memory: Literal["", "more", "other"] = "",
    **checks: Any,
) -> Any:
    """A field of TrainConfig.

    role: "recipe" may be searched by a sweep; "protocol" defines what scores mean, so a sweep may fix it
    and never search it; "run" says where and how a training runs.
    guide: the section that describes it in the guide of the script this trainer grew from. fixed: a resumed
    training cannot change it, since it gives the state its shape or the scores their meaning. memory: does a larger
    value ask for "more" GPU memory, or another value for an "other" amount?
    """
    facts: dict[str, Any] = {"group": group, "role": role, "unit": unit, "guide": guide}
    facts |= {"fixed": fixed, "memory": memory}
    return Field(default, description=meaning, json_schema_extra=facts, **checks)


# The options of a group have most often one role.
_run = partial(option, group="run", role="run")
_data = partial(option, group="data", role="protocol")
_length = partial(option, group="length", role="protocol")
_network = partial(option, group="network", role="recipe")
_patches = partial(option, group="patches", role="recipe")
_loss = partial(option, group="loss", role="recipe")
_optimizer = partial(option, group="optimizer", role="recipe")
_scheduler = partial(option, group="scheduler", role="recipe")
_augmentation = partial(option, group="augmentation", role="recipe", guide="参数配置增强")
_inference = partial(option, group="inference", role="protocol")


class TrainConfig(BaseModel):
    """All options of one training. Frozen; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=False)

    # Where
    data_dir: Path | None = _data(None, "Folder with one folder a case.", role="run", guide="基础训练")
    output_dir: Path = _run(Path("output"), "Folder of this training's results.", guide="基础训练")
    cache_dir: Path | None = _data(None, "Folder of the preprocessed cases; by default beside data_dir.", role="run")
    resume: Path | None = _run(None, "Checkpoint, or folder of a training, to go on from.", guide="恢复训练")
    pretrained: Path | None = _run(
        None,
        "Weights that a new training starts from, matched by name and shape; refused where less than half match.",
        guide="预训练模型支持",
    )
    test_only: bool = _run(False, "Score the test cases with --resume, train nothing.", guide="仅测试")
    save_predictions: bool = _run(False, "With test_only: write each prediction as NIfTI.", guide="仅测试")
    lesion_wise: bool = _run(False, "With test_only: also Dice and HD95 by lesion, as BraTS 2023 scores.")
    device: Literal["auto", "cpu", "cuda"] = _run("auto", "Device; auto takes a GPU where there is one.")
    fast: bool = _run(True, "On a GPU: fused kernels, channels last, steps from a CUDA graph; false: plain PyTorch.")
    deterministic: bool = _run(False, "Only algorithms that repeat bit for bit on a GPU too; slower.")
    num_workers: int = _run(
        2, "Threads that read patches ahead; 0 reads each when it is due.", unit="threads", guide="内存优化", ge=0
    )

    # Which cases
    skip_bad_cases: bool = _data(False, "Go on without cases that fail a check, and list them.")
    split_file: Path | None = _data(None, "JSON with the case names of train, val and test; replaces the fractions.")
    val_fraction: float = _data(0.15, "Share of cases validated on.", unit="share", fixed=True, ge=0, lt=1)
    test_fraction: float = _data(0.15, "Share of cases held out until the end.", unit="share", fixed=True, ge=0, lt=1)
    folds: int = _data(0, "Number of folds of a cross-validation; 0 for none.", fixed=True, ge=0)
    fold: int = _data(0, "Which fold is validated on, from 0.", fixed=True, ge=0)
    seed: int = _data(0, "Seed of the split, initial weights, patches and augmentation.", fixed=True, ge=0, le=2**62)

    # How long
    epochs: int = _length(100, "Epochs; also the horizon of the lr schedule.", unit="epochs", guide="基础训练", ge=1)
    patches_per_epoch: int = _length(0, "Patches drawn an epoch; 0 draws one a case.", unit="patches", ge=0)
    val_freq: int = _length(
        1, "Validate every so many epochs, and after the last.", unit="epochs", guide="灵活的验证频率", ge=1
    )
    val_cases: int = _length(
        20, "Validate so many of the validation cases, the same ones each time; 0: all.", unit="cases", fixed=True, ge=0
    )
    save_freq: int = _length(
        10, "Keep a numbered checkpoint every so many epochs.", role="run", unit="epochs", guide="训练控制", ge=1
    )
    metric: Literal["val_dice_mean", "val_dice_WT", "val_dice_TC", "val_dice_ET"] = _length(
        "val_dice_mean", "Score that picks the best epoch; plateau and patience watch it.", fixed=True
    )
    patience: int = _length(
        0,
        "Stop after so many validations without a better score; 0: never.",
        unit="validations",
        guide="训练策略建议",
        ge=0,
    )
    max_skipped_steps: int = _length(
        20,
        "Stop after so many steps in a row whose gradient was not finite; each of them is skipped.",
        unit="steps",
        ge=1,
    )

    # Network
    depth: int = _network(6, "Resolutions of the U-Net.", fixed=True, memory="more", ge=2, le=8)
    base_channels: int = _network(
        32, "Channels at full resolution; doubled at each resolution.", unit="channels", fixed=True, memory="more", ge=1
    )
    max_channels: int = _network(320, "Limit of that doubling.", unit="channels", fixed=True, memory="more", ge=1)
    residual: bool = _network(
        False, "Residual blocks instead of plain ones.", guide="基础训练", fixed=True, memory="more"
    )
    deep_supervision: bool = _network(
        False,
        "Loss also at the decoder's lower resolutions, weighted 1, 1/2, 1/4, ... over their sum.",
        guide="深度监督优化",
        fixed=True,
        memory="more",
    )
    dropout: float = _network(0.0, "Probability of dropping a channel in each block.", unit="probability", ge=0, lt=1)
    gradient_checkpointing: bool = _network(
        False,
        "Compute each block again in the backward pass instead of storing it: less memory, a third to a half slower.",
        guide="内存优化",
        memory="other",
    )

    # Patches
    target_shape: Shape3 = _patches(
        (128, 128, 128), "Size of a patch: depth, height, width.", unit="voxels", guide="GPU内存优化", memory="more"
    )
    batch_size: int = _patches(2, "Patches a micro-batch.", unit="patches", guide="GPU内存优化", memory="more", ge=1)
    tumour_share: float = _patches(
        1 / 3, "Share of patches centred on tumour, each region its turn.", unit="share", ge=0, le=1
    )

    # Loss
    base_loss: Literal["bce", "focal", "tversky"] = _loss(
        "bce", "Loss beside Dice; --focal_loss is short for focal.", guide="损失函数优化"
    )
    loss_weights: tuple[float, float] = _loss((1.0, 1.0), "Weights of the base loss and of Dice.", guide="损失函数增强")
    batch_dice: bool = _loss(
        True,
        "Dice and Tversky over a micro-batch as one volume; false: over each patch, then the mean.",
        guide="损失函数增强",
    )
    focal_gamma: float = _loss(2.0, "Focal loss: exponent that mutes easy voxels.", guide="损失函数优化", ge=0)
    focal_alpha: float = _loss(
        0.5, "Focal loss: weight of tumour voxels, 1 - alpha that of the rest.", guide="损失函数优化", gt=0, lt=1
    )
    tversky_alpha: float = _loss(0.3, "Tversky loss: weight of false positives.", guide="损失函数优化", ge=0)
    tversky_beta: float = _loss(0.7, "Tversky loss: weight of false negatives.", guide="损失函数优化", ge=0)

    # Optimizer
    optimizer: Literal["adam", "adamw", "sgd"] = _optimizer(
        "adam", "Optimizer.", guide="多优化器支持", fixed=True, memory="other"
    )
    lr: float = _optimizer(3e-4, "Learning rate that the schedule starts from.", guide="恢复训练", gt=0)
    weight_decay: float = _optimizer(
        1e-5, "Weight decay, on convolution weights only: none on biases and norms.", guide="多优化器支持", ge=0
    )
    momentum: float = _optimizer(0.9, "SGD: momentum.", guide="多优化器支持", ge=0, lt=1)
    nesterov: bool = _optimizer(True, "SGD: Nesterov's momentum.", guide="多优化器支持")
    gradient_clipping: float = _optimizer(0.0, "Largest norm of the gradient; 0 does not clip.", guide="梯度裁剪", ge=0)
    accumulation_steps: int = _optimizer(
        1, "Micro-batches a step (optimizer update).", unit="micro-batches", guide="梯度累积", memory="more", ge=1
    )
    amp: Literal["off", "fp16", "bf16"] = _optimizer(
        "off", "Mixed precision on a GPU; --amp alone is fp16.", guide="内存优化", memory="other"
    )

    # Learning-rate schedule
    scheduler: Literal["plateau", "cosine", "step", "exponential", "poly"] = _scheduler(
        "plateau",
        "Learning-rate schedule, stepped each epoch; plateau at each validation.",
        guide="多调度器支持",
        fixed=True,
    )
    warmup_epochs: int = _scheduler(0, "Cosine: epochs of linear warm-up.", unit="epochs", guide="多调度器支持", ge=0)
    min_lr: float = _scheduler(0.0, "Cosine and plateau: lowest learning rate.", guide="多调度器支持", ge=0)
    plateau_factor: float = _scheduler(0.5, "Plateau: factor of a reduction.", guide="多调度器支持", gt=0, lt=1)
    plateau_patience: int = _scheduler(
        10, "Plateau: validations without a better score before it.", unit="validations", guide="多调度器支持", ge=0
    )
    step_size: int = _scheduler(30, "Step: epochs between reductions.", unit="epochs", guide="多调度器支持", ge=1)
    step_gamma: float = _scheduler(0.1, "Step: factor of a reduction.", guide="多调度器支持", gt=0, le=1)
    exponential_gamma: float = _scheduler(0.95, "Exponential: factor of each epoch.", guide="多调度器支持", gt=0, le=1)
    poly_power: float = _scheduler(0.9, "Poly: exponent of the share of epochs left.", gt=0)

    # Augmentation, on the batch on its device
    augment: bool = _augmentation(True, "Augment; false for none.")
    augment_strength: float = _augmentation(1.0, "Factor on the ranges below; the probabilities stay.", ge=0, le=3)
    flip_prob: float = _augmentation(0.5, "Flip, for each axis.", unit="probability", ge=0, le=1)
    rotate_prob: float = _augmentation(0.2, "Rotate up to 15 degrees an axis.", unit="probability", ge=0, le=1)
    zoom_prob: float = _augmentation(0.2, "Zoom in space by up to 20 %.", unit="probability", ge=0, le=1)
    scale_prob: float = _augmentation(0.5, "Multiply intensity by up to 10 %.", unit="probability", ge=0, le=1)
    shift_prob: float = _augmentation(0.5, "Shift intensity by up to 0.1 deviations.", unit="probability", ge=0, le=1)
    gamma_prob: float = _augmentation(0.15, "Gamma-correct intensity by up to 30 %.", unit="probability", ge=0, le=1)
    noise_prob: float = _augmentation(0.15, "Gaussian noise of up to 0.1 deviations.", unit="probability", ge=0, le=1)
    blur_prob: float = _augmentation(0.1, "Gaussian blur, sigma up to 1 voxel.", unit="probability", ge=0, le=1)

    # Whole volumes
    overlap: float = _inference(0.5, "Share that neighbouring windows overlap.", ge=0, lt=1)
    mirror: bool = _inference(False, "Average the predictions of the 8 mirrored volumes.")
    min_component: int = _inference(
        0, "Remove connected tumours of fewer voxels from a prediction; 0 keeps all.", unit="voxels", ge=0
    )
    et_threshold: int = _inference(
        0, "Count the ET of a prediction as TC where it has fewer voxels in all; 0 never.", unit="voxels", ge=0
    )

    @property
    def fused(self) -> bool:
        """Whether a GPU may use the kernels: Triton is there, which torch for CUDA brings along on Linux, and a C
        compiler, which Triton needs.
        """
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
        return self.fast and find_spec("triton") is not None and compiler is not None

    @model_validator(mode="before")
    @classmethod
    def _accept_legacy_spellings(cls, values: Any) -> Any:
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
