"""Faults of a file for `ray up`: those that Ray's own validation names one at a time, and those that it lets pass."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.checks.faults import Fault, nearest, secrets_in
from cluster.checks.versions import Versions
from cluster.ray_jobs import is_loopback

_TOKEN_PATH = "~/.ray/auth_token"
_HEAD_COMMANDS, _WORKER_COMMANDS = "head_start_ray_commands", "worker_start_ray_commands"
_HEAD_RESOURCES = {
    "job_slot": "jobs at a time; without it their drivers run anywhere, also where spot nodes end",
    "tune_driver": "trials of a sweep at a time; without it their drivers take what trainings need",
}
# Ray's GCS, its client, its dashboard, and the ports of nodes and workers from here on.
_RAY_PORTS = (6379, 8265, *range(10001, 20000))


def launcher_faults(config: Any, file: str, versions: Versions | None, home: Path) -> list[Fault]:
    """All of them.

    config    what the YAML holds
    versions  None leaves out what compares with constraints.txt
    home      where a token of this machine may lie
    """
    if not isinstance(config, dict):
        return [Fault(file, "", "is no mapping of keys: see cluster.yaml")]
    faults = list(_schema_faults(config, file))
    if faults:
        # What follows reads the file as if it had its form.
        return [*faults, *secrets_in(config, file)]
    faults += _worker_faults(config, file)
    faults += _head_faults(config, file)
    faults += _command_faults(config, file)
    faults += _token_faults(config, file, home)
    faults += _network_faults(config, file)
    faults += _image_faults(config, file, versions)
    faults += secrets_in(config, file)
    return faults or list(_what_ray_says(config, file))


# --- form -------------------------------------------------------------------------------------------------------------


def _schema_faults(config: dict[str, Any], file: str) -> Iterator[Fault]:
    """By the schema that Ray ships and `ray up` uses; all faults, where that names one."""
    import jsonschema

    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    for error in sorted(jsonschema.Draft7Validator(schema).iter_errors(config), key=lambda e: list(map(str, e.path))):
        key = ".".join(map(str, error.absolute_path))
        if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
            known = set(error.schema.get("properties", ()))  # type: ignore[union-attr]
            for name in sorted(set(map(str, error.instance)) - known):
                yield Fault(file, f"{key}.{name}".strip("."), f"unknown key; {nearest(name, known)}")
        elif error.validator == "required":
            yield Fault(file, key, f"{error.message}: add it, see cluster.yaml")
        elif error.validator == "enum":
            yield Fault(
                file, key, f"unknown value {error.instance!r}; {nearest(str(error.instance), error.validator_value)}"
            )  # type: ignore[arg-type]
        else:
            yield Fault(file, key, f"{error.message}: see cluster.yaml")


def _what_ray_says(config: dict[str, Any], file: str) -> Iterator[Fault]:
    """Ray's own validation, for what it may come to know and this does not."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(config))
    except Exception as error:  # Ray raises what comes to hand, down to click's own exit
        yield Fault(file, "", f"`ray up` would refuse it: {' '.join(str(error).split())[:300]}")


# --- nodes ------------------------------------------------------------------------------------------------------------


