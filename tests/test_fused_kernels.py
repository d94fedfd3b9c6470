"""Whether the Triton kernels are used: they are tried once, and what fails is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainable.core.device import check_precision, with_usable_precision
from trainable.core.errors import InputError
from trainable.core.options import make_config
from trainable.model import fused_kernels
from trainable.model.fused_kernels import has_fused_kernels, kernels_work, triton_failure

HERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where conftest.py has Triton interpret kernels


def test_a_kernel_that_runs_and_gives_the_right_numbers_is_no_failure() -> None:
    assert triton_failure(HERE) == ""


def test_what_the_kernel_raises_and_wrong_numbers_are_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainable.model.kernels.join import Join

    def fail(*_: object) -> None:
        raise RuntimeError("first line\nfatal error: Python.h: No such file or directory\n")

    monkeypatch.setattr(Join, "apply", fail)
    expected = "Triton cannot compile or run a kernel: fatal error: Python.h: No such file or directory"
    assert triton_failure(HERE) == expected
    monkeypatch.setattr(Join, "apply", lambda a, b: torch.cat([b, a], dim=1))
    assert triton_failure(HERE) == "a Triton kernel gives wrong numbers here"


def test_without_a_compiler_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert triton_failure(HERE) == "Triton needs a C compiler; install gcc or clang, or set CC"


def test_a_failure_is_said_once_and_a_cpu_tries_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = list[torch.device]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fused_kernels, "triton_failure", lambda device: (tried.append(device), "no ptxas")[1])
    kernels_work.cache_clear()
    try:
        cpu, gpu = make_config({"device": "cpu"}), make_config({"device": "cuda"})
        plain = make_config({"device": "cuda", "fast": False})
        assert not has_fused_kernels(cpu)
        assert not has_fused_kernels(plain)
        assert tried == []
        assert not has_fused_kernels(gpu)
        assert not has_fused_kernels(gpu)
        assert tried == [torch.device("cuda")]
    finally:
        kernels_work.cache_clear()
    said = "plain PyTorch is used instead of the fused kernels, which is slower: no ptxas\n"
    assert capsys.readouterr().out == said


def test_bf16_on_a_gpu_that_only_emulates_it_is_refused_in_training_and_float32_in_prediction(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    supported = {False: False, True: True}  # by including_emulation, as on a T4
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported[including_emulation])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    bf16, fp16 = make_config({"amp": "bf16"}), make_config({"amp": "fp16"})
    with pytest.raises(InputError, match="amp is 'bf16', which Tesla T4 cannot compute; use --amp fp16 or off"):
        check_precision(bf16, gpu)
    check_precision(bf16, cpu)
    check_precision(fp16, gpu)
    assert with_usable_precision(bf16, gpu) == make_config({"amp": "off"})
    assert capsys.readouterr().out == "amp is off here: Tesla T4 cannot compute in bf16, so float32 is used\n"
    assert with_usable_precision(bf16, cpu) is bf16
    supported[False] = True
    check_precision(bf16, gpu)
    assert with_usable_precision(bf16, gpu) is bf16


TRAIN = """
import torch
from trainable.core.device import to_network_format
from trainable.core.options import make_config
from trainable.training.state import TrainingState
config = make_config({"depth": 3, "base_channels": 8, "target_shape": (32, 32, 32), "device": "cuda", "amp": "bf16"})
training = TrainingState(config)
x, y = torch.randn(2, 4, 32, 32, 32, device="cuda"), torch.rand(2, 3, 32, 32, 32, device="cuda") > 0.9
for _ in range(6):  # the last ones from a CUDA graph
    losses = training.train_step.forward_backward(to_network_format(x, config), y, 1.0)
    norm = training.train_step.update()
print(training.network.fused, bool(losses.isfinite().all()), bool(norm.isfinite()))
"""


@pytest.mark.gpu
@pytest.mark.parametrize("works", [True, False])
def test_a_training_goes_on_with_plain_pytorch_if_triton_cannot_compile(works: bool, tmp_path: Path) -> None:
    broken = {} if works else {"CC": "/bin/false"}
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, **broken, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": paths}
    code = "from trainable.core.logger import init_logger; init_logger()\n" + TRAIN
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    *said, outcome = done.stdout.splitlines()
    assert outcome == f"{works} True True"
    assert [line.split(": ")[0] for line in said] == (
        [] if works else ["plain PyTorch is used instead of the fused kernels, which is slower"]
    )
