"""The files of cluster/, each checked by what reads it, or by its schema; the steps of the Docker image are run."""

from __future__ import annotations

import copy
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
SCHEMA = ROOT / "tests/kuberay_schema/rayjob.json.gz"
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
SKYPILOT = os.environ.get("SKYPILOT_PYTHON", sys.executable)  # SkyPilot needs other versions than voxtune: its own venv


def run(*words: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, with these variables."""
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | environment,
    )


def load(name: str) -> Any:
    """Return the content of a YAML of cluster/."""
    return yaml.safe_load((CLUSTER / name).read_text())


def pinned(package: str) -> str:
    """Return the version of a package in constraints.txt."""
    return re.search(rf"^{package}==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", ["slurm/voxtune.sbatch", "launch_or_resume.sh"])
def test_the_scripts_pass_shellcheck(name: str) -> None:
    done = run(SHELLCHECK, CLUSTER / name)
    assert done.returncode == 0, done.stdout


def test_every_script_is_checked() -> None:
    scripts = {path for path in CLUSTER.rglob("*") if path.is_file() and path.read_bytes().startswith(b"#!")}
    assert scripts == {CLUSTER / "slurm/voxtune.sbatch", CLUSTER / "launch_or_resume.sh"}
    assert os.access(CLUSTER / "launch_or_resume.sh", os.X_OK)


def closed(schema: Any) -> Any:
    """Return a schema of Kubernetes as JSON Schema that refuses unknown keys, as `kubectl apply --validate=strict`."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items() if not key.startswith("x-")}
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    known = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if known and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


@pytest.fixture(scope="module")
def rayjob_schema() -> Any:
    """KubeRay's schema of a RayJob, closed."""
    return closed(json.loads(gzip.decompress(SCHEMA.read_bytes())))


def problems(document: Any, schema: Any) -> list[str]:
    """Return what a schema refuses of a document."""
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]


