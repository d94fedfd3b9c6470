"""Checkpoints: the whole state of a training, written atomically, read without executing anything in them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from trainable.config import InputError, TrainConfig
from trainable.options import make_config
from trainable.unet3d import UNet3D, build_network

FORMAT = 1
LATEST, BEST = "latest.pth", "best_model.pth"


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a state of tensors and plain values; a reader sees the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def find_checkpoint(path: Path, *, wanted: str = LATEST) -> Path:
    """The checkpoint meant by a file, a folder of checkpoints or the output folder of a training.

    wanted: which of a folder's, where it has both: LATEST to go on from, BEST to predict with.
    """
    names = sorted((LATEST, BEST), key=lambda name: name != wanted)
    folders = (path, path / "checkpoints")
    for place in [path, *(folder / name for name in names for folder in folders)]:
        if place.is_file():
            return place
    raise InputError(f"{path}: no checkpoint there; expected a .pth file or a folder with {wanted}")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU.

    Raises:
        InputError: where the file is missing, damaged or not a checkpoint of this program.
    """
    path = find_checkpoint(path)
    try:
        with zipfile.ZipFile(path) as file:  # torch does not compare the checksums that it writes
            if damaged := file.testzip():
                raise ValueError(f"checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged or not a checkpoint ({reason}); use an earlier one") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of voxtune, format {FORMAT}")
    return state


def load_network(path: Path, device: torch.device) -> tuple[UNet3D, TrainConfig]:
    """The network of a checkpoint (of a folder: the best) with its weights, and the config that it was trained with."""
    path = find_checkpoint(path, wanted=BEST)
    state = load_checkpoint(path)
    config = make_config(state["config"], str(path))
    network = build_network(config)
    network.load_state_dict(state["network"])
    return network.to(device).eval(), config


def load_pretrained(network: UNet3D, path: Path) -> str:
    """Copy the tensors of a checkpoint that match by name and shape; say what was not copied.

    Raises:
        InputError: where less than half of the weights match.
    """
    given: dict[str, torch.Tensor] = load_checkpoint(path)["network"]
    own = network.state_dict()
    matching = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    reasons = [f"{name}: not in this network" for name in given if name not in own]
    reasons += [f"{name}: not in {path}" for name in own if name not in given]
    reasons += [
        f"{name}: {tuple(given[name].shape)} there, {tuple(own[name].shape)} here"
        for name in own
        if name in given and name not in matching
    ]
    share = sum(tensor.numel() for tensor in matching.values()) / sum(tensor.numel() for tensor in own.values())
    if share < 0.5:
        raise InputError(
            f"{path}: only {share:.0%} of the network's weights match; expected a network of the same depth, channels "
            "and residual. First differences:\n  " + "\n  ".join(reasons[:5])
        )
    network.load_state_dict(matching, strict=False)
    return "\n".join([f"pretrained: {share:.1%} of the weights from {path}", *(f"  not loaded: {r}" for r in reasons)])
