from __future__ import annotations

import importlib
import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import Field
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from library.config import Frozen, mapping_of, validate
from library.errors import ConfigError
from library.training.loggers import Logger, LoggerConfig, mlflow, tensorboard
from library.training.recorder import Recorder

CONFIG = {"optim": {"lr": 1e-4, "betas": [0.9, 0.99]}, "notes": "", "losses": {}, "name": "run", "frozen": None}


class Holder(Frozen):
    loggers: mapping_of("library.training.loggers") = Field(default_factory=dict)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "run"


def record(run_folder: Path, config: LoggerConfig, first: int, last: int, *, die: bool = False) -> Logger:
    """A run from one step to another, a training line a step and a validation every second one."""
    logger = config.build(run_folder, "run", CONFIG)
    recorder = Recorder(run_folder, loggers=[logger])
    recorder.start(first)
    for step in range(first + 1, last + 1):
        recorder.log(step, "train", {"loss": 1 / step, "lr": 1e-4})
        if step % 2 == 0:
            recorder.log(step, "val", {"psnr": 20 + step / 3, "psnr.linear": 30.0})
    if not die:
        recorder.close()
    return logger


def expected(last: int) -> dict[str, list[tuple[int, float]]]:
    steps = range(1, last + 1)
    return {
        "train/loss": [(step, 1 / step) for step in steps],
        "train/lr": [(step, 1e-4) for step in steps],
        "val/psnr": [(step, 20 + step / 3) for step in steps if step % 2 == 0],
        "val/psnr.linear": [(step, 30.0) for step in steps if step % 2 == 0],
    }


# --- in a config ------------------------------------------------------------------------------------------------------


def test_loggers_are_chosen_by_kind_and_their_settings_checked():
    holder = validate(Holder, {"loggers": {"tensorboard": {}, "mlflow": {"tracking_uri": "http://host:5000"}}}, "test")
    assert [type(logger).__module__.rpartition(".")[2] for logger in holder.loggers.values()] == [
        "tensorboard",
        "mlflow",
    ]
    assert holder.loggers["mlflow"].experiment == "stillgrain"
    assert Holder.model_validate(holder.model_dump(mode="json")) == holder
    with pytest.raises(ConfigError, match=r"loggers\.mlflow\.tracking_uri: is required"):
        validate(Holder, {"loggers": {"mlflow": {}}}, "test")
    with pytest.raises(ConfigError, match=r"unknown kind 'wandb'; known: mlflow, tensorboard"):
        validate(Holder, {"loggers": {"wandb": {}}}, "test")


def test_a_password_is_refused_since_a_config_is_shown_to_all_and_the_message_does_not_repeat_it():
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        validate(mlflow.Config, {"tracking_uri": "https://someone:hunter2@host"}, "test")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="is no URI"):
        validate(mlflow.Config, {"tracking_uri": "mlruns"}, "test")


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


@pytest.mark.parametrize("resume_at", [None, 0, 3, 4])
def test_tensorboard_shows_each_value_once_however_often_the_run_was_interrupted(
    run_folder: Path, resume_at: int | None
):
    if resume_at is not None:
        logger = record(run_folder, tensorboard.Config(), 0, 5, die=True)
        logger.flush()
    record(run_folder, tensorboard.Config(), resume_at or 0, 6)
    shown = events(run_folder / "tensorboard")
    assert shown.keys() == expected(6).keys()
    for name, points in expected(6).items():
        assert [step for step, _ in shown[name]] == [step for step, _ in points]
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in points])  # float32 there


def test_tensorboard_may_have_one_folder_for_all_runs(run_folder: Path, tmp_path: Path):
    record(run_folder, tensorboard.Config(folder=str(tmp_path / "board")), 0, 2)
    assert events(tmp_path / "board" / "run").keys() == expected(2).keys()
    assert not (run_folder / "tensorboard").exists()


def test_without_tensorboard_a_run_is_refused_before_it_starts_with_what_to_install(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"not installed here: pip install 'stillgrain\[tensorboard\]', or leave"):
        tensorboard.Config().build(run_folder, "run", CONFIG)
    assert not run_folder.exists()


# --- MLflow -----------------------------------------------------------------------------------------------------------


def test_without_its_client_mlflow_is_refused_with_what_to_install(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"not installed here: pip install 'stillgrain\[mlflow\]'"):
        mlflow.Config(tracking_uri="http://host:5000").build(run_folder, "run", CONFIG)


