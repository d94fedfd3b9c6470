"""What is wrong with the folders and disks that a node sees; see checks.py."""

from __future__ import annotations

from tune.nodes.cells import Cell, Check, Level, Node, Reference
from tune.nodes.facts import NodeFacts
from tune.nodes.folders import Sight
from tune.run.retention import format_bytes

MIN_FREE = 2 * 2**30  # bytes: less fills up with a few checkpoints or logs
OWN_CACHE = "its own"
STORE_ADVICE = (
    "start Ray there with the store's credentials (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in its "
    "environment, ~/.aws, or a role of the machine), and see that the node reaches the endpoint"
)


def folder(role: str, option: str, *, needed: bool = True) -> Check:
    """Return the check that a node sees a folder as the driver does; needed: trials fail without it."""

    def check(node: Node, facts: NodeFacts, here: Reference) -> Cell | None:
        found = facts.folders.get(role)
        if found is None:
            return None
        if found.sight == Sight.SEEN:
            return Cell("seen")
        share = f"mount the driver's disk at the same path, or choose {option} on a disk that all nodes share"
        matter = {
            Sight.MISSING: f"there is no such folder; {share}",
            Sight.EMPTY: f"the folder is empty, as without its mount; {share}",
            Sight.OTHER: f"a folder of that path is there, but not the driver's; {share}",
            Sight.READ_ONLY: f"cannot be written there ({found.error}); let the user that runs Ray there write to it",
            Sight.UNSHARED: f"what the node writes there does not reach the driver; {share}",
            Sight.UNREACHED: f"cannot be listed from there ({found.error}); {STORE_ADVICE}",
            Sight.ERROR: f"cannot be read there ({found.error}); let the user that runs Ray there read it",
        }[found.sight]
        level = Level.WRONG if needed else Level.WARNING
        why = "" if needed else " (trials need only the cache, but nothing could be prepared there)"
        return Cell(found.sight, level, f"{role}: {matter}{why}")

    return check


def cache(node: Node, facts: NodeFacts, here: Reference) -> Cell | None:
    """Check that a node has the cache, or can prepare the cases in one of its own, on a disk that is not shared."""
    found = facts.folders.get("cache")
    if found is None or found.sight != Sight.OWN:
        return folder("cache", "--cache_dir")(node, facts, here)
    data = facts.folders.get("DATA")
    if data is None or data.sight == Sight.SEEN:
        return Cell(OWN_CACHE)
    advice = (
        "cache: the driver's is not there, and without DATA the node cannot prepare its own: let it see DATA "
        "as the driver does, or choose --cache_dir on a disk that all nodes share"
    )
    return Cell("not there", Level.WRONG, advice)


def locks(node: Node, facts: NodeFacts, here: Reference) -> Cell | None:
    """Check that a lock of the driver in RUN holds on the node: by that a resume knows that old trials have ended."""
    run = facts.folders.get("RUN")
    if run is None or run.sight not in (Sight.SEEN, Sight.READ_ONLY, Sight.UNSHARED):
        return None
    if run.locks:
        return Cell("hold")
    matter = "its file system has no locks" if run.locks is None else "the driver's locks do not hold there"
    advice = (
        f"RUN: {matter}: mount it with locks (Lustre: -o flock, NFS: without nolock), or wait after a killed driver "
        "until the processes of its trials have ended before you resume"
    )
    return Cell("none" if run.locks is None else "not shared", Level.WARNING, advice)


def room(title: str, remedy: str, *, own: bool = False, fullest: float = 1.0) -> Check:
    """Return the check of the room on a disk: of a folder by role, or if `own` of one of the node's own disks.

    fullest: share of the disk that may be in use.
    """

    def check(node: Node, facts: NodeFacts, here: Reference) -> Cell | None:
        found = (facts.disks if own else facts.folders).get(title)
        if found is None or found.free is None or not found.total or found.sight == Sight.OTHER:
            return None
        text, used = format_bytes(found.free), 1 - found.free / found.total
        if found.free >= MIN_FREE and used <= fullest:
            return Cell(text)
        return Cell(text, Level.WARNING, f"{title} has {text} free, {100 * used:.0f} % are in use: {remedy}")

    return check
