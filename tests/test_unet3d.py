"""The network: shapes, heads, size, and that each of its options changes what it computes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from trainable.core.config import TrainConfig
from trainable.model.unet3d import ConvBlock, UNet3D, build_network, count_parameters, draw_weights


def small(depth: int = 4, **options: Any) -> UNet3D:
    torch.manual_seed(0)
    return UNet3D(depth, 4, 16, **options)


def block_of(*channels: int, **options: Any) -> ConvBlock:
    block = ConvBlock(*channels, **{"residual": False, "dropout": 0, **options})
    draw_weights(block)
    return block


def size_of(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


INPUT = torch.randn(2, 4, 16, 24, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_one_head_has_the_input_s_size_and_a_channel_a_region(depth: int) -> None:
    network = small(depth)
    for mode in (True, False):
        assert [tuple(head.shape) for head in network.train(mode)(INPUT)] == [(2, 3, 16, 24, 8)]


def test_deep_supervision_halves_each_head_in_training_and_gives_one_in_evaluation() -> None:
    network = small(4, deep_supervision=True)
    shapes = [tuple(head.shape[2:]) for head in network.train()(INPUT)]
    assert shapes == [(16, 24, 8), (8, 12, 4), (4, 6, 2)]
    assert [tuple(head.shape[2:]) for head in network.eval()(INPUT)] == [(16, 24, 8)]


@pytest.mark.parametrize(("depth", "heads"), [(2, 1), (4, 3), (5, 4), (6, 4)])
def test_deep_supervision_has_at_most_four_heads(depth: int, heads: int) -> None:
    network = UNet3D(depth, 2, 4, deep_supervision=True)
    assert len(network.train()(torch.randn(1, 4, 32, 32, 64))) == heads


def test_every_head_teaches_the_network() -> None:
    network = small(4, deep_supervision=True).train()
    sum(head.square().mean() for head in network(INPUT)).backward()  # type: ignore[union-attr]
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("size", [(16, 24, 4), (17, 24, 8), (16, 20, 8)])
def test_size_that_is_no_multiple_of_the_stride_is_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="each must be a multiple of 8") as caught:
        small(4)(torch.zeros(1, 4, *size))
    assert str(size) in str(caught.value)


def test_default_network_has_31_million_parameters() -> None:
    # Channels 32 to 320; a block has two 3x3x3 convolutions without bias and two norms with a scale and a shift.
    def block(before: int, after: int) -> int:
        return 27 * before * after + 27 * after * after + 2 * (2 * after)

    channels = [4, 32, 64, 128, 256, 320, 320]
    encoder = sum(block(a, b) for a, b in pairwise(channels))
    decoder = sum(block(2 * a, a) + 8 * b * a for a, b in pairwise(channels[1:]))
    assert count_parameters(TrainConfig()) == encoder + decoder + 3 * (32 + 1) == 31_192_035


def test_channels_double_up_to_the_limit() -> None:
    network = UNet3D(5, 3, 10)
    assert [block.conv2.out_channels for block in network.encoder] == [3, 6, 10, 10, 10]  # type: ignore[union-attr]


def test_config_s_options_reach_the_network() -> None:
    config = TrainConfig(
        depth=3, base_channels=4, max_channels=6, residual=True, deep_supervision=True, dropout=0.25,
        target_shape=(16, 16, 16), gradient_checkpointing=True,
    )  # fmt: skip
    same = UNet3D(3, 4, 6, residual=True, deep_supervision=True, dropout=0.25)
    built = build_network(config)
    assert {n: p.shape for n, p in built.state_dict().items()} == {n: p.shape for n, p in same.state_dict().items()}
    assert built.encoder[0].dropout.p == 0.25  # type: ignore[union-attr]
    assert built.gradient_checkpointing


def test_residual_block_adds_its_input() -> None:
    # Without the convolutions' part only the input is left, then the activation.
    x = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for residual, expected in [(True, torch.nn.functional.leaky_relu(x, 0.01)), (False, torch.zeros_like(x))]:
        block = block_of(4, 4, stride=1, residual=residual)
        torch.nn.init.zeros_(block.norm2.weight)
        torch.testing.assert_close(block(x), expected)


def test_residual_block_projects_its_input_if_the_shape_changes() -> None:
    x = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    block = block_of(2, 5, stride=2, residual=True)
    torch.nn.init.zeros_(block.norm2.weight)
    assert isinstance(block.skip, torch.nn.Conv3d)
    picked = torch.einsum("oi,nidhw->nodhw", block.skip.weight[:, :, 0, 0, 0], x[:, :, ::2, ::2, ::2])
    expected = torch.nn.functional.leaky_relu(picked + block.skip.bias[:, None, None, None], 0.01)
    torch.testing.assert_close(block(x), expected)


def test_dropout_acts_in_training_only_and_on_whole_channels() -> None:
    network = small(3, dropout=0.5)
    network.train()
    assert not torch.equal(network(INPUT)[0], network(INPUT)[0])
    network.eval()
    assert torch.equal(network(INPUT)[0], network(INPUT)[0])
    assert torch.equal(network(INPUT)[0], small(3).eval()(INPUT)[0])
    block = block_of(4, 64, stride=1, dropout=0.5)
    dropped: list[torch.Tensor] = []
    block.dropout.register_forward_hook(lambda module, given, output: dropped.append(output))
    block(INPUT)
    zeros = (dropped[0] == 0).flatten(2).float().mean(2)  # share of a channel's voxels
    assert set(zeros.unique().tolist()) == {0.0, 1.0}
    assert zeros.mean().item() == pytest.approx(0.5, abs=0.2)


def gradients(network: UNet3D) -> list[torch.Tensor]:
    torch.manual_seed(5)  # of the dropout
    sum(head.square().mean() for head in network.train()(INPUT)).backward()  # type: ignore[union-attr]
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def test_gradient_checkpointing_gives_the_same_gradients_also_with_dropout() -> None:
    options = {"deep_supervision": True, "residual": True, "dropout": 0.3}
    plain, saving = (gradients(small(4, **options, gradient_checkpointing=on)) for on in (False, True))
    assert len(plain) == len(saving)
    assert all(torch.equal(a, b) for a, b in zip(plain, saving, strict=True))


def test_gradient_checkpointing_keeps_less_for_the_backward_pass_only_in_training() -> None:
    def kept(network: UNet3D) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(INPUT)
        return sum(sizes.values())

    plain, saving = small(4), small(4, gradient_checkpointing=True)
    assert kept(saving.train()) < 0.5 * kept(plain.train())
    assert kept(saving.eval()) == kept(plain.eval())


def test_output_does_not_depend_on_a_modality_s_scale_through_the_norm() -> None:
    block = block_of(4, 4, stride=1)
    torch.testing.assert_close(block(INPUT), block(10 * INPUT), atol=1e-3, rtol=1e-3)


def test_same_seed_gives_same_weights() -> None:
    first, second = small().state_dict(), small().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(1)
    assert not torch.equal(UNet3D(4, 4, 16).state_dict()["encoder.0.conv1.weight"], first["encoder.0.conv1.weight"])


def test_weights_do_not_depend_on_how_many_threads_draw_them(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [small().state_dict() for _ in range(5)]
    monkeypatch.setattr("trainable.core.parallel.cores", lambda: 1)
    one = small().state_dict()
    assert all(torch.equal(each[name], one[name]) for each in many for name in one)


def test_no_two_convolutions_start_alike() -> None:
    weights = small().state_dict()
    first, second = weights["encoder.2.conv2.weight"], weights["encoder.3.conv2.weight"]
    assert first.shape == second.shape
    assert not torch.equal(first, second)


def test_weights_start_with_kaiming_s_deviation_and_zero_bias() -> None:
    conv = UNet3D(2, 32, 64).encoder[1].conv2  # type: ignore[union-attr]
    assert conv.weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / (27 * 64)) ** 0.5, rel=0.02)
    assert not UNet3D(2, 32, 64).heads[0].bias.any()  # type: ignore[union-attr, operator]
