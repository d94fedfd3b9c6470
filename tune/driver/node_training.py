"""One training on several nodes of a Ray cluster."""

from __future__ import annotations

from functools import partial

from trainable.core.config import TrainConfig
from trainable.data.prepare import Data
from trainable.train_processes import train_in_processes
from tune.driver.cluster import Cluster
from tune.driver.node_check import check_nodes
from tune.driver.node_ranks import group_on_nodes, node_need, refuse_too_few_nodes
from tune.driver.trial_gpus import cluster_gpus
from tune.run.results import Run


def train_on_nodes(run: Run, config: TrainConfig, data: Data, gpus: int, nodes: int, address: str | None) -> None:
    """Train on several nodes of the Ray cluster at an address, which see the same folders, with `gpus` GPUs on each.

    Raises:
        InputError: as train_in_processes; or if too few nodes have that many GPUs, or one does not see the folders.
    """
    with Cluster(address) as cluster:
        cluster.wait()
        cuda = config.device != "cpu" and cluster_gpus() > 0
        check_nodes(run.config.with_gpu(gpus if cuda else 0), run.folder, None, address)
        if not cuda:
            config = config.model_copy(update={"device": "cpu"})
        threads = run.config.resources.cpu
        refuse_too_few_nodes(nodes, node_need(gpus, cuda=cuda, threads=threads))
        make_group = partial(group_on_nodes, nodes, gpus, cuda=cuda, threads=threads)
        train_in_processes(config, data, gpus * nodes, tests_follow=bool(data.split.test), make_group=make_group)
