"""The queue in numbers for Prometheus, over HTTP on this machine's loopback. The dispatcher runs outside of Ray, so
Ray's exporter does not know it; what runs inside says its own (workloads/ray_metrics.py).

    stillgrain queue dispatch --address http://127.0.0.1:8265 --metrics-port 9464

    scrape_configs: [{job_name: stillgrain_queue, static_configs: [{targets: ["127.0.0.1:9464"]}]}]
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import get_args

from cluster.errors import QueueError
from cluster.store import ACTIVE, State, Store

METRICS = {
    "stillgrain_queue_jobs": ("gauge", "Jobs in each state."),
    "stillgrain_queue_user_running": ("gauge", "Jobs of each user that run or are being submitted."),
    "stillgrain_queue_oldest_wait_seconds": ("gauge", "How long the oldest job has waited that could start."),
    "stillgrain_queue_attempts_total": ("counter", "Submissions to Ray, first ones and further ones."),
    "stillgrain_queue_lost_attempts_total": ("counter", "Attempts that ended without an exit code: Ray or a node."),
    "stillgrain_queue_paused": ("gauge", "1 while no further job is started."),
    "stillgrain_queue_dispatcher_up": ("gauge", "1 while a dispatcher holds the lease."),
    "stillgrain_queue_ray_unreachable": ("gauge", "1 while the dispatcher has no answer from Ray."),
}
"""What is exported: type and meaning of each."""


def exposition(store: Store, now: float) -> str:
    """Prometheus' text format, version 0.0.4."""
    counts, running = store.counts(), Counter(job.user for job in store.jobs(ACTIVE))
    attempts, lost = store.count_attempts()
    oldest = store.oldest_queued()
    values: dict[str, list[tuple[str, float]]] = {
        "stillgrain_queue_jobs": [(f'{{state="{state}"}}', counts.get(state, 0)) for state in get_args(State)],
        "stillgrain_queue_user_running": [(f'{{user="{_escaped(user)}"}}', n) for user, n in sorted(running.items())],
        "stillgrain_queue_oldest_wait_seconds": [("", 0.0 if oldest is None else max(0.0, now - oldest))],
        "stillgrain_queue_attempts_total": [("", attempts)],
        "stillgrain_queue_lost_attempts_total": [("", lost)],
        "stillgrain_queue_paused": [("", store.paused)],
        "stillgrain_queue_dispatcher_up": [("", store.lease()[1] > now)],
        "stillgrain_queue_ray_unreachable": [("", bool(store.setting("trouble")))],
    }
    lines = []
    for name, (kind, meaning) in METRICS.items():
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{labels} {float(value):g}" for labels, value in values[name]]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def served(folder: str | Path, port: int | None) -> Iterator[int | None]:
    """Answer Prometheus for the block, on loopback; gives the port.

    port    0 for a free one; None serves nothing
    raises  QueueError for one that is taken
    """
    if port is None:
        yield None
        return

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            # A connection to SQLite belongs to one thread, and each request has its own.
            with Store(folder) as store:
                body = exposition(store, time.time()).encode()
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            if self.path == "/metrics":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A line for every scrape is of no use to anybody."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise QueueError(f"metrics-port: {port} cannot be had ({error}): give another, or 0 for a free one") from None
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
