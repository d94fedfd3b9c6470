"""Checkpoint files: the whole state of a training, written atomically, read without executing anything in them."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainable.cases.grid import Spacing, three
from trainable.core.config import TrainConfig
from trainable.core.device import with_usable_precision
from trainable.core.errors import InputError
from trainable.core.files import atomic_copy, atomic_write, link_or_copy
from trainable.core.logger import logger
from trainable.core.options import make_config
from trainable.model.unet3d import UNet3D, build_network
from trainable.training.training_dir import BEST, CHECKPOINT_FORMAT, LATEST, TrainingDir

MIN_PRETRAINED_SHARE = 0.5  # of the network's weights


def save_checkpoint(state: dict[str, Any], path: Path, *copies: Path, fsync: bool = True) -> None:
    """Write a state of tensors and plain values, and copies; a reader sees an old file or a new one, complete.

    Args:
        state: of a training, without CHECKPOINT_FORMAT, which is added.
        path: the file; its folder is made if needed.
        copies: more files of the same content, written after `path`, in existing folders.
        fsync: flush the files to the disk, so that they survive a crash of the machine; the copies are then files of
            their own, else hard links where these can be made, which need no time.

    Raises:
        OSError: if a file cannot be written (a full disk); that file and the later ones are then still the old ones.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: torch.save({"format": CHECKPOINT_FORMAT, **state}, file), fsync=fsync)
    for copy in copies:
        if fsync:
            atomic_copy(path, copy)
        else:
            link_or_copy(path, copy)


def find_checkpoint(path: Path, *, wanted: str = LATEST) -> Path:
    """Return the checkpoint that is given as a file, a folder of checkpoints or the output folder of a training.

    Args:
        path: the file or folder.
        wanted: which checkpoint of a folder that has both: LATEST to resume from, BEST to predict with. A folder with
            one of the two gives that one.

    Raises:
        InputError: if there is no such file, or the folder has neither.
    """
    names = sorted((LATEST, BEST), key=lambda name: name != wanted)
    folders = (path, TrainingDir(path).checkpoints)
    for file in [path, *(folder / name for name in names for folder in folders)]:
        if file.is_file():
            return file
    raise InputError(f"{path}: no checkpoint there; expected a .pth file or a folder with {wanted}")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in a checkpoint, on the CPU. path: as for find_checkpoint, with LATEST wanted.

    Raises:
        InputError: if the file is missing, damaged or not a checkpoint of CHECKPOINT_FORMAT.
    """
    path = find_checkpoint(path)
    state = load_verified(path)
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise InputError(f"{path}: not a checkpoint of voxtune, format {CHECKPOINT_FORMAT}")
    return state


def read_epoch(path: Path) -> int:
    """Return the epoch of a checkpoint; 0 if it cannot be read. Damaged weights go unnoticed, see load_checkpoint."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["epoch"])
    except Exception:  # torch raises many types for damaged files
        return 0


