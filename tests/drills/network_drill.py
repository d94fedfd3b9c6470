"""A sweep on a head and two workers with their own addresses, of which one is killed, one joins, and the head is lost.

python tests/drills/network_drill.py [--trials 30] [--s3]   needs root; about eight minutes on two cores

The cluster requires a token: a client without it is refused. Then a sweep is launched on the head. When some trials
have ended, a worker is killed as by a power cut, and another one joins; when that has trained, the head is killed with
the driver. It is started again, the workers join it, and the sweep is resumed. In the end no trial may be lost or
counted twice: `voxtune verify` audits the run.

With --s3 the cases, the checkpoints and the snapshots are on an S3 server (moto's) on a machine of its own, and each
worker fetches and prepares the cases on a disk of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from helpers import SPACE, wait_for  # noqa: E402
from node_network import Network, can_make_machines, ray_network, wait_for_head, wait_for_nodes  # noqa: E402

from trainable.data.phantom import write_phantoms  # noqa: E402
from tune.run.events import EventKind, read_events  # noqa: E402
from tune.run.results import read_run  # noqa: E402

STORE = "store"  # the machine of the S3 server
# Waits for the server, makes the buckets and uploads the cases.
FILL = """
import sys, time
from pathlib import Path
import boto3
client, data = boto3.client("s3", endpoint_url=sys.argv[1]), Path(sys.argv[2])
for attempt in range(100):
    try:
        client.create_bucket(Bucket="sweeps")
        break
    except Exception:
        time.sleep(0.5)
client.create_bucket(Bucket="cases")
for path in data.rglob("*.nii.gz"):
    client.upload_file(str(path), "cases", path.relative_to(data).as_posix())
"""


def ended(run: Path) -> int:
    """Return how many trials have ended, as far as the driver has noted it."""
    return sum(event.kind == EventKind.TRIAL_ENDED for event in read_events(run / "events.jsonl"))


def hosts(run: Path) -> Counter[str]:
    """Return how often a trial has started or gone on, by machine."""
    return Counter(event.host for event in read_events(run / "events.jsonl") if event.host)


def voxtune(network: Network, output: Path, *words: object) -> subprocess.Popen[str]:
    """Start a verb on the head; what it prints goes to a file."""
    command = ["sh", "-c", f'exec "$0" "$@" > {output} 2>&1', sys.executable, "-m", "tune", *words]
    return network.head.start(*command, "--address", network.address, "--no_report")


def say(began: float, text: str) -> None:
    """Print what has happened, with the seconds since the beginning."""
    print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)


def start_store(network: Network, data: Path) -> list[object]:
    """Start an S3 server on a machine of its own, with the cases of a folder; return the flags that name both."""
    store = network.add(STORE)
    network.environment |= {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    log = f'exec "$0" "$@" > {network.folder}/moto.log 2>&1'
    store.start("sh", "-c", log, sys.executable, "-m", "moto.server", "-H", store.address, "-p", "5000")
    done = store.run(sys.executable, "-c", FILL, f"http://{store.address}:5000", data)
    assert done.returncode == 0, done.stdout
    place = f"?endpoint_override={quote(f'http://{store.address}:5000', safe='')}&scheme=http"
    cache = network.folder / "own/cache"
    return ["--data", f"s3://cases{place}", "--storage", f"s3://sweeps{place}", "--cache_dir", cache]


def drill(folder: Path, trials: int, *, s3: bool) -> bool:
    """Run the drill in a folder with a short path; return whether all went well."""
    write_phantoms(folder / "data", cases=6, shape=(48, 48, 40), workers=1)
    (folder / "space.yaml").write_text(SPACE)
    (folder / "own").mkdir()
    run, began, own = folder / "run", time.monotonic(), f"mount -t tmpfs none {folder}/own" if s3 else ""
    with ray_network(folder, [("head", ""), ("node-a", own), ("node-b", own)]) as network:
        places = start_store(network, folder / "data") if s3 else ["--data", folder / "data"]
        say(began, f"head and two workers at {network.address}, token required")
        stranger = network.head.voxtune("doctor", "--address", network.address, RAY_AUTH_MODE="disabled")
        say(began, f"a client without the token: exit code {stranger.returncode}")
        assert stranger.returncode == 2, stranger.stdout
        words = [folder / "space.yaml", *places, "--out", run, "--trials", trials]
        # Trials of seconds end before the first process of a new machine has started, and Ray hands the next trial to
        # a process that is free rather than wait for it: so each has its own here.
        words += ["--set", "resources.reuse_processes=false"]
        driver = voxtune(network, folder / "launch.log", "launch", *words)
        wait_for(driver, lambda: ended(run) >= trials // 5, seconds=900)
        lost = network.machines[1]
        lost.stop()
        say(began, f"{ended(run)} trials have ended; node-a is killed")
        joins = network.add("node-c", own)
        joins.start_ray("--num-cpus=1")
        wait_for_nodes(network, [joins])
        say(began, f"node-c has joined, {ended(run)} trials have ended")
        wait_for(driver, lambda: hosts(run)["node-c"] > 1, seconds=900)
        network.head.stop()
        driver.wait()
        say(began, f"{ended(run)} trials have ended; the head is killed with the driver")
        restart(network, without=[lost.name, STORE])
        say(began, "the head is started again, node-b and node-c have joined it")
        resumed = voxtune(network, folder / "resume.log", "resume", run)
        code = resumed.wait(timeout=1800)
        say(began, f"resume: exit code {code}, {ended(run)} trials have ended")
        audit = network.head.voxtune("verify", run)
    print(audit.stdout)
    print("trials started or gone on, by machine:", dict(hosts(run)))
    if s3:
        print("cases were prepared:", dict(preparations(run)))
    for event in read_events(run / "events.jsonl"):
        if event.kind == EventKind.TRIAL_RETRIED or event.status == "failed":
            print(f"trial {event.trial}: {event.text}")
    counts = Counter(trial.status for trial in read_run(run).trials)
    print("trials by end:", dict(counts))
    return code == 0 and audit.returncode == 0 and counts.total() == trials and len(hosts(run)) == 3


def preparations(run: Path) -> Counter[str]:
    """Return in how many trials cases had to be prepared first, by machine."""
    texts = [path.read_text() for path in run.glob("trials/*/stdout.log")]
    return Counter(line.split()[0] for text in texts for line in text.splitlines() if " prepares what " in line)


def restart(network: Network, without: list[str]) -> None:
    """Start the head again, and the workers but for those with these names."""
    workers = [machine for machine in network.machines[1:] if machine.name not in without]
    for machine in workers:  # before: the machines share the table of processes, in which Ray looks for another head
        machine.stop()
    network.head.start_ray("--num-cpus=0")
    wait_for_head(network)
    for machine in workers:
        machine.start_ray("--num-cpus=1")
    wait_for_nodes(network, workers)


def main() -> int:
    """Run the drill; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--s3", action="store_true", help="cases and checkpoints on S3")
    options = parser.parse_args()
    if not can_make_machines():
        print("left out: this needs root, and namespaces of network, mounts and host names")
        return 0
    with tempfile.TemporaryDirectory(prefix="vn", dir="/tmp") as folder:
        try:
            good = drill(Path(folder), options.trials, s3=options.s3)
        except AssertionError:
            print(*(path.read_text()[-3000:] for path in sorted(Path(folder).glob("*.log"))), sep="\n", file=sys.stderr)
            raise
    print("passed" if good else "FAILED")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
