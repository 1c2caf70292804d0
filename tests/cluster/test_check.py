"""Every file that is shipped has no faults, and each kind of fault that is planted in one is found there."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.check import SHIPPED, CheckError, check
from cluster.checks.launcher import launcher_faults
from cluster.checks.versions import Versions, dockerfile_faults, read_versions

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for pattern in SHIPPED for path in ROOT.glob(pattern))
LAUNCHERS = ["cluster.yaml", "cluster/gcp.yaml", "cluster/on_premises.yaml"]
VERSIONS = read_versions(ROOT)
Plant = Callable[[dict[str, Any]], object]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Of somebody who has made a token, and keeps it for himself."""
    token = tmp_path / "home" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("0" * 8)
    token.chmod(0o600)
    return tmp_path / "home"


def launcher(name: str = "cluster.yaml") -> dict[str, Any]:
    # Anchors make one mapping of several: a fault that is planted in one place must not stand in others.
    return json.loads(json.dumps(yaml.safe_load((ROOT / name).read_text())))


def found(config: dict[str, Any], home: Path) -> list[str]:
    return [str(fault) for fault in launcher_faults(config, "f", VERSIONS, home)]


def test_all_shipped_files_are_there_and_have_no_faults(home: Path) -> None:
    findings = check(FILES, ROOT, home=home)
    assert [str(fault) for fault in findings.faults] == []
    names = {str(path.relative_to(ROOT)) for path in FILES}
    assert {*LAUNCHERS, "cluster/Dockerfile", "cluster/kuberay/raycluster.yaml", "cluster/kuberay/rayjob.yaml"} <= names
    assert str(findings) == f"{len(FILES)} files: no faults"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_itself_takes_the_shipped_files(name: str) -> None:
    """The same two functions that `ray up` calls before it asks a cloud for anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(launcher(name))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def start(command: str, key: str = "head_start_ray_commands") -> Plant:
    """Another `ray start`."""
    return lambda c: c.update({key: ["ray stop", command]})


AUTH = "RAY_AUTH_MODE=token ray start --head --autoscaling-config=~/ray_bootstrap_config.yaml"
HEAD, CPU = "available_node_types.head", "available_node_types.cpu"
FAULTS: dict[str, tuple[Plant, str, str]] = {
    # name: plant it, the key it is found under, a part of the message
    "unknown key": (lambda c: c.update(max_worker=3), "max_worker", "did you mean 'max_workers'?"),
    "unknown key of a type": (
        lambda c: c["available_node_types"]["cpu"].update(min_worker=1),
        f"{CPU}.min_worker",
        "did you mean 'min_workers'?",
    ),
    "wrong kind of value": (lambda c: c.update(max_workers="many"), "max_workers", "'many' is not of type 'integer'"),
    "no provider": (lambda c: c.pop("provider"), "", "'provider' is a required property"),
    "half a CPU": (
        lambda c: c["available_node_types"]["cpu"]["resources"].update(CPU=0.5),
        f"{CPU}.resources.CPU",
        "not of type 'integer'",
    ),
    "unknown provider": (lambda c: c["provider"].update(type="cloud"), "", "`ray up` would refuse it"),
    "no such head type": (lambda c: c.update(head_node_type="haed"), "head_node_type", "did you mean 'head'?"),
    "least over most of a type": (
        lambda c: c["available_node_types"]["cpu"].update(min_workers=9),
        f"{CPU}.min_workers",
        "is 9, and max_workers of it 8",
    ),
    "least of all over most": (
        lambda c: (
            [c["available_node_types"][n].update(min_workers=4) for n in ("cpu", "gpu")] and c.update(max_workers=7)
        ),
        "max_workers",
        "is 7, and min_workers of the types are 8 together: raise it to 8",
    ),
    "no limit of a type": (
        lambda c: c["available_node_types"]["gpu"].pop("max_workers"),
        "available_node_types.gpu.max_workers",
        "its only limit",
    ),
    "several heads": (lambda c: c["available_node_types"]["head"].update(max_workers=2), f"{HEAD}.max_workers", "to 0"),
    "no workers": (
        lambda c: [c["available_node_types"].pop(name) for name in ("cpu", "gpu")],
        "available_node_types",
        "no type but the head may start",
    ),
    "head on spot": (
        lambda c: c["available_node_types"]["head"]["node_config"].update(InstanceMarketOptions={"MarketType": "spot"}),
        f"{HEAD}.node_config",
        "all jobs end with the head",
    ),
    "head trains": (
        lambda c: c["available_node_types"]["head"]["resources"].update(CPU=8),
        f"{HEAD}.resources",
        "the head offers CPUs",
    ),
    "no job slots": (
        lambda c: c["available_node_types"]["head"]["resources"].pop("job_slot"),
        f"{HEAD}.resources",
        "the head has no job_slot",
    ),
    "no tune drivers": (
        lambda c: c["available_node_types"]["head"]["resources"].update(tune_driver=0),
        f"{HEAD}.resources",
        "the head has no tune_driver",
    ),
    "job slots on spot": (
        lambda c: c["available_node_types"]["cpu"]["resources"].update(job_slot=1),
        f"{CPU}.resources",
        "only the head may",
    ),
    "no idle timeout": (lambda c: c.pop("idle_timeout_minutes"), "idle_timeout_minutes", "without work ends"),
    "no auth on the head": (
        start(AUTH.replace("RAY_AUTH_MODE=token ", "")),
        "head_start_ray_commands[1]",
        "starts Ray without RAY_AUTH_MODE",
    ),
    "auth off": (
        start("RAY_AUTH_MODE=disabled ray start --address=$RAY_HEAD_IP:6379", "worker_start_ray_commands"),
        "worker_start_ray_commands[1]",
        "with RAY_AUTH_MODE=disabled",
    ),
    "auth in another command's shell": (
        lambda c: c.update(
            worker_start_ray_commands=["export RAY_AUTH_MODE=token", "ray start --address=$RAY_HEAD_IP:6379"]
        ),
        "worker_start_ray_commands[1]",
        "starts Ray without RAY_AUTH_MODE",
    ),
    "Ray's own start command": (
        lambda c: c.pop("worker_start_ray_commands"),
        "worker_start_ray_commands",
        "Ray's own is used, which asks for no token",
    ),
    "open dashboard": (
        start(f"{AUTH} --dashboard-host=0.0.0.0"),
        "head_start_ray_commands[1]",
        "listens on 0.0.0.0",
    ),
    "open dashboard, said in two words": (
        start(f"{AUTH} --dashboard-host 10.0.0.1"),
        "head_start_ray_commands[1]",
        "listens on 10.0.0.1",
    ),
    "no dashboard": (start(f"{AUTH} --include-dashboard=false"), "head_start_ray_commands[1]", "ray#54305"),
    "no autoscaling": (
        start("RAY_AUTH_MODE=token ray start --head"),
        "head_start_ray_commands[1]",
        "no node is ever started",
    ),
    "no address": (
        start("RAY_AUTH_MODE=token ray start", "worker_start_ray_commands"),
        "worker_start_ray_commands[1]",
        "joins nothing",
    ),
    "token in a command": (
        start(f"RAY_AUTH_TOKEN=hunter2 {AUTH}"),
        "head_start_ray_commands[1]",
        "holds a token or a key in clear",
    ),
    "token in the setup": (
        lambda c: c["setup_commands"].append(f"echo {'3f' * 32} > ~/.ray/auth_token"),
        "setup_commands[2]",
        "holds a token or a key in clear",
    ),
    "cloud key": (
        lambda c: c["docker"]["run_options"].append("-e AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE"),
        "docker.run_options[3]",
        "holds a token or a key in clear",
    ),
    "token reaches no node": (
        lambda c: c["file_mounts"].pop("~/.ray/auth_token"),
        "file_mounts",
        "does not bring the token to ~/.ray/auth_token",
    ),
    "ports open to the world": (
        lambda c: c["provider"].update(
            security_group={
                "IpPermissions": [
                    {"FromPort": 8000, "ToPort": 9000, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
                ]
            }
        ),
        "provider.security_group.IpPermissions[0]",
        "opens port 8265 to the world",
    ),
    "privileged": (
        lambda c: c["docker"]["run_options"].append("--privileged"),
        "docker.run_options",
        "the owner of the machine",
    ),
    "no image": (lambda c: c.pop("docker"), "docker.image", "versions are those of the machine's own image"),
    "no tag": (lambda c: c["docker"].update(image="here:5000/stillgrain"), "docker.image", "has no tag"),
    "tag of the day": (
        lambda c: c["docker"].update(image="stillgrain:latest"),
        "docker.image",
        "does not say what is in",
    ),
    "another Ray": (
        lambda c: c["docker"].update(image="here:5000/stillgrain:py3.11-ray2.59.1-torch2.13.0"),
        "docker.image",
        "the image has ray 2.59.1, and constraints.txt 2.60.0",
    ),
    "another torch": (
        lambda c: c["docker"].update(image="stillgrain:py3.11-ray2.60.0-torch2.12.0@sha256:" + "ab" * 32),
        "docker.image",
        "the image has torch 2.12.0",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_nothing_else(name: str, home: Path) -> None:
    plant, key, message = FAULTS[name]
    config = launcher()
    plant(config)
    faults = launcher_faults(config, "f", Versions("2.60.0", "2.13.0"), home)
    assert [fault.key for fault in faults] == [key], list(map(str, faults))
    assert message in faults[0].message


def test_a_machine_room_without_node_types_says_the_heads_resources_in_its_command(home: Path) -> None:
    assert found(launcher("cluster/on_premises.yaml"), home) == []
    config = launcher("cluster/on_premises.yaml")
    config["head_start_ray_commands"] = [AUTH]
    config["provider"]["worker_ips"].pop()
    faults = found(config, home)
    assert [fault.split(": ")[1] for fault in faults] == ["max_workers", *["head_start_ray_commands"] * 3]
    assert "is 3, and provider.worker_ips names 2" in faults[0]
    assert "the head offers CPUs" in faults[1]
    assert "add --num-cpus=0" in faults[1]


def test_a_spot_head_is_found_on_google_cloud_too(home: Path) -> None:
    config = launcher("cluster/gcp.yaml")
    config["available_node_types"]["head"]["node_config"]["scheduling"] = [{"preemptible": True}]
    assert ["all jobs end with the head" in fault for fault in found(config, home)] == [True]


def test_a_token_that_others_can_read_is_found_before_it_is_copied(home: Path) -> None:
    """`ray get-auth-token --generate` of Ray 2.60 makes the file with mode 0644."""
    (home / ".ray" / "auth_token").chmod(0o644)
    (fault,) = found(launcher(), home)
    assert "can be read by others: chmod 600 ~/.ray/auth_token" in fault


def multiplied(levels: int) -> str:
    """YAML of a few hundred bytes that stands for 10 to the power of `levels` values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (multiplied(9), "holds more than 100000 values, once its anchors are followed"),
        ("\n---\n".join([multiplied(4)] * 12), "holds more than 100000 values"),
        ("a: &a [*a]", "is nested too deep, or holds itself by an anchor"),
        ("[" * 2000 + "]" * 2000, "is nested too deep"),
    ],
)
def test_anchors_that_multiply_and_endless_nesting_are_faults_and_take_no_memory(
    tmp_path: Path, home: Path, text: str, message: str
) -> None:
    (file := tmp_path / "f.yaml").write_text(text)
    (fault,) = check([file], ROOT, home=home).faults
    assert message in fault.message


