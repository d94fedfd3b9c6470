"""The network: a 3D U-Net with instance norm, optional residual blocks and deep supervision.

Sources: Çiçek et al. 2016 (https://arxiv.org/abs/1606.06650); the choice of instance norm, leaky ReLU and strided
convolutions follows nnU-Net (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainable.core.brats import MODALITIES, REGIONS
from trainable.core.config import TrainConfig
from trainable.core.parallel import run_parallel
from trainable.model.fused_kernels import has_fused_kernels

LEAKY_RELU_SLOPE = 0.01  # of leaky ReLU
MAX_HEADS = 4  # below an eighth of the resolution a target has too few voxels of a tumour


def norm_act(x: Tensor, norm: nn.InstanceNorm3d, skip: Tensor | None = None, *, fused: bool = False) -> Tensor:
    """Return leaky_relu(norm(x) [+ skip]), (N, C, D, H, W) -> the same shape. fused: on a GPU, by Triton kernels."""
    if fused and x.is_cuda:
        from trainable.model.kernels.norm_act import NormAct

        z: Tensor = NormAct.apply(x, norm.weight, norm.bias, skip, norm.eps, LEAKY_RELU_SLOPE)
        return z
    y = norm(x)
    return F.leaky_relu(y if skip is None else y + skip, LEAKY_RELU_SLOPE, inplace=True)


def join(x: Tensor, skip: Tensor, *, fused: bool = False) -> Tensor:
    """Concatenate (N, A, D, H, W) and (N, B, D, H, W) to (N, A + B, D, H, W). fused: on a GPU, by a Triton kernel."""
    if fused and x.is_cuda:
        from trainable.model.kernels.join import Join

        y: Tensor = Join.apply(x, skip)
        return y
    return torch.cat([x, skip], dim=1)


def head(x: Tensor, conv: nn.Module, *, fused: bool = False, reuse_input_memory: bool = False) -> Tensor:
    """Return the 1x1x1 convolution (N, C, D, H, W) -> (N, 3, D, H, W).

    Args:
        fused: on a GPU, by a Triton kernel.
        reuse_input_memory: nothing else reads x, now or for its gradient, so the gradient of x may overwrite x.
    """
    if fused and x.is_cuda:
        from trainable.model.kernels.head import Head

        y: Tensor = Head.apply(x, conv.weight, conv.bias, reuse_input_memory)
        return y
    z: Tensor = conv(x)
    return z


class Conv3d(nn.Conv3d):
    """nn.Conv3d without torch's initial weights, which draw_weights would overwrite."""

    def reset_parameters(self) -> None:
        """Leave the weights uninitialised."""


class ConvTranspose3d(nn.ConvTranspose3d):
    """nn.ConvTranspose3d without torch's initial weights, which draw_weights would overwrite."""

    def reset_parameters(self) -> None:
        """Leave the weights uninitialised."""


def draw_weights(network: nn.Module) -> None:
    """Draw the weights of all Conv3d and ConvTranspose3d: Kaiming normal for leaky ReLU (He et al. 2015), biases zero.

    Each convolution has its own generator, seeded by torch's global one, so that all cores can draw at once. On the
    meta device, which has shapes but no values, nothing is drawn: importing what torch needs for that takes seconds.
    """

    def draw(seeded: tuple[Conv3d | ConvTranspose3d, int]) -> None:
        convolution, seed = seeded
        nn.init.kaiming_normal_(convolution.weight, a=LEAKY_RELU_SLOPE, generator=torch.Generator().manual_seed(seed))
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)

    convolutions = [module for module in network.modules() if isinstance(module, Conv3d | ConvTranspose3d)]
    if not convolutions[0].weight.is_meta:
        seeds = torch.randint(2**63 - 1, (len(convolutions),)).tolist()
        run_parallel(draw, list(zip(convolutions, seeds, strict=True)), threads=True)