def _node_types(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return config.get("available_node_types") or {}


def _worker_faults(config: Mapping[str, Any], file: str) -> Iterator[Fault]:
    most = config.get("max_workers")
    types, head = _node_types(config), config.get("head_node_type")
    if types and head not in types:
        yield Fault(file, "head_node_type", f"'{head}' is none of available_node_types; {nearest(str(head), types)}")
    total = 0
    for name, kind in types.items():
        low, high = kind.get("min_workers", 0), kind.get("max_workers")
        total += low
        key = f"available_node_types.{name}"
        if high is None and name != head:
            yield Fault(
                file, f"{key}.max_workers", "is not there, so that max_workers of the whole is its only limit: add it"
            )
        if high is not None and low > high:
            yield Fault(
                file,
                f"{key}.min_workers",
                f"is {low}, and max_workers of it {high}, which Ray lets win in silence: lower it",
            )
        if name == head and high:
            yield Fault(
                file, f"{key}.max_workers", f"is {high}, so that {high} nodes without CPUs may start: set it to 0"
            )
        market = kind.get("node_config", {})
        if name == head and (
            market.get("InstanceMarketOptions") or "preemptible: true" in _flat(market.get("scheduling"))
        ):
            yield Fault(file, f"{key}.node_config", "is a spot node, and all jobs end with the head: leave spot out")
    if types and not any(kind.get("max_workers", 1) for name, kind in types.items() if name != head):
        yield Fault(
            file, "available_node_types", "no type but the head may start, and the head runs no training: add one"
        )
    if most is None:
        yield Fault(file, "max_workers", "is not there, and Ray's default is 2: add it")
    elif total > most:
        yield Fault(
            file, "max_workers", f"is {most}, and min_workers of the types are {total} together: raise it to {total}"
        )
    if not types:
        workers = config.get("provider", {}).get("worker_ips") or []
        if most is not None and workers and most > len(workers):
            yield Fault(file, "max_workers", f"is {most}, and provider.worker_ips names {len(workers)}: set it to that")
    if not config.get("idle_timeout_minutes"):
        yield Fault(file, "idle_timeout_minutes", "is not there or 0: say after how long a node without work ends")


def _flat(value: Any) -> str:
    return json.dumps(value).replace('"', "") if value else ""


def _head_faults(config: Mapping[str, Any], file: str) -> Iterator[Fault]:
    """Resources of the head: in its node type, or in its start command where Ray has no types (`type: local`)."""
    head = config.get("head_node_type")
    types = _node_types(config)
    if types:
        if head not in types:
            return
        key = f"available_node_types.{head}.resources"
        resources = types[head]["resources"]
        remedy = "set {} to 0 there"
    else:
        key = _HEAD_COMMANDS
        resources = _said_resources(config.get(_HEAD_COMMANDS) or [])
        remedy = "add --num-{}s=0 to `ray start`"
    for name in ("CPU", "GPU"):
        # Where nothing is said, Ray counts what the machine has. GPUs of a head without any are not worth a line.
        if resources.get(name, 1 if name == "CPU" else 0):
            yield Fault(
                file,
                key,
                f"the head offers {name}s, so that trainings run beside the dashboard and the drivers: "
                + remedy.format(name if types else name.lower()),
            )
    for name, why in _HEAD_RESOURCES.items():
        if not resources.get(name):
            yield Fault(file, key, f"the head has no {name}, which is how many {why}: add {name}, say 4")
    for name, kind in types.items():
        for resource in _HEAD_RESOURCES:
            if name != head and kind["resources"].get(resource):
                yield Fault(
                    file, f"available_node_types.{name}.resources", f"has {resource}: only the head may, leave it out"
                )


def _said_resources(commands: list[str]) -> dict[str, float]:
    said: dict[str, float] = {}
    for words in map(_words, commands):
        options = _options(words)
        for option, name in (("--num-cpus", "CPU"), ("--num-gpus", "GPU")):
            if option in options:
                said[name] = float(options[option])
        try:
            said |= json.loads(options.get("--resources", "{}"))
        except ValueError:
            continue
    return said


# --- commands ---------------------------------------------------------------------------------------------------------


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _options(words: list[str]) -> dict[str, str]:
    """--name=value and --name value, of one command."""
    found: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found[name] = value if equals else ("" if following.startswith("--") else following)
    return found


def _starts_ray(words: list[str]) -> bool:
    return any(a.rpartition("/")[2] == "ray" and b == "start" for a, b in itertools.pairwise(words))


def _environment(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words if re.match(r"^[A-Za-z_]\w*=", word))


def _command_faults(config: Mapping[str, Any], file: str) -> Iterator[Fault]:
    for key in (_HEAD_COMMANDS, _WORKER_COMMANDS):
        commands = [_words(command) for command in config.get(key) or []]
        starting = [(index, words) for index, words in enumerate(commands) if _starts_ray(words)]
        if not starting:
            yield Fault(
                file, key, "has no `ray start`, so that Ray's own is used, which asks for no token: see cluster.yaml"
            )
        for index, words in starting:
            yield from _start_faults(words, file, f"{key}[{index}]", head=key == _HEAD_COMMANDS, config=config)


def _start_faults(words: list[str], file: str, key: str, *, head: bool, config: Mapping[str, Any]) -> Iterator[Fault]:
    options = _options(words)
    mode = _given_environment(words, config).get("RAY_AUTH_MODE")
    if mode != "token":
        yield Fault(
            file,
            key,
            f"starts Ray {'with RAY_AUTH_MODE=' + mode if mode else 'without RAY_AUTH_MODE'}: whoever reaches its "
            "ports runs code here; put RAY_AUTH_MODE=token in front of `ray start`",
        )
    host = options.get("--dashboard-host", "127.0.0.1")
    if not is_loopback(host):
        yield Fault(
            file,
            key,
            f"the dashboard, which takes jobs, listens on {host}, in clear: say --dashboard-host=127.0.0.1, and "
            "reach it with `ray dashboard`",
        )
    if head:
        if "--head" not in options:
            yield Fault(file, key, "starts no head: add --head")
        if options.get("--include-dashboard", "true").lower() in ("false", "0"):
            yield Fault(
                file,
                key,
                "without the dashboard there are no jobs, and Ray Train never frees what a dead run has held "
                "(ray-project/ray#54305): leave --include-dashboard out",
            )
        if "--autoscaling-config" not in options:
            yield Fault(
                file, key, "without --autoscaling-config=~/ray_bootstrap_config.yaml no node is ever started: add it"
            )
    elif "RAY_HEAD_IP" not in options.get("--address", ""):
        yield Fault(file, key, "does not say --address=$RAY_HEAD_IP:6379, so that the node joins nothing: add it")


def _given_environment(words: list[str], config: Mapping[str, Any]) -> dict[str, str]:
    """What the command itself says, before what the container is started with."""
    docker = config.get("docker") or {}
    options = [
        word for name in ("run_options", "head_run_options", "worker_run_options") for word in docker.get(name, [])
    ]
    return {**_environment(_words(" ".join(map(str, options)))), **_environment(words)}


# --- token and network ------------------------------------------------------------------------------------------------


def _token_faults(config: Mapping[str, Any], file: str, home: Path) -> Iterator[Fault]:
    """The token has to reach every node, as a file that only its owner reads."""
    mounts = config.get("file_mounts") or {}
    wanted = {
        _given_environment(_words(command), config).get("RAY_AUTH_TOKEN_PATH", _TOKEN_PATH)
        for key in (_HEAD_COMMANDS, _WORKER_COMMANDS)
        for command in config.get(key) or []
        if _starts_ray(_words(command))
    }
    for path in sorted(wanted - set(mounts)):
        yield Fault(
            file, "file_mounts", f"does not bring the token to {path}, where nodes look for it: add {path}: {path}"
        )
    for remote in sorted(wanted & set(mounts)):
        source = Path(str(mounts[remote]).replace("~", os.fspath(home), 1))
        if source.is_file() and stat.S_IMODE(source.stat().st_mode) & 0o077:
            # `ray get-auth-token --generate` of Ray 2.60 makes it so.
            yield Fault(
                file, f"file_mounts.{remote}", f"{mounts[remote]} can be read by others: chmod 600 {mounts[remote]}"
            )


def _network_faults(config: Mapping[str, Any], file: str) -> Iterator[Fault]:
    rules = config.get("provider", {}).get("security_group", {}).get("IpPermissions", [])
    for index, rule in enumerate(rules):
        ranges = [
            entry.get("CidrIp", entry.get("CidrIpv6"))
            for name in ("IpRanges", "Ipv6Ranges")
            for entry in rule.get(name, [])
        ]
        low, high = rule.get("FromPort", -1), rule.get("ToPort", -1)
        every = str(rule.get("IpProtocol")) == "-1" or low == -1
        reached = [port for port in _RAY_PORTS if every or low <= port <= high]
        if reached and ({"0.0.0.0/0", "::/0"} & set(ranges)):
            yield Fault(
                file,
                f"provider.security_group.IpPermissions[{index}]",
                f"opens port {reached[0]} to the world, where Ray runs "
                "code and talks in clear: leave it out, and use `ray dashboard`",
            )
    for key in ("run_options", "head_run_options", "worker_run_options"):
        for option in (config.get("docker") or {}).get(key, []):
            if re.search(r"(^|\s)--privileged(?!=false)", str(option)):
                yield Fault(
                    file,
                    f"docker.{key}",
                    "--privileged makes whoever runs a job the owner of the machine: leave it out",
                )


def _image_faults(config: Mapping[str, Any], file: str, versions: Versions | None) -> Iterator[Fault]:
    docker = config.get("docker") or {}
    named = {f"docker.{key}": docker[key] for key in ("image", "head_image", "worker_image") if docker.get(key)}
    for name, kind in _node_types(config).items():
        image = (kind.get("docker") or {}).get("worker_image")
        named |= {f"available_node_types.{name}.docker.worker_image": image} if image else {}
    if not named:
        yield Fault(
            file, "docker.image", "is not there, so that versions are those of the machine's own image: name ours"
        )
    for key, image in named.items():
        if versions is not None:
            yield from versions.image_faults(str(image), file, key)