class Server:
    """A tracking server as MLflow's REST API describes it, on the loopback: keeps what it is sent, in memory.

    It refuses what a real one refuses: a parameter that changes, a batch that is too large.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.refuses = False
        self.page_size = 25000
        endpoints = self.endpoints()

        class Handler(BaseHTTPRequestHandler):
            def handle_any(handler) -> None:
                url = urlsplit(handler.path)
                path = url.path.removeprefix("/api/2.0/mlflow/")
                content = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                body = json.loads(content) if content else query
                self.requests.append((path, body))
                status, answer = (403, error("PERMISSION_DENIED")) if self.refuses else endpoints[path](body)
                text = json.dumps(answer).encode()
                handler.send_response(status)
                handler.send_header("Content-Type", "application/json")
                handler.send_header("Content-Length", str(len(text)))
                handler.end_headers()
                handler.wfile.write(text)

            do_GET = do_POST = do_PATCH = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        def error(code: str) -> dict[str, str]:
            return {"error_code": code, "message": f"refused: {code}"}

        self.error = error
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def endpoints(self) -> dict[str, Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]]:
        def experiment_by_name(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            name = body["experiment_name"]
            if name not in self.experiments:
                return 404, self.error("RESOURCE_DOES_NOT_EXIST")
            return 200, {"experiment": {"experiment_id": self.experiments[name], "name": name}}

        def create_experiment(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            self.experiments[body["name"]] = str(len(self.experiments) + 1)
            return 200, {"experiment_id": self.experiments[body["name"]]}

        def shown(run: dict[str, Any]) -> dict[str, Any]:
            latest = [points[-1] for points in run["metrics"].values()]
            params = [{"key": key, "value": value} for key, value in run["params"].items()]
            return {"run": {"info": run["info"], "data": {"metrics": latest, "params": params}}}

        def create_run(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            run_id = f"{len(self.runs):032x}"
            info = {"run_id": run_id, "run_uuid": run_id, "experiment_id": body["experiment_id"]}
            info |= {"run_name": body["run_name"], "status": "RUNNING", "start_time": 1, "lifecycle_stage": "active"}
            self.runs[run_id] = {"info": info, "params": {}, "metrics": {}}
            return 200, shown(self.runs[run_id])

        def get_run(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            run = self.runs.get(body["run_id"])
            return (200, shown(run)) if run else (404, self.error("RESOURCE_DOES_NOT_EXIST"))

        def update_run(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            run = self.runs[body["run_id"]]
            run["info"]["status"] = body.get("status", run["info"]["status"])
            return 200, {"run_info": run["info"]}

        def log_batch(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            run = self.runs[body["run_id"]]
            params, metrics = body.get("params", []), body.get("metrics", [])
            if len(params) > 100 or len(metrics) > 1000:
                return 400, self.error("INVALID_PARAMETER_VALUE")
            for param in params:
                if run["params"].setdefault(param["key"], param["value"]) != param["value"]:
                    return 400, self.error("INVALID_PARAMETER_VALUE")
            for metric in metrics:
                run["metrics"].setdefault(metric["key"], []).append(metric)
            return 200, {}

        def history(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            points = self.runs[body["run_id"]]["metrics"].get(body["metric_key"], [])
            start = int(body.get("page_token") or 0)
            more = {"next_page_token": str(start + self.page_size)} if len(points) > start + self.page_size else {}
            return 200, {"metrics": points[start : start + self.page_size], **more}

        return {
            "experiments/get-by-name": experiment_by_name,
            "experiments/create": create_experiment,
            "runs/create": create_run,
            "runs/get": get_run,
            "runs/update": update_run,
            "runs/log-batch": log_batch,
            "metrics/get-history": history,
        }

    def shown(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        metrics = self.runs[run_id]["metrics"]
        return {name: [(int(p.get("step", 0)), float(p["value"])) for p in points] for name, points in metrics.items()}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def config_of(server: Server) -> mlflow.Config:
    return mlflow.Config(tracking_uri=server.uri)


def run_id(run_folder: Path) -> str:
    return (run_folder / "mlflow_run_id").read_text().strip()


def test_a_run_in_mlflow_has_its_name_its_parameters_every_value_and_its_end(run_folder: Path, server: Server):
    record(run_folder, config_of(server), 0, 6)
    run = server.runs[run_id(run_folder)]
    assert server.experiments == {"stillgrain": run["info"]["experiment_id"]}
    assert (run["info"]["run_name"], run["info"]["status"]) == ("run", "FINISHED")
    assert run["params"] == {
        "optim.lr": "0.0001",
        "optim.betas": "[0.9, 0.99]",
        "notes": "",
        "losses": "{}",
        "name": "run",
        "frozen": "null",
    }
    assert server.shown(run_id(run_folder)) == expected(6)


@pytest.mark.parametrize("resume_at", [0, 3, 4, 5])
def test_an_interrupted_run_goes_on_in_the_same_mlflow_run_without_a_value_twice(
    run_folder: Path, server: Server, resume_at: int
):
    server.page_size = 2
    record(run_folder, config_of(server), 0, 5, die=True)
    assert server.runs[run_id(run_folder)]["info"]["status"] == "RUNNING"
    record(run_folder, config_of(server), resume_at, 6)
    assert len(server.runs) == 1
    assert server.shown(run_id(run_folder)) == expected(6)
    record(run_folder, config_of(server), 6, 8)
    assert server.shown(run_id(run_folder)) == expected(8)
    assert server.runs[run_id(run_folder)]["info"]["status"] == "FINISHED"


def test_settings_that_may_change_between_attempts_do_not_stop_a_run(run_folder: Path, server: Server):
    """MLflow refuses to change a parameter, but the number of workers may differ after a restart."""
    record(run_folder, config_of(server), 0, 2, die=True)
    changed = {**CONFIG, "name": "other", "added": 1}
    logger = config_of(server).build(run_folder, "run", changed)
    logger.start(2)
    params = server.runs[run_id(run_folder)]["params"]
    assert (params["name"], params["added"]) == ("run", "1")


def test_a_server_that_fails_does_not_stop_a_run_and_gets_everything_later(
    run_folder: Path, server: Server, caplog: pytest.LogCaptureFixture
):
    logger = record(run_folder, config_of(server), 0, 2, die=True)
    server.refuses = True
    attempts = len(server.requests)
    for step in (3, 4, 5):
        logger.log(step, "train", {"loss": 1 / step})
    assert len(server.requests) == attempts + 1, (
        "one attempt, then a pause: a dead server must not slow down a training"
    )
    assert "MLflow did not take 1 values" in caplog.text
    server.refuses = False
    logger.close()
    assert server.shown(run_id(run_folder))["train/loss"] == [(step, 1 / step) for step in (1, 2, 3, 4, 5)]


def test_what_was_never_sent_before_a_run_died_is_sent_when_it_goes_on(run_folder: Path, server: Server):
    """`metrics.jsonl` has it, and the training does not log it again."""
    logger = config_of(server).build(run_folder, "run", CONFIG)
    recorder = Recorder(run_folder, loggers=[logger])
    recorder.start(0)
    server.refuses = True
    for step in range(1, 5):
        recorder.log(step, "train", {"loss": 1 / step, "lr": 1e-4})
        if step % 2 == 0:
            recorder.log(step, "val", {"psnr": 20 + step / 3, "psnr.linear": 30.0})
    server.refuses = False
    record(run_folder, config_of(server), 4, 6)
    assert server.shown(run_id(run_folder)) == expected(6)


def test_a_run_that_the_server_does_not_know_becomes_a_new_one_with_all_its_values(run_folder: Path, server: Server):
    record(run_folder, config_of(server), 0, 4, die=True)
    server.runs.clear()
    server.runs["other"] = {}
    record(run_folder, config_of(server), 4, 6)
    assert len(server.runs) == 2
    assert server.shown(run_id(run_folder)) == expected(6)


def test_many_values_and_parameters_go_in_batches_that_mlflow_takes(run_folder: Path, server: Server):
    logger = config_of(server).build(run_folder, "run", {f"key{n}": "x" * 7000 for n in range(205)})
    recorder = Recorder(run_folder, loggers=[logger])
    recorder.start(0)
    values = {f"v{n}": n / 7 for n in range(2500)} | {"nan": math.nan, "inf": math.inf}
    recorder.log(1, "train", values)
    run = server.runs[run_id(run_folder)]
    assert len(run["params"]) == 205
    assert {len(value) for value in run["params"].values()} == {6000}
    shown = server.shown(run_id(run_folder))
    assert {name: points[0][1] for name, points in shown.items() if name != "train/nan"} == {
        f"train/{name}": value for name, value in values.items() if name != "nan"
    }
    assert math.isnan(shown["train/nan"][0][1])


def test_a_server_that_refuses_at_the_start_is_a_users_error(run_folder: Path, server: Server):
    server.refuses = True
    with pytest.raises(
        ConfigError, match=r"tracking_uri: http://127.* cannot be used \(.*PERMISSION_DENIED.*start that"
    ):
        record(run_folder, config_of(server), 0, 1)
    with pytest.raises(ConfigError, match=r"tracking_uri: gopher://x cannot be used"):
        record(run_folder, mlflow.Config(tracking_uri="gopher://x"), 0, 1)


@pytest.mark.parametrize("resume_at", [0, 4])
def test_mlflows_own_storage_holds_the_same(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume_at: int
):
    """The one above is our reading of the API; this is MLflow's own code, by the storage that its small client has."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = mlflow.Config(tracking_uri=f"file://{tmp_path / 'mlruns'}", experiment="tests")
    record(run_folder, config, 0, 5, die=True)
    record(run_folder, config, resume_at, 6)
    client = importlib.import_module("mlflow").MlflowClient(config.tracking_uri)
    run = client.get_run(run_id(run_folder))
    shown = {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in expected(6)
    }
    assert shown == expected(6)
    assert run.data.params["optim.lr"] == "0.0001"
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