class ConvBlock(nn.Module):
    """Two 3x3x3 convolutions, each followed by instance norm and leaky ReLU.

    (N, in_channels, D, H, W) -> (N, out_channels, D/stride, H/stride, W/stride). These convolutions have no bias, since
    the norm would remove it.

    Args:
        stride: of the first convolution.
        residual: add the input before the second leaky ReLU, through a 1x1x1 convolution if its shape differs.
        dropout: probability of dropping a channel after the first leaky ReLU.
        fused: on a GPU, use the Triton kernels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, residual: bool, dropout: float, fused: bool = False
    ) -> None:
        super().__init__()
        self.fused = fused
        self.conv1 = Conv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.InstanceNorm3d(out_channels, affine=True)
        self.conv2 = Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.InstanceNorm3d(out_channels, affine=True)
        self.dropout = nn.Dropout3d(dropout)
        self.skip: nn.Module | None = None
        if residual:
            same_shape = stride == 1 and in_channels == out_channels
            self.skip = nn.Identity() if same_shape else Conv3d(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(norm_act(self.conv1(x), self.norm1, fused=self.fused))
        skip = None if self.skip is None else self.skip(x)
        return norm_act(self.conv2(y), self.norm2, skip, fused=self.fused)


class UNet3D(nn.Module):
    """A 3D U-Net: logits of the regions from the four modalities.

    Args:
        depth: number of resolutions; each spatial size must be a multiple of `stride` = 2^(depth-1).
        base_channels: channels at full resolution, doubled at each lower one up to max_channels.
        residual: residual instead of plain blocks.
        deep_supervision: in training, return logits of the highest depth - 1 resolutions, at most four.
        dropout: probability of dropping a channel, in every block.
        fused: on a GPU, use the Triton kernels.
        gradient_checkpointing: in training, keep only each block's input and recompute the rest for the gradient
            (Chen et al. 2016, https://arxiv.org/abs/1604.06174). The result is the same.
    """

    def __init__(
        self,
        depth: int,
        base_channels: int,
        max_channels: int,
        *,
        residual: bool = False,
        deep_supervision: bool = False,
        dropout: float = 0.0,
        fused: bool = False,
        gradient_checkpointing: bool = False,
        in_channels: int = len(MODALITIES),
        out_channels: int = len(REGIONS),
    ) -> None:
        super().__init__()
        channels = [min(base_channels * 2**level, max_channels) for level in range(depth)]
        options: dict[str, Any] = {"residual": residual, "dropout": dropout, "fused": fused}
        self.fused, self.residual = fused, residual
        self.stride = 2 ** (depth - 1)
        self.gradient_checkpointing = gradient_checkpointing
        self.encoder = nn.ModuleList(
            ConvBlock(before, after, stride=1 if level == 0 else 2, **options)
            for level, (before, after) in enumerate(zip([in_channels, *channels], channels, strict=False))
        )
        levels = range(depth - 1)  # of the decoder, from full resolution down
        self.up = nn.ModuleList(ConvTranspose3d(channels[i + 1], channels[i], 2, stride=2, bias=False) for i in levels)
        self.decoder = nn.ModuleList(ConvBlock(2 * channels[i], channels[i], stride=1, **options) for i in levels)
        heads = min(MAX_HEADS, depth - 1) if deep_supervision else 1
        self.heads = nn.ModuleList(Conv3d(channels[i], out_channels, 1) for i in range(heads))
        draw_weights(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a list of logits, (N, 4, D, H, W) -> [(N, 3, D, H, W)].

        In training with deep supervision the logits of the lower heads follow, each at half the resolution of the one
        before.

        Raises:
            ValueError: if a spatial size is not a multiple of `stride`.
        """
        if any(size % self.stride for size in x.shape[2:]):
            raise ValueError(f"input of size {tuple(x.shape[2:])}; each must be a multiple of {self.stride}")
        skips = []
        for block in self.encoder:
            x = self._run(block, x)
            skips.append(x)
        logits: list[Tensor] = []
        for level in reversed(range(len(self.decoder))):
            x = self._run(partial(self._decode, level), x, skips[level])
            if level == 0 or (self.training and level < len(self.heads)):
                # a residual block reads its output again for its gradient
                reuse = level == 0 and not self.residual
                logits.insert(0, head(x, self.heads[level], fused=self.fused, reuse_input_memory=reuse))
        return logits

    def _decode(self, level: int, x: Tensor, skip: Tensor) -> Tensor:
        """Run one level of the decoder: (N, C', D/2, H/2, W/2) and its skip (N, C, D, H, W) -> (N, C, D, H, W)."""
        y: Tensor = self.decoder[level](join(self.up[level](x), skip, fused=self.fused))
        return y

    def _run(self, block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Run a block; with gradient checkpointing only its input and output are kept."""
        if self.gradient_checkpointing and self.training:
            y: Tensor = checkpoint(block, *inputs, use_reentrant=False)
            return y
        return block(*inputs)


def count_parameters(config: TrainConfig) -> int:
    """Return the number of parameters of a config's network, without allocating it."""
    on_cpu = config.model_copy(update={"device": "cpu"})  # no GPU is opened for it
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(on_cpu).parameters())


def build_network(config: TrainConfig) -> UNet3D:
    """Build the network of a config on torch's default device, usually the CPU; see `draw_weights` for its weights."""
    return UNet3D(
        config.depth,
        config.base_channels,
        config.max_channels,
        residual=config.residual,
        deep_supervision=config.deep_supervision,
        dropout=config.dropout,
        fused=has_fused_kernels(config),
        gradient_checkpointing=config.gradient_checkpointing,
    )
