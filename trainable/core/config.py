"""TrainConfig: every option of a training, written once.

The flags of `train.py`, the keys of a sweep's YAML, the table in the docs and the error messages are all derived from
the fields below, see options.py.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from trainable.core.config_checks import CheckedOptions
from trainable.core.option_info import Above, option
from trainable.core.storage import Uri

Shape3 = tuple[int, int, int]
Milestones = tuple[Annotated[int, Field(ge=1)], ...]

# Most options of a group have the same role.
_run = partial(option, group="run", role="run")
_data = partial(option, group="data", role="protocol", compared="hash")
_data_place = partial(option, group="data", role="run")
_length = partial(option, group="length", role="protocol", compared="value")
_network = partial(option, group="network", role="recipe")
_patches = partial(option, group="patches", role="recipe")
_loss = partial(option, group="loss", role="recipe")
_optimizer = partial(option, group="optimizer", role="recipe")
_scheduler = partial(option, group="scheduler", role="recipe")
_augmentation = partial(option, group="augmentation", role="recipe")
_inference = partial(option, group="inference", role="protocol", compared="value", prediction=True)

# Options that act only if another has one of these values.
_on_gpu = partial(_run, acts_if={"device": ("auto", "cuda")})
_of_test = partial(_run, one_call=True, acts_if={"test_only": (True,)})
_of_split = partial(_data, fixed=True, ge=0, acts_if={"split_file": (None,)})
_of_focal = partial(_loss, acts_if={"base_loss": ("focal",)})
_of_tversky = partial(_loss, acts_if={"base_loss": ("tversky",)}, checked_with="tversky weights", ge=0)
_of_sgd = partial(_optimizer, acts_if={"optimizer": ("sgd",)})
_of_plateau = partial(_scheduler, acts_if={"scheduler": ("plateau",)})
_of_augment = partial(_augmentation, acts_if={"augment": (True,)})
_probability = partial(
    _augmentation, unit="probability", ge=0, le=1, acts_if={"augment": (True,), "augment_strength": Above(0)}
)


class TrainConfig(CheckedOptions):
    """All options of one training. Frozen; unknown names are refused. config_checks.py checks more than limits."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=False)

    # Where
    data_dir: Uri | Path | None = _data_place(
        None, "Folder with one sub-folder per case; or its URI, such as s3://bucket/cases."
    )
    output_dir: Path = _run(Path("output"), "Folder for the results of this training.", set_by="launch")
    cache_dir: Path | None = _data_place(None, "Folder of the preprocessed cases; by default next to data_dir.")
    resume: Path | None = _run(
        None,
        "Checkpoint, or folder of a training, to resume from.",
        one_call=True,
        starting_point=True,
        set_by="launch",
    )
    pretrained: Path | None = _run(
        None,
        "Weights that a new training starts from, matched by name and shape; refused if less than half match.",
        starting_point=True,
        exported=True,
        compared="value",
    )
    test_only: bool = _run(False, "Score the test cases with --resume; do not train.", one_call=True, set_by="launch")
    members: tuple[Path, ...] = _of_test(
        (),
        "With test_only: more checkpoints, or folders, whose probabilities are averaged with those of --resume.",
        set_by="launch",
    )
    save_predictions: bool = _of_test(False, "With test_only: write each prediction as NIfTI.")
    lesion_wise: bool = _of_test(
        False, "With test_only: also lesion-wise Dice and HD95, as in BraTS 2023 for adult glioma."
    )
    device: Literal["auto", "cpu", "cuda"] = _run("auto", "Device; auto uses a GPU if there is one.")
    fast: bool = _on_gpu(True, "On a GPU: fused kernels, channels last, steps from a CUDA graph; false: plain PyTorch.")
    deterministic: bool = _run(False, "Use only algorithms that repeat bit for bit, also on a GPU; slower.")
    num_workers: int = _run(
        2, "Threads that read patches ahead; 0 reads each patch when it is needed.", unit="threads", exported=True, ge=0
    )

    # Which cases
    skip_bad_cases: bool = _data(False, "Continue without cases that fail a check, and list them.")
    labels: Literal["2021", "2023", "ped2024", "gli2024"] | Path | None = _data(
        None,
        "What the values of seg files mean: a year or task of BraTS, or a YAML file; by default the names tell it.",
    )
    split_file: Path | None = _data(None, "JSON with the case names of train, val and test; replaces the fractions.")
    patients: Path | None = _data(
        None, "CSV with the columns case,patient; by default a patient is a case's name without its time point."
    )
    allow_split_patients: bool = _data_place(False, "Take a split_file that has one patient in several parts.")
    allow_seen_cases: bool = _data_place(
        False, "Take --pretrained weights that were trained on val or test cases; every table then says so."
    )
    val_fraction: float = _of_split(
        0.15, "Share of cases used for validation.", unit="share", lt=1, acts_if={"split_file": (None,), "folds": (0,)}
    )
    test_fraction: float = _of_split(0.15, "Share of cases held out until the end.", unit="share", lt=1)
    folds: int = _of_split(0, "Number of folds of a cross-validation; 0 = none.")
    fold: int = _of_split(
        0, "Index of the fold used for validation, from 0.", acts_if={"split_file": (None,), "folds": Above(0)}
    )
    background: float | Literal["auto"] = _data(
        0.0,
        "Value of the images' background, which becomes 0 by subtraction; auto: the most frequent one on each image's "
        "outer faces.",
        fixed=True,
    )
    resample: bool = _data(
        False, "Resample cases whose voxel size differs by over 10 % from the median of all cases.", fixed=True
    )
    seed: int = _data(
        0, "Seed of the split, initial weights, patches and augmentation.", fixed=True, set_by="study", ge=0, le=2**62
    )

    # How long
    epochs: int = _length(
        100, "Number of epochs; also the horizon of the lr schedule.", unit="epochs", over_epochs="count", ge=1
    )
    patches_per_epoch: int = _length(0, "Patches per epoch; 0 = one per training case.", unit="patches", ge=0)
    val_freq: int = _length(1, "Validate every N epochs, and after the last.", unit="epochs", ge=1)
    val_cases: int = _length(
        20, "Number of validation cases used, always the same ones; 0 = all.", unit="cases", fixed=True, ge=0
    )
    save_freq: int = _run(10, "Keep a numbered checkpoint every N epochs.", group="length", unit="epochs", ge=1)
    metric: Literal["val_dice_mean", "val_dice_WT", "val_dice_TC", "val_dice_ET"] = _length(
        "val_dice_mean", "Score that picks the best epoch, for plateau and patience too.", fixed=True, set_by="study"
    )
    patience: int = _length(0, "Stop after N validations without a better score; 0 = never.", unit="validations", ge=0)
    max_skipped_steps: int = _length(
        20, "Stop after N steps in a row with a non-finite gradient; each such step is skipped.", unit="steps", ge=1
    )

    # Network
    depth: int = _network(
        6,
        "Number of resolutions of the U-Net.",
        fixed=True,
        memory="more",
        checked_with="patch size",
        permissive=2,
        ge=2,
        le=8,
    )
    base_channels: int = _network(
        32,
        "Channels at full resolution, doubled at each lower resolution.",
        unit="channels",
        fixed=True,
        memory="more",
        ge=1,
    )
    max_channels: int = _network(320, "Limit of that doubling.", unit="channels", fixed=True, memory="more", ge=1)
    residual: bool = _network(False, "Residual blocks instead of plain ones.", fixed=True, memory="more")
    deep_supervision: bool = _network(
        False,
        "Loss also at the decoder's lower resolutions, weighted 1, 1/2, 1/4, ... over their sum.",
        fixed=True,
        memory="more",
    )
    dropout: float = _network(0.0, "Probability of dropping a channel, in each block.", unit="probability", ge=0, lt=1)
    gradient_checkpointing: bool = _network(
        False,
        "Recompute each block in the backward pass instead of storing it: less memory, a third to a half slower.",
        memory="other",
    )

    # Patches
    target_shape: Shape3 = _patches(
        (128, 128, 128),
        "Size of a patch: depth, height, width.",
        unit="voxels",
        memory="more",
        prediction=True,
        checked_with="patch size",
        permissive=(512, 512, 512),
    )
    batch_size: int = _patches(2, "Patches per micro-batch.", unit="patches", memory="more", ge=1)
    tumour_share: float = _patches(
        1 / 3, "Share of patches centred on tumour, on each region in turn.", unit="share", ge=0, le=1
    )

    patch_overhang: float = _patches(
        0.0,
        "Share of a patch that may lie beyond the brain's box along each axis, as zeros.",
        unit="share",
        ge=0,
        le=0.5,
    )

    # Loss
    base_loss: Literal["bce", "focal", "tversky"] = _loss(
        "bce", "Loss added to Dice; --focal_loss is short for focal.", checked_with="tversky weights"
    )
    loss_weights: tuple[float, float] = _loss((1.0, 1.0), "Weights of the base loss and of Dice.")
    batch_dice: bool = _loss(
        True,
        "Dice and Tversky over a micro-batch as one volume; false: per patch, then the mean.",
        acts_if={"batch_size": Above(1)},
    )
    focal_gamma: float = _of_focal(2.0, "Focal loss: exponent that reduces the weight of easy voxels.", ge=0)
    focal_alpha: float = _of_focal(0.5, "Focal loss: weight of tumour voxels; 1 - alpha for the others.", gt=0, lt=1)
    tversky_alpha: float = _of_tversky(0.3, "Tversky loss: weight of false positives.")
    tversky_beta: float = _of_tversky(0.7, "Tversky loss: weight of false negatives.")

    # Optimizer
    optimizer: Literal["adam", "adamw", "sgd"] = _optimizer("adam", "Optimizer.", fixed=True, memory="other")
    lr: float = _optimizer(3e-4, "Initial learning rate of the schedule.", gt=0)
    weight_decay: float = _optimizer(1e-5, "Weight decay, on convolution weights only: none on biases and norms.", ge=0)
    momentum: float = _of_sgd(0.9, "SGD: momentum.", ge=0, lt=1)
    nesterov: bool = _optimizer(True, "SGD: Nesterov momentum.", acts_if={"optimizer": ("sgd",), "momentum": Above(0)})
    gradient_clipping: float = _optimizer(0.0, "Maximum norm of the gradient; 0 = no clipping.", ge=0)
    accumulation_steps: int = _optimizer(
        1, "Micro-batches per step (optimizer update).", unit="micro-batches", memory="more", ge=1
    )
    ema_decay: float = _optimizer(
        0.0,
        "Validate and save a moving average of the weights, of this decay per step; 0 = off. Takes the memory of the "
        "weights once more, twice during a step.",
        memory="more",
        ge=0,
        lt=1,
    )
    amp: Literal["off", "fp16", "bf16"] = _on_gpu(
        "off",
        "Mixed precision on a GPU; --amp without a value is fp16.",
        group="optimizer",
        role="recipe",
        memory="other",
        prediction=True,
    )

    # Learning-rate schedule
    scheduler: Literal["plateau", "cosine", "step", "multistep", "exponential", "poly"] = _scheduler(
        "plateau", "Learning-rate schedule, stepped after each epoch; plateau after each validation.", fixed=True
    )
    warmup_epochs: int = _scheduler(
        0,
        "Cosine: epochs of linear warm-up.",
        unit="epochs",
        over_epochs="count",
        ge=0,
        acts_if={"scheduler": ("cosine",)},
    )
    min_lr: float = _scheduler(
        0.0,
        "Cosine, plateau and multistep: lowest learning rate.",
        ge=0,
        acts_if={"scheduler": ("cosine", "plateau", "multistep")},
    )
    plateau_factor: float = _of_plateau(0.5, "Plateau: factor of a reduction.", gt=0, lt=1)
    plateau_patience: int = _of_plateau(
        10,
        "Plateau: validations without a better score before a reduction.",
        unit="validations",
        over_epochs="count",
        ge=0,
    )
    step_size: int = _scheduler(
        30,
        "Step: epochs between reductions.",
        unit="epochs",
        over_epochs="count",
        ge=1,
        acts_if={"scheduler": ("step",), "epochs": Above("step_size")},
    )
    step_gamma: float = _scheduler(
        0.1,
        "Step and multistep: factor of a reduction.",
        gt=0,
        le=1,
        acts_if={"scheduler": ("step", "multistep")},
    )
    milestones: Milestones = _scheduler(
        (),
        "Multistep: numbers of epochs after which lr is reduced.",
        unit="epochs",
        over_epochs="count",
        acts_if={"scheduler": ("multistep",)},
    )
    exponential_gamma: float = _scheduler(
        0.95, "Exponential: factor per epoch.", over_epochs="rate", gt=0, le=1, acts_if={"scheduler": ("exponential",)}
    )
    poly_power: float = _scheduler(
        0.9, "Poly: exponent of the share of epochs left.", gt=0, acts_if={"scheduler": ("poly",)}
    )

    # Augmentation, on the batch on its device
    augment: bool = _augmentation(True, "Augment the patches.")
    augment_strength: float = _of_augment(1.0, "Factor on the ranges below; the probabilities stay.", ge=0, le=3)
    flip_prob: float = _of_augment(0.5, "Flip, separately per axis.", unit="probability", ge=0, le=1)
    rotate_prob: float = _probability(0.2, "Rotate by up to 15 degrees per axis.")
    zoom_prob: float = _probability(0.2, "Zoom in space by up to 20 %.")
    scale_prob: float = _probability(0.5, "Scale the intensity by up to 10 %.")
    shift_prob: float = _probability(0.5, "Shift the intensity by up to 0.1 standard deviations.")
    gamma_prob: float = _probability(0.15, "Gamma-correct the intensity by up to 30 %.")
    noise_prob: float = _probability(0.15, "Add Gaussian noise of up to 0.1 standard deviations.")
    blur_prob: float = _probability(0.1, "Gaussian blur, sigma up to 1 voxel.")
    lowres_prob: float = _probability(0.0, "Lower the resolution to 0.5 to 1, each channel with probability 0.5.")
    contrast_prob: float = _probability(0.0, "Scale the contrast about the mean by up to 25 %, within the range.")
    brightness_prob: float = _probability(0.0, "Scale the intensity by up to 25 %.")

    # Whole volumes
    overlap: float = _inference(0.5, "Share of a window that the next one overlaps.", ge=0, lt=1)
    mirror: bool = _inference(False, "Average the predictions of the 8 mirrored volumes.")
    min_component: int = _inference(
        0, "Remove connected tumours of fewer than N voxels from a prediction; 0 = keep all.", unit="voxels", ge=0
    )
    et_threshold: int = _inference(
        0, "Relabel the ET of a prediction as TC if it has fewer than N voxels in all; 0 = never.", unit="voxels", ge=0
    )