def load_metadata(path: Path) -> dict[str, Any]:
    """Return the content of a weights-only file, whose tensors are read only when used; {} if it is no dict.

    Raises:
        InputError: if it cannot be read. Damaged weights go unnoticed, see load_verified.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # an old format that cannot be mapped, or damage, which load_verified describes
        state = load_verified(path)
    return state if isinstance(state, dict) else {}


def spacing_of(state: Mapping[str, Any]) -> Spacing | None:
    """Return the voxel size in mm of the cases that a checkpoint was trained on; None if older code wrote it."""
    return three(state["grid"]["spacing"]) if "grid" in state else None


def load_verified(path: Path, *, mmap: bool = False) -> Any:
    """Return the content of a weights-only file, on the CPU, after verifying its checksums.

    mmap: tensors are read only when used.

    Raises:
        InputError: if it is missing or damaged, or contains objects other than tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as file:  # torch does not compare the checksums that it writes
            if damaged := file.testzip():
                raise ValueError(f"checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it contains objects, which could run code, and not only tensors"
        raise InputError(f"{path}: damaged or not a checkpoint ({reason})") from None


def load_network(path: Path, device: torch.device) -> tuple[UNet3D, TrainConfig]:
    """Return the network of a checkpoint on a device, ready to predict, and the config of its training.

    Its amp is off if the device cannot compute in the amp of the training.

    path: as for find_checkpoint, with BEST wanted.

    Raises:
        InputError: if there is no checkpoint, or it is damaged or of another format.
    """
    network, config = build_from_state(load_checkpoint(find_checkpoint(path, wanted=BEST)), device)
    return network, with_usable_precision(config, device)


def build_from_state(state: dict[str, Any], device: torch.device) -> tuple[UNet3D, TrainConfig]:
    """Return the network of a loaded checkpoint's state on a device, in eval mode, and the config of its training.

    Its weights are the averaged ones if the training had the option ema_decay.
    """
    config = make_config(state["config"], "the checkpoint", begun=True)
    network = build_network(config.model_copy(update={"device": device.type}))
    network.load_state_dict(predicting_weights(state))
    return network.to(device).eval(), config


def predicting_weights(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights that a checkpoint predicts with: the averaged ones if the training had ema_decay."""
    weights: dict[str, torch.Tensor] = state.get("ema") or state["network"]
    return weights


def weights_hash(state: Mapping[str, Any]) -> str:
    """Return 12 hex digits of the SHA-256 of predicting_weights, names and values, of a state on the CPU.

    The file's own hash differs as soon as anything else in it does, as when postprocess writes options into it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(predicting_weights(state).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def load_latest_valid(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file of the checkpoint to resume from, and its state.

    A file other than latest.pth is returned as it is. In place of latest.pth, best_model.pth is returned if it is of a
    later epoch, as a kill came between writing the two; if latest.pth is damaged, the intact checkpoint of the latest
    epoch in its folder, with a warning.

    Args:
        path: as for find_checkpoint, with LATEST wanted.

    Raises:
        InputError: if there is no checkpoint, or none of them is intact.
    """
    source = find_checkpoint(path)
    if source.name != LATEST:
        return source, load_checkpoint(source)
    state: dict[str, Any] = {}
    damage = ""
    try:
        state = load_checkpoint(source)
    except InputError as error:
        damage = str(error)
    others = [source.with_name(BEST)] if state else sorted(source.parent.glob("*.pth"))
    newer = {other: epoch for other in others if (epoch := read_epoch(other)) > state.get("epoch", 0)}
    for other in sorted(newer, key=lambda path: newer[path], reverse=True):
        with contextlib.suppress(InputError):
            source, state = other, load_checkpoint(other)
            break
    if not state:
        raise InputError(f"{damage}; no other checkpoint there is intact")
    if damage:
        logger.warning(f"{damage}\ngoing on from {source}, epoch {state['epoch']}")
    return source, state


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a checkpoint or in a file with a state_dict, bare or under the key "state_dict".

    Of a checkpoint with ema_decay these are the averaged ones. Values that are no tensors are left out.

    path: as for find_checkpoint, with BEST wanted.

    Raises:
        InputError: if there is no such file, or it is damaged or contains no weights.
    """
    path = find_checkpoint(path, wanted=BEST)
    state = load_verified(path)
    weights = state
    if isinstance(state, dict):
        weights = next(
            (state[key] for key in ("ema", "network", "state_dict", "model_state_dict") if key in state), state
        )
    if not isinstance(weights, dict) or not any(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise InputError(
            f"{path}: contains no weights; expected a checkpoint of voxtune or a state_dict of its network"
        )
    return {name: tensor for name, tensor in weights.items() if isinstance(tensor, torch.Tensor)}


def differ_only_in_inputs(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether these are weights of 3D convolutions whose shapes differ at most in the input channels."""
    return a.ndim == b.ndim == 5 and a[:, 0].shape == b[:, 0].shape


def load_pretrained(network: UNet3D, path: Path) -> str:
    """Copy the weights in a file that match by name and shape into the network; the others stay as they are.

    Weights of the first encoder block that differ only in the number of input channels, as for other modalities, are
    adapted and count as matching: each channel of the network gets the sum over the file's channels, divided by the
    network's number of channels.

    Args:
        path: as for load_weights.

    Returns:
        A text: the share of the network's weights that was copied, then a line on each that was adapted or not copied.

    Raises:
        InputError: if less than MIN_PRETRAINED_SHARE of the network's weights match, or the file cannot be used. The
            network is then unchanged.
    """
    given, own = load_weights(path), network.state_dict()
    taken, reasons = {}, [f"not loaded: {name}: not in this network" for name in given if name not in own]
    for name, tensor in own.items():
        if name not in given:
            reasons.append(f"not loaded: {name}: not in {path}")
        elif given[name].shape == tensor.shape:
            taken[name] = given[name]
        elif name.startswith("encoder.0.") and differ_only_in_inputs(given[name], tensor):
            taken[name] = given[name].sum(1, keepdim=True).expand_as(tensor) / tensor.shape[1]
            reasons.append(f"adapted: {name}: {given[name].shape[1]} input channels there, {tensor.shape[1]} here")
        else:
            reasons.append(f"not loaded: {name}: {tuple(given[name].shape)} there, {tuple(tensor.shape)} here")
    share = sum(tensor.numel() for tensor in taken.values()) / sum(tensor.numel() for tensor in own.values())
    if share < MIN_PRETRAINED_SHARE:
        raise InputError(
            f"{path}: only {share:.0%} of the network's weights match, less than {MIN_PRETRAINED_SHARE:.0%}; expected "
            "a network of the same depth, channels and residual. First differences:\n  " + "\n  ".join(reasons[:5])
        )
    network.load_state_dict(taken, strict=False)
    return "\n  ".join([f"pretrained: {share:.1%} of the weights from {path}", *reasons])
