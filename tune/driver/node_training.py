"""One training on several nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from trainable.core.config import TrainConfig
from trainable.data.prepare import Data
from trainable.train_processes import train_in_processes
from tune.driver.cluster.connection import Cluster
from tune.driver.launch.node_check import check_nodes
from tune.driver.measurement.trial_gpus import cluster_gpus
from tune.driver.processes.node_ranks import group_on_nodes, node_need, refuse_too_few_nodes
from tune.run.results import Run


class NodeTrainer:
    """Trains on several nodes of the connected cluster, with one process per GPU, or on a cluster without GPUs on CPUs.

    nodes: how many. processes: on each of them. cuda: they train on GPUs. threads: of the CPU, for each process.
    """

    def __init__(self, nodes: int, processes: int, *, cuda: bool, threads: int) -> None:
        self.count, self.cuda = nodes * processes, cuda
        self.make_group = partial(group_on_nodes, nodes, processes, cuda=cuda, threads=threads)

    def train(self, config: TrainConfig, data: Data, *, tests_follow: bool) -> None:
        """Train as train_in_processes does, and raise as that."""
        if not self.cuda:
            config = config.model_copy(update={"device": "cpu"})
        train_in_processes(config, data, self.count, tests_follow=tests_follow, make_group=self.make_group)


@contextmanager
def checked_nodes(run: Run, device: str, gpus: int, nodes: int, address: str | None) -> Iterator[NodeTrainer]:
    """Connect to the Ray cluster at an address, check its nodes, and yield what trains there until this context ends.

    device: as the config of the training has it. gpus: on each of the nodes, or processes if there are no GPUs.

    Raises:
        InputError: if too few nodes have that many GPUs, and CPU cores for them, or one does not see RUN or the cases.
    """
    with Cluster(address) as cluster:
        cluster.wait()
        cuda, cpu = device != "cpu" and cluster_gpus() > 0, run.config.resources.cpu
        refuse_too_few_nodes(nodes, node_need(gpus, cuda=cuda, threads=cpu))
        needs = {"gpu": gpus if cuda else 0, "cpu": gpus * cpu, "nodes": nodes}
        config = run.config.model_copy(update={"resources": run.config.resources.model_copy(update=needs)})
        check_nodes(config, run.folder, None, address)
        yield NodeTrainer(nodes, gpus, cuda=cuda, threads=cpu)
