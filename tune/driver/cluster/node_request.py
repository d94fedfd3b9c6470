"""Asks the autoscaler of the connected cluster for the nodes that all trials, or trainings, can run on at once."""

from __future__ import annotations

import time
from contextlib import suppress

import ray
from ray.autoscaler.sdk import request_resources

from tune.driver.cluster.connection import Slots

ASK_SECONDS = 5.0  # from one request to the next: Ray keeps only the last one, which may be of another program
MAX_ASKED = 1000  # slots, each of which the autoscaler looks for a place for, every 5 s


class NodeRequest:
    """A request to the autoscaler, until it is closed; nothing on a cluster without one.

    Nodes beyond what the cluster's own file allows are not added. A killed driver leaves its request, which keeps nodes
    until another one, such as that of the resumed sweep, replaces it.
    """

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.next_request = 0.0

    def ask_for(self, count: int) -> None:
        """Ask for slots for this many trials, those that run included; again each ASK_SECONDS at most."""
        if self.slots.autoscales and time.monotonic() >= self.next_request:
            self.next_request = time.monotonic() + ASK_SECONDS
            request_resources(bundles=self.slots.bundles * min(count, MAX_ASKED))

    def close(self) -> None:
        """Take the request back."""
        if self.slots.autoscales:
            with suppress(ray.exceptions.RayError, RuntimeError):  # of a lost cluster
                request_resources(bundles=[])
