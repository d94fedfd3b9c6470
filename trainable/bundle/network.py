"""The network of a bundle: one or several trained networks as one TorchScript module that needs no voxtune."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from trainable.core.brats import MODALITIES
from trainable.core.files import atomic_write
from trainable.model.unet3d import UNet3D

PROBABILITY_MARGIN = 1e-6  # from 0 and 1: of these the logit is infinite, and windows could not be blended


class AveragedNetworks(nn.Module):
    """Networks that predict together.

    Args:
        networks: at least one, on the CPU, in eval mode.
    """

    def __init__(self, networks: Sequence[UNet3D]) -> None:
        super().__init__()
        self.members = nn.ModuleList(networks)

    def member_logits(self, x: Tensor) -> Tensor:
        """Return the logits of all networks, (N, 4, D, H, W) -> float32 (N, 3 * networks, D, H, W)."""
        return torch.cat([member(x)[0].float() for member in self.members], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the mean of the networks' probabilities, (N, 4, D, H, W) -> float32 (N, 3, D, H, W).

        A voxel is in a region if its logit is above 0.
        """
        logits = self.member_logits(x)
        if len(self.members) == 1:
            return logits
        return torch.logit(logits.unflatten(1, (-1, 3)).sigmoid().mean(1), eps=PROBABILITY_MARGIN)


def trace_networks(networks: Sequence[UNet3D]) -> torch.jit.ScriptModule:
    """Return networks as one TorchScript module with the methods forward and member_logits of AveragedNetworks.

    It takes any spatial size that is a multiple of the networks' stride, and does not check that.
    """
    module = AveragedNetworks(networks).eval()
    side = 2 * max(network.stride for network in networks)
    example = torch.randn(1, len(MODALITIES), side, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), _quiet():
        traced = torch.jit.trace_module(module, {"forward": example, "member_logits": example}, check_trace=False)
    assert isinstance(traced, torch.jit.ScriptModule)
    return traced


def save_network(traced: torch.jit.ScriptModule, script: Path, weights: Path) -> None:
    """Write a module as TorchScript, and its weights as a state_dict; both of which torch alone reads."""
    with _quiet():
        atomic_write(script, lambda file: torch.jit.save(traced, file))
    state = {name: tensor.clone() for name, tensor in traced.state_dict().items()}
    atomic_write(weights, lambda file: torch.save(state, file))


def load_network(script: Path, device: torch.device) -> torch.jit.ScriptModule:
    """Return the module of a TorchScript file on a device, in eval mode."""
    with _quiet():
        return torch.jit.load(script, map_location=device).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out torch's notes that TorchScript is an old format, which MONAI's bundles have, and of traced checks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield
