"""What is wrong with a node: one small function per row of the table that `voxtune doctor` shows.

A check gets a node and what the driver has, and returns a Cell; None if the row does not apply to the node. To add one
is to write it and to name it in CHECKS. Those of folders are in folder_checks.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from trainable.core.counted import counted
from tune.nodes.cells import Cell, Check, Level, Node, Reference
from tune.nodes.facts import RAY_DISK, TEMP_DISK, NodeFacts
from tune.nodes.folder_checks import cache, folder, locks, room
from tune.run.retention import format_bytes

FULLEST = 0.95  # share of a disk in use, above which Ray starts no more work on the node that has its folder there
MIN_SHARED_MEMORY = 2**30  # bytes; Docker gives 64 MiB, with which Ray keeps its objects on the disk
MIN_OPEN_FILES = 8192  # Ray itself asks for 65,536, and has trouble below this
MAX_CLOCK_DIFFERENCE = 5.0  # seconds


def resources(node: Node, facts: NodeFacts, here: Reference) -> Cell:
    """Return what Ray may give to trials there."""
    cpus, gpus = (node.resources.get(kind, 0) for kind in ("CPU", "GPU"))
    return Cell(f"{cpus:g} CPU, {gpus:g} GPU")


def python(node: Node, facts: NodeFacts, here: Reference) -> Cell:
    """Check the version of Python: classes and functions go between processes as bytes of its own kind."""
    if facts.python == here.python:
        return Cell(facts.python)
    same = facts.python.split(".")[:2] == here.python.split(".")[:2]
    advice = f"Python {facts.python}, the driver has {here.python}: start Ray there from an environment with that one"
    return Cell(facts.python, Level.WARNING if same else Level.WRONG, advice)


def torch(node: Node, facts: NodeFacts, here: Reference) -> Cell:
    """Check the version of torch, but for its build: a head without a GPU may have the one for CPUs."""
    version, own = facts.versions["torch"], here.versions["torch"]
    if not version:
        return Cell("missing", Level.WRONG, f"torch is missing: install torch=={public(own)} where Ray runs there")
    if public(version) == public(own):
        return Cell(version)
    advice = f"torch {version}, the driver has {own}: install torch=={public(own)} where Ray runs there"
    return Cell(version, Level.WRONG, advice)


def ray(node: Node, facts: NodeFacts, here: Reference) -> Cell:
    """Check the version of Ray."""
    version, own = facts.versions["ray"], here.versions["ray"]
    if version == own:
        return Cell(version)
    return Cell(version, Level.WRONG, f"Ray {version}, the driver has {own}: install ray=={own} there")


def voxtune(node: Node, facts: NodeFacts, here: Reference) -> Cell:
    """Check that the driver's code runs there, which Ray sends to the nodes; what is installed there does not count."""
    if facts.code == here.code:
        return Cell(here.voxtune)
    advice = (
        f"its processes import other code of voxtune ({facts.code}) than the driver ({here.code}): remove voxtune from "
        "PYTHONPATH there, or install the same commit"
    )
    return Cell("other code", Level.WRONG, advice)


def packages(node: Node, facts: NodeFacts, here: Reference) -> Cell:
    """Check the other packages: none may be missing; other versions are only named."""
    own = {name: version for name, version in here.versions.items() if version and name not in ("torch", "ray")}
    missing = [name for name in own if not facts.versions[name]]
    other = [name for name, version in own.items() if facts.versions[name] not in ("", version)]
    if missing:
        install = " ".join(f"{name}=={own[name]}" for name in missing)
        advice = f"{', '.join(missing)} missing: pip install {install} where Ray runs there"
        return Cell(f"{len(missing)} missing", Level.WRONG, advice)
    if other:
        differ = ", ".join(f"{name} {facts.versions[name]} instead of {own[name]}" for name in other)
        return Cell(f"{len(other)} differ", Level.WARNING, f"{differ}: best install the driver's versions there")
    return Cell("same")


def gpus(node: Node, facts: NodeFacts, here: Reference) -> Cell:
    """Check that the GPUs that Ray gives away are there."""
    promised, names = node.resources.get("GPU", 0), Counter(gpu.name.removeprefix("NVIDIA ") for gpu in facts.gpus)
    text = ", ".join(f"{count} x {name}" for name, count in names.items()) or "none"
    if promised > max(len(facts.gpus), facts.torch_gpus or 0):  # a container may be without nvidia-smi
        advice = (
            f"Ray gives away {counted(int(promised), 'GPU')}, nvidia-smi shows {len(facts.gpus) or 'none'}, "
            f"{torch_reaches(facts)}: repair its NVIDIA driver, or start Ray there with the --num-gpus that are left"
        )
        return Cell(text, Level.WRONG, advice)
    if promised and not facts.gpus:
        return Cell(f"{facts.torch_gpus} by torch")
    if facts.gpus and not promised:
        advice = f"Ray gives away none of its {counted(len(facts.gpus), 'GPU')}: start Ray there with --num-gpus"
        return Cell(text, Level.WARNING, advice)
    return Cell(text)


