"""Whether Ray's autoscaler adds nodes to the connected cluster, which Ray has no documented way to tell.

As in ray_compat.py each private name has a fallback; tests/test_autoscaling.py asks a cluster that has an autoscaler
and one that has none.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import ray

from tune.driver.cluster import ray_compat

OWN_TYPE = re.compile("node_[0-9a-f]{56}")  # of a node, with its id


def autoscales() -> bool:
    """Return whether nodes are added to the connected cluster as they are asked for; False if Ray does not tell.

    Ray's autoscaler notes of which type of its file each node is; without one each node has a separate type, OWN_TYPE.
    """
    if not ray.is_initialized() or ray_compat.started_here():
        return False
    types = {*_types_of_nodes(), *_types_of_nodes_v2()}
    return any(name and not OWN_TYPE.fullmatch(name) for name in types)


def _types_of_nodes() -> Iterator[str]:
    """Yield the types of nodes that the autoscaler, or what Ray runs in its place, has noted."""
    key = getattr(getattr(getattr(ray, "_private", None), "ray_constants", None), "DEBUG_AUTOSCALING_STATUS", None)
    get = getattr(importlib.import_module("ray.experimental.internal_kv"), "_internal_kv_get", None)
    noted = get(key) if key and get else None
    report: dict[str, Any] = json.loads(noted).get("autoscaler_report", {}) if noted else {}
    yield from report.get("active_nodes") or {}
    yield from (report.get("node_type_mapping") or {}).values()


def _types_of_nodes_v2() -> Iterator[str]:
    """Yield the same of Ray's newer autoscaler, if that is the cluster's; the nodes themselves tell of their types."""
    is_v2 = getattr(importlib.import_module("ray.autoscaler.v2.utils"), "is_autoscaler_v2", None)
    ask = getattr(importlib.import_module("ray.autoscaler.v2.sdk"), "get_cluster_status", None)
    status = ask(ray.get_runtime_context().gcs_address) if ask and is_v2 and is_v2() else None
    for node in [*getattr(status, "active_nodes", ()), *getattr(status, "idle_nodes", ())]:
        yield node.ray_node_type_name