def test_all_faults_are_said_at_once_and_no_secret_is_repeated(home: Path) -> None:
    config = launcher()
    for name in ("least over most of a type", "head trains", "auth off", "token in the setup", "another Ray"):
        FAULTS[name][0](config)
    faults = found(config, home)
    assert len(faults) == 5
    assert "3f3f" not in "\n".join(faults)


def test_what_is_no_launcher_file_is_said_and_not_stumbled_over(tmp_path: Path, home: Path) -> None:
    texts = {
        "list.yaml": ("- a", "is no mapping of keys"),
        "empty.yaml": ("", "is empty"),
        "broken.yaml": ("a: [", "is not YAML"),
        "python.yaml": ("a: !!python/object/apply:os.system ['touch pwned']", "is not YAML"),
        "twice.yaml": ("cluster_name: a\ncluster_name: b\n", "stands twice in line 1"),
        "binary.yaml": (b"\xff\xfe\x00", "cannot be read"),
        "large.yaml": ("#" * 1_000_001, "more than 1000000 bytes"),
    }
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    for name, (text, _) in texts.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    findings = check(sorted(tmp_path.glob("*.yaml")), tmp_path, home=home)
    for name, (_, message) in texts.items():
        assert [f for f in findings.faults if f.file.endswith(name) and message in f.message], name
    assert not (ROOT / "pwned").exists()
    with pytest.raises(CheckError, match=r"none\.yaml: is not there"):
        check([tmp_path / "none.yaml"], tmp_path)
    with pytest.raises(CheckError, match="holds none of"):
        check([], home)


