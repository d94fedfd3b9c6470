"""What the driver of a sweep and the process of a trial send each other: the spec to the trial, reports back."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class TrialSpec(TypedDict):
    """What the driver sends to a trial's process.

    number: of the trial. recipe: a TrainConfig as plain values, with cache_dir and split_file. checkpoints: folders or
    URIs to resume from, the newest first, by their paths below the run's storage; none to start at epoch 1. cpu: number
    of CPU cores on each node, for all its processes there. gpu_share: share of one GPU, or number of GPUs, on each
    node. nodes: their number. lock_file: the process holds a shared lock on this file until the process ends.
    stdout_log: path of the trial's stdout.log in the run's folder. report_timeout: seconds without an epoch after which
    the trial counts as hung; None for no limit. data: hash of the cases that the run began with. contents_file: path of
    the run's cases.json.
    """

    number: int
    recipe: dict[str, Any]
    checkpoints: dict[str, str]
    cpu: int
    gpu_share: float
    nodes: int
    lock_file: str
    stdout_log: str
    report_timeout: float | None
    data: str | None
    contents_file: str


class Report(TypedDict):
    """What a trial reports to the driver: a row of metrics.csv, with what only the driver reads.

    epoch: the epoch that was trained; 0 for a report without one. end_reason: a value of EndReason; "" while the trial
    goes on. log: what the trial has printed since its last report. device: name of the GPU or CPU. fresh_process: the
    trial asks to be restarted in another process. sweep_error: what would make other trials fail too, such as a full
    disk, and on which machine; it ends the sweep, and the trial goes on when the sweep is resumed. sign_of_life: the
    trial is between two validations, or has just started; of this report nothing but the log is recorded. host, gpus:
    in the first report of a trial's process only, the machine's name and the indices of the GPUs there that Ray has
    reserved for it; none on a CPU. other_nodes: there too, the addresses of the others of several nodes. went_back:
    what is wrong with the newest checkpoints of a restored trial, which goes on after this epoch, or begins again if
    that is 0. went_back_to: there too, the path of its checkpoint below the run's storage; "" if that is not known, or
    there is none. data: hash of the cases that the trial was trained and scored on. case_scores: the epoch's rows of
    case_scores.csv, as text. time_this_iter_s: seconds since the last report that is no sign of life, by a clock that
    nobody sets. The scores and statistics of the epoch have the names of metrics.csv, also those that are not listed
    here.
    """

    epoch: int
    end_reason: str
    log: str
    best_score: NotRequired[float]
    best_epoch: NotRequired[int]
    val_dice_mean: NotRequired[float]
    val_dice_WT: NotRequired[float]
    val_dice_TC: NotRequired[float]
    val_dice_ET: NotRequired[float]
    device: NotRequired[str]
    fresh_process: NotRequired[bool]
    sweep_error: NotRequired[str]
    sign_of_life: NotRequired[bool]
    host: NotRequired[str]
    gpus: NotRequired[list[int]]
    other_nodes: NotRequired[list[str]]
    went_back: NotRequired[str]
    went_back_to: NotRequired[str]
    data: NotRequired[str]
    case_scores: NotRequired[str]
    time_this_iter_s: NotRequired[float]