def test_the_rayjob_and_the_raycluster_are_what_kuberay_reads(rayjob_schema: Any) -> None:
    job, cluster = load("kuberay/rayjob.yaml"), load("kuberay/raycluster.yaml")
    assert (job["apiVersion"], job["kind"], cluster["kind"]) == ("ray.io/v1", "RayJob", "RayCluster")
    assert problems(job, rayjob_schema) == []
    scaled = copy.deepcopy(job)
    scaled["spec"]["rayClusterSpec"] = cluster["spec"]
    assert problems(scaled, rayjob_schema) == []
    workers = cluster["spec"]["workerGroupSpecs"][0]
    assert (workers.pop("minReplicas"), workers.pop("replicas")) == (0, 0)
    assert cluster["spec"].pop("enableInTreeAutoscaling") is True
    assert cluster["spec"].pop("autoscalerOptions") == {"idleTimeoutSeconds": 300}
    fixed = job["spec"]["rayClusterSpec"]
    replicas = {"replicas": 2, "minReplicas": 2}
    assert [fixed, fixed["workerGroupSpecs"][0]] == [
        {**cluster["spec"], "workerGroupSpecs": fixed["workerGroupSpecs"]},
        {**workers, **replicas},
    ]
    queued = copy.deepcopy(job)
    queued["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "QUEUE"}
    queued["spec"]["suspend"] = True
    assert problems(queued, rayjob_schema) == []


def test_the_schema_refuses_what_kuberay_does_not_know(rayjob_schema: Any) -> None:
    job = load("kuberay/rayjob.yaml")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    job["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "password"
    job["spec"]["backoffLimit"] = "ten"
    found = " ".join(problems(job, rayjob_schema))
    assert "'minReplica' was unexpected" in found
    assert "'password' is not one of ['disabled', 'token']" in found
    assert "'ten' is not of type 'integer'" in found


def test_a_rayjob_fits_the_image_the_volume_and_the_rules_of_kuberay_that_no_schema_has() -> None:
    """Those of its validation.go: what is suspended must end its cluster; tokens need the version of Ray."""
    spec = load("kuberay/rayjob.yaml")["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["authOptions"]["secretName"] in (CLUSTER / "kuberay/rayjob.yaml").read_text().split("apiVersion")[0]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for pod in (group["template"]["spec"] for group in pods):
        assert [container["image"] for container in pod["containers"]] == [f"voxtune:{version}"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == set(volumes)
        assert (
            volumes["shared"]["persistentVolumeClaim"]["claimName"] == load("kuberay/volume.yaml")["metadata"]["name"]
        )
    group = cluster["workerGroupSpecs"][0]
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    assert load("kuberay/volume.yaml")["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_pod_that_copies_cases_sees_the_volume_as_the_sweep_does() -> None:
    head = load("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    copy_pod = load("kuberay/copy.yaml")["spec"]
    assert copy_pod["securityContext"] == head["securityContext"]
    container = copy_pod["containers"][0]
    assert container["image"] == head["containers"][0]["image"]
    assert copy_pod["volumes"] == [volume for volume in head["volumes"] if volume["name"] == "shared"]
    assert container["volumeMounts"] == [
        mount for mount in head["containers"][0]["volumeMounts"] if mount["name"] == "shared"
    ]


@pytest.mark.parametrize("name", ["ray_cluster_onprem.yaml", "ray_cluster_aws.yaml"])
def test_ray_loads_the_clusters_of_its_launcher(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load(name))
    validate_config(config)
    kinds = config["available_node_types"].values()
    assert sum(kind["min_workers"] for kind in kinds) == (2 if "onprem" in name else 0)
    assert sum(kind["max_workers"] for kind in kinds) == config["max_workers"] == 2
    assert "~/.ray/auth_token" in config["file_mounts"]
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "ray start" in line]
    modes = starts if "onprem" in name else [" ".join(config["setup_commands"])]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in line for line in modes)
    with pytest.raises(jsonschema.ValidationError, match="head_ips"):
        validate_config({**config, "head_ips": []})


BOOTSTRAP = """
import sys, yaml
from moto import mock_aws
from ray.autoscaler._private.aws import config as aws
from ray.autoscaler._private.util import prepare_config

aws.time.sleep = lambda seconds: None  # it waits for AWS's own copies
with mock_aws():
    config = aws.bootstrap_aws(prepare_config(yaml.safe_load(open(sys.argv[1]))))
    types = config["available_node_types"].values()
    print([[bool(kind["node_config"][key]) for key in ("SubnetIds", "SecurityGroupIds", "KeyName")] for kind in types])
"""


@pytest.mark.slow
def test_ray_makes_an_aws_of_moto_ready_for_the_cluster(tmp_path: Path) -> None:
    """Subnets, a security group, a key pair and a role, as `ray up` makes them before it starts a machine."""
    (tmp_path / ".ssh").mkdir()
    variables = {
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
    }
    done = run(sys.executable, "-c", BOOTSTRAP, CLUSTER / "ray_cluster_aws.yaml", **variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[[True, True, True], [True, True, True]]"


@pytest.mark.slow
def test_skypilot_reads_its_job(tmp_path: Path) -> None:
    if run(SKYPILOT, "-c", "import sky").returncode:
        pytest.skip("SkyPilot is not installed; SKYPILOT_PYTHON names the Python of an environment that has it")
    script = "import sys, sky; task = sky.Task.from_yaml(sys.argv[1]); print(task.resources)"
    variables = {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = run(SKYPILOT, "-c", script, CLUSTER / "skypilot.yaml", **variables)
    assert done.returncode == 0, done.stderr
    assert "[Spot]" in done.stdout
    assert "'H100': 8" in done.stdout


def test_the_docker_image_has_what_setup_needs() -> None:
    """Each file that a COPY names is there, and the packages copied are those that pyproject.toml installs."""
    copied = re.findall(r"^COPY (.*) \S+$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert [name for name in names if not (ROOT / name).exists()] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages | {project["project"]["readme"], *project["project"]["license-files"]} <= names


@pytest.mark.slow
def test_the_docker_steps_run_here(tmp_path: Path) -> None:
    """In order, in a new folder and an environment that sees the installed torch; not apt-get and useradd."""
    environment, work = tmp_path / "environment", tmp_path / "work"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (packages / "these.pth").write_text(sysconfig.get_path("purelib"))
    path = f"{environment}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"  # the Python of the tests has `ray`
    text = re.sub(r"\\\n", "", (CLUSTER / "Dockerfile").read_text())
    steps = [line.split(maxsplit=1) for line in text.splitlines() if re.match("(RUN|COPY) ", line)]
    ran = []
    for kind, rest in steps:
        work.mkdir(exist_ok=True)
        if kind == "COPY":
            *sources, target = rest.split()
            if target.endswith("/"):
                (work / target).mkdir(exist_ok=True)
            subprocess.run(["cp", "-r", *sources, work / target], cwd=ROOT, check=True)
        elif not rest.startswith(("apt-get", "useradd")):
            done = run("sh", "-c", rest, cwd=work, PATH=path, TORCH_INDEX="")
            assert done.returncode == 0, f"{rest}\n{done.stdout}{done.stderr}"
            ran.append(done.stdout)
    assert len(ran) == 3
    assert f"ray, version {pinned('ray')}" in ran[-1]
    for program in ("launch_or_resume.sh", "voxtune"):
        assert shutil.which(program, path=path) == f"{environment}/bin/{program}"
