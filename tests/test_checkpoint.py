"""Checkpoints: whole or not there, found where people point, never executed."""

from __future__ import annotations

import errno
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trainable import cli
from trainable.core.config import TrainConfig
from trainable.core.errors import InputError
from trainable.core.options import make_config, to_dict
from trainable.data.prepare import Data
from trainable.model.unet3d import UNet3D, build_network
from trainable.training.checkpoint import (
    find_checkpoint,
    load_checkpoint,
    load_latest_valid,
    load_network,
    load_pretrained,
    save_checkpoint,
)
from trainable.training.loop import fit

STATE = {"epoch": 3, "network": {"weight": torch.arange(1000.0)}, "best": 0.5, "history": [1, None, "x"]}


class MakesAFile:
    """What an attacker would pickle: reading it runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_state_comes_back(tmp_path: Path) -> None:
    save_checkpoint(STATE, tmp_path / "checkpoints" / "latest.pth")
    back = load_checkpoint(tmp_path / "checkpoints" / "latest.pth")
    assert torch.equal(back["network"]["weight"], STATE["network"]["weight"])  # type: ignore[index]
    assert [back[key] for key in ("epoch", "best", "history")] == [3, 0.5, [1, None, "x"]]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "latest.pth"
    save_checkpoint(STATE, path)
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_checkpoint({**STATE, "schedule": lambda epoch: epoch}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_new_checkpoint_is_a_new_file_so_that_readers_of_the_old_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "latest.pth"
    save_checkpoint({"epoch": 1}, path)
    with path.open("rb") as reader:
        save_checkpoint({"epoch": 2}, path)
        assert torch.load(reader, weights_only=True)["epoch"] == 1
    assert load_checkpoint(path)["epoch"] == 2


def test_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latest.pth"
    save_checkpoint(STATE, path)
    content = path.read_bytes()
    for size in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"latest\.pth: damaged or not a checkpoint "):
            load_checkpoint(path)


def test_file_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latest.pth"
    save_checkpoint(STATE, path)
    content = bytearray(path.read_bytes())
    place = content.index(torch.arange(1000.0).numpy().tobytes()) + 2000
    content[place] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"format": 1}, 2), b"PK\x03\x04"])
def test_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pth: (damaged or )?not a checkpoint"):
        load_checkpoint(path)


def test_weights_of_another_program_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    for state in ({"weight": torch.zeros(2)}, {"format": 99}, [1, 2]):
        torch.save(state, path)
        with pytest.raises(InputError, match=r"model\.pth: not a checkpoint of voxtune"):
            load_checkpoint(path)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "latest.pth"
    torch.save({"format": 1, "network": {}, "extra": MakesAFile(ran)}, path)
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        load_checkpoint(path)
    assert not ran.exists()
    torch.load(path, weights_only=False)
    assert ran.exists()  # it would have run


@pytest.mark.parametrize("name", ["latest.pth", "checkpoints/latest.pth", "best_model.pth"])
def test_checkpoint_is_found_in_its_folder_and_in_the_output_folder(tmp_path: Path, name: str) -> None:
    save_checkpoint({"epoch": 1}, tmp_path / name)
    assert find_checkpoint(tmp_path) == tmp_path / name
    assert find_checkpoint(tmp_path / name) == tmp_path / name
    assert load_checkpoint(tmp_path)["epoch"] == 1


def test_latest_is_found_before_best(tmp_path: Path) -> None:
    save_checkpoint({"epoch": 9}, tmp_path / "checkpoints" / "latest.pth")
    save_checkpoint({"epoch": 5}, tmp_path / "best_model.pth")
    assert load_checkpoint(tmp_path)["epoch"] == 9


def test_no_checkpoint_is_said_with_the_path(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(InputError, match=f"{path}: no checkpoint there"):
            load_checkpoint(path)


def test_damaged_latest_is_replaced_by_the_newest_whole_one_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    for name, epoch in [("latest.pth", 9), ("best_model.pth", 4), ("epoch_0007.pth", 7), ("epoch_0008.pth", 8)]:
        save_checkpoint({"epoch": epoch}, folder / name)
    assert load_latest_valid(tmp_path)[0] == folder / "latest.pth"
    assert capsys.readouterr().out == ""
    for name in ("latest.pth", "epoch_0008.pth"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-40])
    for given in (tmp_path, folder, folder / "latest.pth"):
        source, state = load_latest_valid(given)
        assert (source, state["epoch"]) == (folder / "epoch_0007.pth", 7)
        said = capsys.readouterr().out
        assert "latest.pth: damaged" in said
        assert f"going on from {folder / 'epoch_0007.pth'}, epoch 7" in said


def test_damaged_file_that_was_named_is_not_replaced(tmp_path: Path) -> None:
    save_checkpoint({"epoch": 1}, tmp_path / "latest.pth")
    (tmp_path / "epoch_0002.pth").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"epoch_0002\.pth: damaged"):
        load_latest_valid(tmp_path / "epoch_0002.pth")
    (tmp_path / "latest.pth").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"latest\.pth: damaged"):
        load_latest_valid(tmp_path)


def test_full_disk_is_an_error_that_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    """The limit on a file's size stands in for the disk: the same place in torch's writer fails."""
    path = tmp_path / "latest.pth"
    save_checkpoint({"epoch": 1}, path)
    script = (
        "import resource, signal, torch; from pathlib import Path\n"
        "from trainable.training.checkpoint import save_checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        f"try: save_checkpoint({{'epoch': 2, 'network': torch.zeros(10**6)}}, Path({str(path)!r}))\n"
        "except OSError as error: print(error.errno, error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == f"{errno.EFBIG} [Errno {errno.EFBIG}] File too large: '{path}'\n", done.stderr
    assert load_checkpoint(path)["epoch"] == 1
    assert list(tmp_path.iterdir()) == [path]


def network(seed: int = 0, base_channels: int = 4, out_channels: int = 3) -> UNet3D:
    torch.manual_seed(seed)
    return UNet3D(3, base_channels, 16, out_channels=out_channels)


def test_network_comes_back_ready_to_predict(tmp_path: Path) -> None:
    config = TrainConfig(depth=3, base_channels=4, target_shape=(16, 16, 16), dropout=0.5, lr=1e-5)
    given = build_network(config)
    save_checkpoint({"config": to_dict(config), "network": given.state_dict()}, tmp_path / "best_model.pth")
    back, same_config = load_network(tmp_path, torch.device("cpu"))
    assert same_config == config
    x = torch.randn(1, 4, 8, 8, 8)
    assert torch.equal(back(x)[0], given.eval()(x)[0])


def test_all_weights_are_taken_from_a_like_network(tmp_path: Path) -> None:
    save_checkpoint({"network": network(1).state_dict()}, tmp_path / "a.pth")
    own = network(2)
    assert load_pretrained(own, tmp_path / "a.pth") == f"pretrained: 100.0% of the weights from {tmp_path / 'a.pth'}"
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in network(1).state_dict().items())


def test_weights_that_match_are_taken_and_the_others_named(tmp_path: Path) -> None:
    given, own, before = network(1, out_channels=5), network(2), network(2).state_dict()
    state = given.state_dict() | {"extra.weight": torch.zeros(3)}
    del state["encoder.0.norm1.bias"]
    save_checkpoint({"network": state}, tmp_path / "a.pth")
    said = load_pretrained(own, tmp_path / "a.pth")
    for name, tensor in own.state_dict().items():
        kept = name.startswith("heads.") or name == "encoder.0.norm1.bias"
        assert torch.equal(tensor, before[name] if kept else state[name]), name
    assert "pretrained: 99." in said
    assert "not loaded: extra.weight: not in this network" in said
    assert f"not loaded: encoder.0.norm1.bias: not in {tmp_path / 'a.pth'}" in said
    assert "not loaded: heads.0.weight: (5, 4, 1, 1, 1) there, (3, 4, 1, 1, 1) here" in said


def test_too_few_matching_weights_are_refused_and_none_taken(tmp_path: Path) -> None:
    save_checkpoint({"network": network(1, base_channels=8).state_dict()}, tmp_path / "a.pth")
    own, before = network(2), network(2).state_dict()
    with pytest.raises(InputError, match=r"only \d+% of the network's weights match, less than 50%; .*same depth"):
        load_pretrained(own, tmp_path / "a.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())


def test_weights_are_taken_from_the_best_model_of_a_folder_and_from_a_bare_state_dict(tmp_path: Path) -> None:
    for name, seed in [("latest.pth", 1), ("best_model.pth", 3)]:
        save_checkpoint({"network": network(seed).state_dict()}, tmp_path / "checkpoints" / name)
    torch.save(network(4).state_dict(), tmp_path / "bare.pth")
    for path, seed in [(tmp_path, 3), (tmp_path / "bare.pth", 4)]:
        own = network(2)
        assert load_pretrained(own, path).startswith("pretrained: 100.0% of the weights")
        assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in network(seed).state_dict().items())


@pytest.mark.parametrize("key", ["network", "state_dict", "model_state_dict"])
def test_weights_are_found_under_the_usual_names(tmp_path: Path, key: str) -> None:
    torch.save({key: network(4).state_dict(), "epoch": 3}, tmp_path / "a.pth")
    assert load_pretrained(network(2), tmp_path / "a.pth").startswith("pretrained: 100.0%")


@pytest.mark.parametrize("content", [{"format": 2, "network": {}}, {"a": 1}, [torch.zeros(1)], torch.zeros(3)])
def test_file_without_weights_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a\.pth: contains no weights; expected a checkpoint of voxtune or a state"):
        load_pretrained(network(), tmp_path / "a.pth")


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_first_convolution_for_other_modalities_is_adapted_and_keeps_its_scale(tmp_path: Path, channels: int) -> None:
    torch.manual_seed(1)
    given = UNet3D(3, 8, 16, residual=True, in_channels=channels)
    torch.save(given.state_dict(), tmp_path / "a.pth")
    torch.manual_seed(2)
    own = UNet3D(3, 8, 16, residual=True)
    said = load_pretrained(own, tmp_path / "a.pth")
    assert f"adapted: encoder.0.conv1.weight: {channels} input channels there, 4 here" in said
    assert f"adapted: encoder.0.skip.weight: {channels} input channels there, 4 here" in said
    image = torch.randn(1, 1, 8, 8, 8)  # the same in every modality: the answer is the same
    expected = given.eval()(image.expand(-1, channels, -1, -1, -1))[0]
    torch.testing.assert_close(own.eval()(image.expand(-1, 4, -1, -1, -1))[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_checkpoint_with_two_voxels_at_the_lowest_resolution_predicts_and_goes_on(
    prepared: Data, phantoms: Path, tmp_path: Path
) -> None:
    """A new training of such a network is refused; older code took them."""
    options = {"depth": 3, "base_channels": 4, "target_shape": (4, 8, 8), "device": "cpu", "num_workers": 0}
    where = {"data_dir": phantoms, "cache_dir": prepared.folder, "output_dir": tmp_path / "out"}
    fit(make_config({**options, **where, "epochs": 1, "patches_per_epoch": 1}), prepared)
    file = tmp_path / "out" / "checkpoints" / "latest.pth"
    state = load_checkpoint(file)
    state["config"]["target_shape"] = [4, 4, 8]
    save_checkpoint(state, file)
    assert load_network(file, torch.device("cpu"))[1].target_shape == (4, 4, 8)
    assert cli.main(["--resume", str(file), "--epochs", "2"]) == 0
    assert load_checkpoint(file)["epoch"] == 2
    with pytest.raises(InputError, match="leave two voxels at the lowest resolution"):
        make_config({**options, "target_shape": (4, 4, 8)})
