"""What the tests on several machines have in common: their marks, and a folder that all machines see."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import SPACE
from node_network import can_make_machines

from trainable.data.phantom import write_phantoms

CASES = [f"Phantom_{number:05d}" for number in range(6)]
NEEDS_MACHINES = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_machines(), reason="needs root and namespaces of network, mounts and host names"),
]


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A folder that all machines see, with CASES in `data` and space.yaml; a socket in it has a short path."""
    with tempfile.TemporaryDirectory(prefix="vn", dir="/tmp") as name:
        folder = Path(name)
        write_phantoms(folder / "data", cases=len(CASES), shape=(48, 48, 40), workers=1)
        (folder / "space.yaml").write_text(SPACE)
        yield folder
