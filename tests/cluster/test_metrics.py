"""What Prometheus is told of the queue, and that the dashboard asks for nothing that nobody exports."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster import metrics
from cluster.errors import QueueError
from cluster.metrics import exposition, served
from cluster.store import NewJob, Store
from workloads import ray_metrics

DASHBOARD = Path(metrics.__file__).parent / "grafana" / "stillgrain.json"
# Ray's exporter puts this before what it is given.
EXPORTED = {*metrics.METRICS, *(f"ray_{name}" for name in (*ray_metrics.GAUGES, *ray_metrics.COUNTERS))}


def test_the_queue_in_numbers_is_what_prometheus_reads(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add([NewJob("a", "true"), NewJob("b", "true", after=(1,)), NewJob("c", "true")], now=1000.0)
        store.stop(3, now=1001.0)
        families = {family.name: family for family in text_string_to_metric_families(exposition(store, now=1060.0))}
    names = {name.removesuffix("_total") if kind == "counter" else name for name, (kind, _) in metrics.METRICS.items()}
    assert families.keys() == names
    states = {sample.labels["state"]: sample.value for sample in families["stillgrain_queue_jobs"].samples}
    assert (states["queued"], states["waiting"], states["stopped"], states["lost"]) == (1, 1, 1, 0)
    assert families["stillgrain_queue_oldest_wait_seconds"].samples[0].value == 60


def test_numbers_are_served_on_loopback_and_nothing_else_is(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add([NewJob("a", "true")], time.time())
    with served(tmp_path, 0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert 'stillgrain_queue_jobs{state="queued"} 1' in answer.read().decode()
        with pytest.raises(urllib.error.HTTPError) as refused, urllib.request.urlopen(f"http://127.0.0.1:{port}/"):
            pass
        refused.value.close()
        assert refused.value.code == 404
        with pytest.raises(QueueError, match="give another"), served(tmp_path, port):
            pass


def test_the_dashboard_asks_for_nothing_that_nobody_exports_and_shows_all_that_is() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", ())]
    asked = {name for t in targets for name in re.findall(r"\b(?:ray_)?stillgrain_\w+", t["expr"])}
    assert asked == EXPORTED


def test_every_panel_of_the_dashboard_has_a_place_a_title_a_source_and_a_query() -> None:
    """What Grafana 10 and later need of a panel; there is no published schema that is kept up."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"] == "stillgrain"
    assert dashboard["schemaVersion"] >= 38
    assert [v["type"] for v in dashboard["templating"]["list"] if v["name"] == "datasource"] == ["datasource"]
    ids, covered = set(), set()
    for panel in dashboard["panels"]:
        assert panel["title"], panel["id"]
        place = panel["gridPos"]
        cells = {(place["x"] + column, place["y"] + row) for column in range(place["w"]) for row in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & covered, f"{panel['title']} lies on another"
        covered |= cells
        assert panel["id"] not in ids
        ids.add(panel["id"])
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["targets"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