def test_without_versions_to_compare_with_that_itself_is_a_fault(tmp_path: Path, home: Path) -> None:
    (tmp_path / "constraints.txt").write_text("numpy==2.4.6\n")
    findings = check([ROOT / "cluster.yaml"], tmp_path, home=home)
    assert [fault.file for fault in findings.faults] == ["constraints.txt"]


DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ray2.60.0", "ray2.61.0", "the image has ray 2.61.0, and constraints.txt 2.60.0"),
        ("TAG=py3.11", "TAG=py3.12", "says Python 3.12, and FROM is Python 3.11"),
        ("ARG TAG=", "ARG OTHER=", "nothing says what the image holds"),
        ("FROM python:3.11-slim-bookworm", "FROM debian:12", "is no python:X.Y image"),
        ("--constraint constraints.txt", "", "versions would be those of the day"),
        ("USER ray", "COPY . /code\nUSER ray", "puts our code into the image"),
        ("USER ray", "COPY library /code/library\nUSER ray", "puts our code into the image"),
    ],
)
def test_a_fault_of_a_dockerfile_is_found(old: str, new: str, message: str) -> None:
    versions = Versions("2.60.0", "2.13.0")
    assert old in DOCKERFILE
    faults = list(dockerfile_faults(DOCKERFILE.replace(old, new), "f", versions))
    assert [message in fault.message for fault in faults] == [True], list(map(str, faults))


def test_what_the_dockerfile_installs_are_the_dependencies_and_never_our_code(tmp_path: Path) -> None:
    """Runs the line that writes the image's requirements."""
    (line,) = [part for part in DOCKERFILE.replace("\\\n", "").splitlines() if "tomllib" in part]
    script = line.partition('python -c "')[2].partition('"')[0]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    wanted = done.stdout.splitlines()
    assert any(line.startswith("ray[default,train,tune]") for line in wanted)
    assert any(line.startswith("s3fs") for line in wanted)
    assert not any(line.startswith(("stillgrain", "pytest", "moto")) for line in wanted)


def test_the_command_lists_the_faults_and_ends_with_1(tmp_path: Path, home: Path) -> None:
    config = copy.deepcopy(launcher())
    config["docker"]["image"] = "stillgrain:latest"
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "stillgrain", "cluster", "check", str(bad)]
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[0].startswith(f"{bad}: docker.image: the tag 'latest' does not say")
    assert done.stdout.splitlines()[-1] == "1 file: 1 fault"
