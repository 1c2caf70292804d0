"""An MLflow tracking server, through its client: `pip install 'stillgrain[mlflow]'`."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from upath import UPath

from library.config import dotted
from library.errors import ConfigError
from library.files.atomic import whole_file
from library.training.loggers import LoggerConfig

RUN_ID_FILE = "mlflow_run_id"
_LARGEST_BATCH = {"metrics": 1000, "params": 100}
"""Of one request, by MLflow's REST API; the server refuses more."""
_LONGEST_PARAM = 6000
"""Characters, by MLflow's REST API."""
_PAUSE = 60.0
"""Seconds without another attempt after a server did not answer."""

_log = logging.getLogger(__name__)


class Config(LoggerConfig):
    kind: Literal["mlflow"] = "mlflow"
    tracking_uri: str
    """Of the server: http://host:5000. Credentials go into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of the
    workers' environment."""
    experiment: str = Field(default="stillgrain", min_length=1)
    """Where MLflow files the run; made if it is not there."""

    @field_validator("tracking_uri")
    @classmethod
    def _is_a_uri_without_a_password(cls, uri: str) -> str:
        if "://" not in uri:
            raise ValueError(f"'{uri}' is no URI: give that of a tracking server, for example http://host:5000")
        if urlsplit(uri).scheme in ("http", "https") and "@" in urlsplit(uri).netloc:
            # Not repeated in the message: a config is printed, and kept in run.yaml and in every bundle.
            raise ValueError(
                "holds a user or a password: leave it out, and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD in the workers' environment"
            )
        return uri

    def build(self, run_folder: Path | UPath, run_name: str, config: Mapping[str, Any]) -> MlflowLogger:
        return MlflowLogger(self, run_folder, run_name, config)


class MlflowLogger:
    """See `Logger`. The run in MLflow is a copy of `metrics.jsonl`, which is complete again after each start; MLflow's
    id of it lies in the run's folder.

    A server that fails while a run trains does not stop it: what could not be sent is kept, and sent with what follows.

    config      where to log to
    run_config  logged as parameters with dotted names
    raises      ConfigError when MLflow's client is not installed
    """

    def __init__(self, config: Config, run_folder: Path | UPath, run_name: str, run_config: Mapping[str, Any]) -> None:
        self.config = config
        self.run_folder = run_folder
        self.run_name = run_name
        self.run_config = run_config
        self._mlflow = _client_library()
        self._client: Any = None
        self._run_id = ""
        self._known: set[tuple[str, int]] = set()
        """Name and step of every value that MLflow has or that waits to be sent."""
        self._unsent: list[Any] = []
        self._silent_until = 0.0

    def start(self, step: int) -> None:
        """raises  ConfigError when the server cannot be used"""
        from library.training.recorder import read_metrics

        try:
            self._client = self._mlflow.MlflowClient(self.config.tracking_uri)
            run = self._run()
            self._run_id = run.info.run_id
            self._known = {(name, m.step) for name in run.data.metrics for m in self._history(name)}
            self._log_params(run.data.params)
        except self._mlflow.MlflowException as error:
            raise ConfigError(
                f"loggers.mlflow.tracking_uri: {self.config.tracking_uri} cannot be used ({_first_line(error)}); "
                "start that server, or leave out loggers.mlflow"
            ) from None
        for line in read_metrics(self.run_folder):
            self._keep(line["step"], f"{line['split']}/{line['name']}", line["value"])
        self.flush()

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._keep(step, f"{split}/{name}", value)
        self.flush()

    def flush(self) -> None:
        if time.monotonic() < self._silent_until:
            return
        while self._unsent:
            batch = self._unsent[: _LARGEST_BATCH["metrics"]]
            try:
                self._client.log_batch(self._run_id, metrics=batch)
            except self._mlflow.MlflowException as error:
                self._silent_until = time.monotonic() + _PAUSE
                _log.warning("MLflow did not take %d values, which wait: %s", len(self._unsent), _first_line(error))
                return
            del self._unsent[: len(batch)]

    def close(self) -> None:
        if self._client is None:
            return
        self._silent_until = 0.0
        self.flush()
        try:
            self._client.set_terminated(self._run_id, "FINISHED")
        except self._mlflow.MlflowException as error:
            _log.warning("MLflow does not know that the run has ended: %s", _first_line(error))

    def _run(self) -> Any:
        """The run in MLflow: the one whose id the folder keeps, if that server has it, or a new one."""
        file = self.run_folder / RUN_ID_FILE
        if file.exists():
            try:
                run = self._client.get_run(file.read_text(encoding="utf-8").strip())
            except self._mlflow.MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                self._client.update_run(run.info.run_id, status="RUNNING")
                return run
        run = self._client.create_run(self._experiment_id(), run_name=self.run_name)
        with whole_file(file) as temporary:
            temporary.write_text(run.info.run_id + "\n", encoding="utf-8")
        return run

    def _experiment_id(self) -> str:
        name = self.config.experiment
        if (experiment := self._client.get_experiment_by_name(name)) is not None:
            return experiment.experiment_id
        try:
            return self._client.create_experiment(name)
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._client.get_experiment_by_name(name).experiment_id  # another run was quicker

    def _history(self, name: str) -> list[Any]:
        return self._client.get_metric_history(self._run_id, name)

    def _log_params(self, there: Mapping[str, str]) -> None:
        """Those that MLflow has are left as they are: it refuses to change one."""
        texts = {
            key: (value if isinstance(value, str) else json.dumps(value))[:_LONGEST_PARAM]
            for key, value in dotted(self.run_config).items()
        }
        params = [self._mlflow.entities.Param(key, text) for key, text in texts.items() if key not in there]
        for start in range(0, len(params), _LARGEST_BATCH["params"]):
            self._client.log_batch(self._run_id, params=params[start : start + _LARGEST_BATCH["params"]])

    def _keep(self, step: int, name: str, value: float) -> None:
        if (name, step) in self._known:
            return
        self._known.add((name, step))
        self._unsent.append(self._mlflow.entities.Metric(name, float(value), time.time_ns() // 10**6, step))


def _client_library() -> Any:
    # MLflow knows no other way to say these, the first before it is imported. Without it MLflow tells its makers of its
    # use; without the second it asks a server that is down for minutes, while the training waits.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        import mlflow
        import mlflow.entities
    except ImportError:
        raise ConfigError(
            "loggers.mlflow: MLflow's client is not installed here: pip install 'stillgrain[mlflow]', or leave out "
            "loggers.mlflow"
        ) from None
    return mlflow


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
