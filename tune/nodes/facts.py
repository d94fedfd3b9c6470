"""What a node tells of itself. It runs there, before it is known what is installed: the standard library must do."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from tune.nodes.folders import FolderFacts, FolderMarks, disk_of, look_at

NVIDIA_SMI = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
NVIDIA_SMI_TIMEOUT = 20  # seconds
RAY_DISK, TEMP_DISK = "Ray's disk", "TMPDIR's disk"  # roles of a node's own disks
TORCH_TIMEOUT = 100  # seconds to import torch, from a network's disk the first time, and to reach a GPU
# Prints how many GPUs torch reaches, or why none.
TORCH_GPUS = """
import torch
if torch.cuda.is_available():  # which takes no memory of a GPU
    print(torch.cuda.device_count())
else:
    try:
        torch.cuda.init()
        print("0")
    except Exception as error:
        print(str(error).splitlines()[0])
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, and its memory in bytes."""

    name: str
    memory: int


@dataclass(frozen=True)
class NodeFacts:
    """What a process on a node finds there.

    python: version. versions: of packages, "" for one that is missing. code: hash of the code of voxtune that runs
    there. gpus, gpu_driver: as nvidia-smi tells; () and "" without it. torch_gpus: how many torch reaches; None if that
    was not tried. torch_error: why it reaches none, or "". folders: by role. disks: folders that are the node's own, by
    role. shared_memory: bytes of /dev/shm. open_files: how many a process may open, its hard limit.
    """

    python: str
    versions: dict[str, str]
    code: str
    gpus: tuple[Gpu, ...] = ()
    gpu_driver: str = ""
    torch_gpus: int | None = None
    torch_error: str = ""
    folders: dict[str, FolderFacts] = field(default_factory=dict)
    disks: dict[str, FolderFacts] = field(default_factory=dict)
    shared_memory: int = 0
    open_files: int = 0


class NodeWitness:
    """Tells what this machine has; a Ray actor, one on each node."""

    def tell(
        self, node: str, packages: Sequence[str], folders: Mapping[str, FolderMarks], ray_folder: str, use_gpus: bool
    ) -> NodeFacts:
        """Return the facts of this machine.

        Args:
            node: id of the node.
            packages: whose versions are wanted.
            folders: to look at, by role.
            ray_folder: in which Ray keeps its sockets and logs here.
            use_gpus: try whether torch reaches GPUs, which takes seconds.
        """
        gpus, driver = list_gpus()
        reached, error = reach_gpus() if use_gpus else (None, "")
        return NodeFacts(
            python=platform.python_version(),
            versions=versions_of(packages),
            code=code_digest(),
            gpus=gpus,
            gpu_driver=driver,
            torch_gpus=reached,
            torch_error=error,
            folders={role: look_at(marks, node) for role, marks in folders.items()},
            disks={RAY_DISK: disk_of(ray_folder), TEMP_DISK: disk_of(tempfile.gettempdir())},
            shared_memory=disk_of("/dev/shm").total or 0,
            open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        )

    def now(self) -> float:
        """Return this machine's time in seconds since 1970 (UTC)."""
        return time.time()


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Return the version of each package that is installed here, "" for one that is missing."""
    return {name: torch_version() if name == "torch" else installed_version(name) for name in packages}


def required_packages() -> list[str]:
    """Return the packages that voxtune as it is installed here requires; torch and Ray at least."""
    try:
        required = metadata.requires("voxtune") or []
    except metadata.PackageNotFoundError:
        required = []
    names = [re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line]
    return [*names, *({"torch", "ray"} - set(names))]


def installed_version(package: str) -> str:
    """Return the version of an installed package; "" if it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def torch_version() -> str:
    """Return the version of the torch that `import torch` would find, without importing it; "" if there is none."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return installed_version("torch")
    found = re.search(r"""^__version__ = ["'](.+)["']$""", text, re.MULTILINE)
    return found[1] if found else installed_version("torch")


def code_digest() -> str:
    """Return 12 hex digits of a hash of the Python files of tune and trainable that this process imports."""
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    for name in ("trainable", "tune"):
        spec = importlib.util.find_spec(name)
        folder = root / name if spec is None or spec.origin is None else Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{name}/{path.relative_to(folder)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def list_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs and the version of their driver as nvidia-smi tells; none without it."""
    try:
        done = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, check=True, timeout=NVIDIA_SMI_TIMEOUT)
    except (OSError, subprocess.SubprocessError):
        return (), ""
    return read_gpus(done.stdout)


def read_gpus(listing: str) -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs and the driver's version in a listing of NVIDIA_SMI: a line "name, MiB, version" per GPU."""
    rows = [[cell.strip() for cell in line.rsplit(",", 2)] for line in listing.splitlines()]
    rows = [row for row in rows if len(row) == 3]
    gpus = tuple(Gpu(name, int(size) * 2**20 if size.isdecimal() else 0) for name, size, _ in rows)
    return gpus, rows[0][2] if rows else ""


def reach_gpus() -> tuple[int, str]:
    """Return how many GPUs torch reaches in a process of its own, and why none: "" if it reaches one."""
    # Ray hides the GPUs from a process that has reserved none.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", TORCH_GPUS]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=TORCH_TIMEOUT, env=environment
        )
        last = done.stdout.strip().splitlines()[-1]
    except subprocess.CalledProcessError as error:
        return 0, (error.stderr.strip().splitlines() or ["torch cannot be imported"])[-1]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return 0, str(error)
    return (int(last), "") if last.isdecimal() else (0, last)
