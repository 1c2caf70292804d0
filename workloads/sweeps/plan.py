"""What a sweep is going to do, and how far it is: its trials from their config to the ledger. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import yaml

from library.config import config_difference, dotted, replaced, to_yaml, validate
from library.errors import ConfigError
from library.files.atomic import whole_file
from library.files.places import place, read_text
from workloads.launch import LaunchConfig
from workloads.run import read_config
from workloads.sweeps.population import Pbt, Population
from workloads.sweeps.search import Problem, Tried
from workloads.sweeps.space import Overrides, grid_points, samples_of_each_axis
from workloads.sweeps.trials import Ledger, Trial, values_of

if TYPE_CHECKING:
    from workloads.sweep import Config

_MAY_CHANGE = {
    "sweep.yaml": {"num_trials", "concurrency", "max_failures", "retry_failed", "storage", "base"},
    "base.yaml": {"name", "storage"},
}
"""Where the base lies may change, but not what it says; a trial's name and storage are the sweep's."""
_RESOURCES = ("CPU", "GPU")


class Plan:
    """The trials of a sweep: those on its ledger, and those that come next."""

    def __init__(self, config: Config) -> None:
        """raises  ConfigError for a base that trains nothing, and for a space that it does not have"""
        self.config = config
        base = read_config(config.base)
        if not isinstance(base, LaunchConfig):
            raise ConfigError(f"base: {config.base} is `workload: {base.workload}`, which trains nothing")  # pyright: ignore[reportAttributeAccessIssue]
        self.training = type(base)
        data: dict[str, Any] = base.model_dump(mode="json")
        for key, value in config.changes.items():
            data = replaced(data, key, value)
        self.base = validate(self.training, data, "base with changes")
        self.data = self.base.model_dump(mode="json")
        self.problem = Problem(config.space, dotted(self.data), tuple(config.metrics.values()), config.seed)
        self.num_trials = config.searcher.num_trials(self.problem, config.num_trials)
        self._check_space()
        if isinstance(config.scheduler, Pbt) and self.base.scaling.most_workers > 1:
            raise ConfigError(
                f"scheduler is pbt, whose trials are of one worker each, but scaling.workers is "
                f"{self.base.scaling.workers}: set scaling.workers to 1 in changes, or leave out scheduler"
            )
        self.ledger = Ledger(config.folder)
        self.population = Population(self, config.scheduler) if isinstance(config.scheduler, Pbt) else None

    def _check_space(self) -> None:
        """raises  ConfigError naming the key of the space that the base does not take"""
        problems = {}
        for key, overrides in samples_of_each_axis(self.config.space, self.problem.base):
            try:
                self._trained(overrides)
            except ConfigError as error:
                problems.setdefault(key, error)
        # A combination may be what is wrong, which shows at several keys; those that do not exist are named first.
        for key, error in problems.items():
            raise ConfigError(f"space.{key}: {error}")

    def _trained(self, overrides: Overrides) -> LaunchConfig:
        data = self.data
        for key, value in overrides.items():
            data = replaced(data, key, value)
        return validate(self.training, data, "trial")

    def config_of(self, trial: Trial) -> LaunchConfig:
        """A trial's training.

        raises  ConfigError when its values do not go together
        """
        return self._trained(self._own(trial) | trial.overrides)

    def _own(self, trial: Trial) -> dict[str, Any]:
        """What a trial has otherwise than the base, whatever is searched."""
        own: dict[str, Any] = {"name": trial.run, "storage": str(self.ledger.runs_folder)}
        own["stores"] = self.data["stores"] or str(place(self.config.storage) / "stores")
        if trial.after is not None:
            own["start_from"] = str(self.ledger.runs_folder / self.ledger[trial.after].run)
        return own

    def claim(self) -> None:
        """Write what was asked for beside what will come of it, or check that the folder is this sweep's; from now on
        this process is the one that writes it.

        raises  ConfigError when it is not
        """
        for file, text in (("sweep.yaml", to_yaml(self.config)), ("base.yaml", to_yaml(self.base))):
            path = self.config.folder / file
            if path.exists():
                there = yaml.safe_load(read_text(path))
                if difference := config_difference(there, yaml.safe_load(text), may_change=_MAY_CHANGE[file]):
                    raise ConfigError(
                        f"name: the sweep '{self.config.name}' in {self.config.storage} has another {file}:\n"
                        f"{difference}\ngive this one another name=..., or remove that folder"
                    )
            with whole_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        self.ledger.claim()

    def waiting(self) -> list[Trial]:
        """Trials that have not ended, those to be begun among them."""
        again = ("running", "failed") if self.config.retry_failed else ("running",)
        begun = [trial for trial in self.ledger.trials if trial.status in again]
        return begun + [Trial(index, {}) for index in self.missing()]

    def missing(self) -> list[int]:
        """Numbers of the trials that were not begun yet."""
        begun = {trial.index for trial in self.ledger.trials}
        return [index for index in range(self.num_trials) if index not in begun]

    def begin(self, index: int) -> Trial | None:
        """Put one more trial on the list. It has failed already where its values do not go together, or where that
        has failed whose weights it starts from. None while that one has not ended."""
        asked = self.config.searcher.ask(self.problem, index, [self._tried(trial) for trial in self.ledger.trials])
        if asked.after is not None and self.ledger.status(asked.after) in (None, "running"):
            return None
        trial = Trial(index, asked.overrides, asked.after, dict(asked.memory))
        self._judge(trial)
        self.ledger.add(trial)
        return trial

    def _judge(self, trial: Trial) -> None:
        """Let a trial fail that cannot be started."""
        try:
            self.config_of(trial)
        except ConfigError as error:
            trial.status, trial.error = "failed", str(error)
        if trial.after is not None and self.ledger.status(trial.after) == "failed":
            trial.status, trial.error = "failed", f"trial {trial.after}, from whose weights it starts, has failed"

    def next_trial(self, busy: Collection[int]) -> Trial | Literal["wait"] | None:
        """A trial to be started now, or gone on with; `wait` where that depends on trials under way; None when none is
        left.

        busy  numbers of the trials under way
        """
        waits = False
        for trial in [t for t in self.ledger.trials if t.status == "running" and t.index not in busy]:
            if trial.after is not None and self.ledger.status(trial.after) == "running":
                waits = True
                continue
            if self.population is not None and self.population.has_arrived(trial):
                waits = True
                continue
            self._judge(trial)
            if trial.status == "running":
                return trial
            self.ledger.save()
        for index in self.missing():
            trial = self.begin(index)
            if trial is None:
                waits = True
            elif trial.status == "running":
                return trial
        if self.population is not None and busy:
            return "wait"  # those under way will stand still once more
        if self.population is not None and waits:
            self.population.compare()
            return self.next_trial(busy)
        return "wait" if waits else None

    def job(self, trial: Trial) -> dict[str, Any]:
        """What a trial's process is told."""
        return {
            "index": trial.index,
            "turn": trial.compared,
            "until": self.population.until if self.population else None,
            "config": self.config_of(trial).model_dump(mode="json"),
        }

    def _tried(self, trial: Trial) -> Tried:
        values = None
        if trial.status in ("done", "stopped"):
            values = values_of(self.ledger.read_run(trial), list(self.config.metrics))
        return Tried(trial.overrides, values, trial.status != "running", trial.memory)

    def at_once(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """How many trials run side by side.

        nodes   CPU and GPU of each node of the cluster
        raises  ConfigError when there is no room for one, or when some would wait for each other without end
        """
        room = self.room(nodes)
        if room < 1:
            raise ConfigError(
                f"a trial needs {self._needs}, and the cluster has {_named(nodes)}: lower scaling.workers or "
                "scaling.cpus_per_worker in the base or in changes, or add nodes"
            )
        wanted = self.config.concurrency or room
        if wanted > room and self.base.scaling.most_workers > 1:
            # Each trial's driver would hold its place and wait for workers that can never all start.
            raise ConfigError(
                f"concurrency is {wanted}: {wanted} trials of {self._needs} do not fit into {_named(nodes)}, and "
                "trials of several workers would wait for each other without end: set concurrency to "
                f"{room} or less, or add nodes"
            )
        return min(wanted, len(self.waiting()), self._num_chains)

    def room(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """For how many trials the cluster has room: a worker is on one node, with all that it needs."""
        scaling = self.base.scaling
        needs = {name: need for name, need in zip(_RESOURCES, self._per_worker, strict=True) if need}
        workers = sum(min(int(node.get(name, 0) // need) for name, need in needs.items()) for node in nodes)
        return workers // scaling.most_workers

    @property
    def _num_chains(self) -> int:
        """Trials that wait for no other: the first rungs where there is a ladder, else all."""
        points = grid_points(self.config.space, self.problem.base)
        return self.num_trials * sum(point.after is None for point in points) // len(points)

    def reckoning(self, nodes: Sequence[Mapping[str, float]]) -> str:
        """What is about to be started, in numbers."""
        return (
            f"{len(self.waiting())} trials, {self.at_once(nodes)} at once: each takes {self._needs}, the cluster has "
            f"{_named(nodes)}"
        )

    @property
    def _per_worker(self) -> tuple[int, int]:
        return self.base.scaling.cpus_per_worker, self.base.scaling.gpus_per_worker

    @property
    def _needs(self) -> str:
        workers = self.base.scaling.most_workers
        parts = [f"{need} {name}" for name, need in zip(_RESOURCES, self._per_worker, strict=True) if need]
        return f"{workers} worker{'s' * (workers > 1)} x {' and '.join(parts)}"


def _named(nodes: Sequence[Mapping[str, float]]) -> str:
    totals = {name: sum(node.get(name, 0) for node in nodes) for name in _RESOURCES}
    each = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    return ", ".join(f"{total:g} {name}" for name, total in totals.items() if total or name == "CPU") + each