def gpu_memory(node: Node, facts: NodeFacts, here: Reference) -> Cell | None:
    """Return the memory of a GPU; if they differ, of each kind."""
    sizes = sorted({gpu.memory for gpu in facts.gpus})
    return Cell(", ".join(map(format_bytes, sizes))) if sizes else None


def gpu_driver(node: Node, facts: NodeFacts, here: Reference) -> Cell | None:
    """Check that torch reaches the GPUs, which an old driver prevents."""
    if not facts.gpus:
        return None
    if facts.torch_gpus is None or facts.torch_gpus >= node.resources.get("GPU", 0):
        return Cell(facts.gpu_driver)
    advice = (
        f"{torch_reaches(facts)} of its {counted(len(facts.gpus), 'GPU')}: renew NVIDIA's driver {facts.gpu_driver} "
        "there, or install a torch that is built for it"
    )
    return Cell(f"{facts.gpu_driver}, not by torch", Level.WRONG, advice)


def torch_reaches(facts: NodeFacts) -> str:
    """Return how many GPUs torch reaches on a node, and why not more if that is known."""
    why = f" ({facts.torch_error})" if facts.torch_error else ""
    return f"torch reaches {facts.torch_gpus or 'none'}{why}"


def shared_memory(node: Node, facts: NodeFacts, here: Reference) -> Cell:
    """Check the size of /dev/shm."""
    text = format_bytes(facts.shared_memory)
    if facts.shared_memory >= MIN_SHARED_MEMORY:
        return Cell(text)
    advice = f"/dev/shm has {text}, too little for Ray and for loaders of cases: in Docker start with --shm-size=8g"
    return Cell(text, Level.WARNING, advice)


def open_files(node: Node, facts: NodeFacts, here: Reference) -> Cell:
    """Check how many files a process may open."""
    if facts.open_files < 0 or facts.open_files >= MIN_OPEN_FILES:
        return Cell("unlimited" if facts.open_files < 0 else f"{facts.open_files}")
    advice = (
        f"a process may open {facts.open_files} files: start Ray there after `ulimit -n 65536`; if that is refused, "
        "the administrator raises nofile in /etc/security/limits.conf, or LimitNOFILE of the service that starts Ray"
    )
    return Cell(f"{facts.open_files}", Level.WARNING, advice)


def clock(node: Node, facts: NodeFacts, here: Reference) -> Cell:
    """Check the node's clock against the driver's."""
    ahead, error = node.clock
    if abs(ahead) <= max(error, 0.05):
        return Cell("same")
    text = f"{ahead:+.1f} s" if abs(ahead) < 1000 else f"{ahead / 3600:+.1f} h"
    if abs(ahead) - error <= MAX_CLOCK_DIFFERENCE:
        return Cell(text)
    where = "ahead of" if ahead > 0 else "behind"
    advice = f"its clock is {text.lstrip('+-')} {where} the driver's: set it by NTP there (`timedatectl`)"
    return Cell(text, Level.WARNING, advice)


CHECKS: dict[str, Check] = {
    "resources": resources,
    "Python": python,
    "torch": torch,
    "Ray": ray,
    "voxtune": voxtune,
    "packages": packages,
    "GPUs": gpus,
    "GPU memory": gpu_memory,
    "GPU driver": gpu_driver,
    "DATA": folder("DATA", "--data", needed=False),
    "cache": cache,
    "RUN": folder("RUN", "--out"),
    "storage": folder("storage", "--storage"),
    "locks in RUN": locks,
    "free in RUN": room("RUN", "make room, or choose another --out"),
    "free in storage": room("storage", "make room, or choose another --storage"),
    "free in cache": room("cache", "make room, or choose another --cache_dir"),
    "free for Ray": room(RAY_DISK, "make room, or start Ray there with another --temp-dir", own=True, fullest=FULLEST),
    "free in TMPDIR": room(TEMP_DISK, "make room, or start Ray there with another TMPDIR", own=True),
    "/dev/shm": shared_memory,
    "open files": open_files,
    "clock": clock,
}


def public(version: str) -> str:
    """Return a version without its local part, which tells how it was built: 2.13.0 of 2.13.0+cpu."""
    return version.partition("+")[0]


def examine(node: Node, here: Reference) -> dict[str, Cell]:
    """Return what each check has found on a node, by row; of a node that did not answer only that.

    What is wrong with a node that takes no trials is a warning.
    """
    if node.facts is None:
        advice = f"does not answer: {node.silence}; see `ray status` and the logs of Ray there, or take it out"
        cells: dict[str, Cell] = {"answers": Cell("no", Level.WRONG, advice)}
    else:
        found = {title: check(node, node.facts, here) for title, check in CHECKS.items()}
        cells = {"answers": Cell("yes")} | {title: cell for title, cell in found.items() if cell is not None}
    if node.takes_trials:
        return cells
    return {
        title: replace(cell, level=Level.WARNING) if cell.level == Level.WRONG else cell
        for title, cell in cells.items()
    }
