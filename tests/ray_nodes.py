"""Ray clusters of several nodes on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

OPEN = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}  # in the environment of what uses such a cluster


@contextmanager
def cluster_of(*cores: int) -> Iterator[Any]:
    """A cluster of a head that runs no trials and a node for each of these numbers of cores; others can join it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OPEN.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
        try:
            for count in cores:
                cluster.add_node(num_cpus=count)
            yield cluster
        finally:
            cluster.shutdown()
