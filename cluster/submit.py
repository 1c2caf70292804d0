"""Configs -> jobs in the queue.

stillgrain submit workloads/configs/denoise_rawnind.yaml storage=/data/runs --priority 5 --retries 5
stillgrain submit experiments/ storage=s3://bucket/runs      # every *.yaml below, in the order of their names
stillgrain submit workloads/configs/denoise_demo.yaml --sweep-grid optim.lr=1e-3,3e-3 --sweep-grid batch_size=4,8
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import SubmitError
from cluster.jobqueue import DEFAULT_FOLDER
from cluster.package import megabytes, pack
from cluster.prepare import NAME, Resolve, entrypoint, prepare
from cluster.room import Room, shortage
from cluster.store import NewJob, Store

STALLED_AFTER_S = 86400.0
"""A day: longer than any workload is silent. Stopped by mistake it goes on where it was."""


def submit(
    configs: Sequence[str | Path],
    words: Sequence[str] = (),
    *,
    resolve: Resolve,
    folder: str | Path = DEFAULT_FOLDER,
    working_dir: str | Path = ".",
    name: str | None = None,
    user: str | None = None,
    priority: int = 0,
    after: Sequence[str | int] = (),
    retries: int = 3,
    resources: Mapping[str, float] | None = None,
    grid: Sequence[str] = (),
    labels: Sequence[str] = (),
    stalled_after: float | None = STALLED_AFTER_S,
    allow_pending: bool = False,
) -> dict[str, Any]:
    """Put jobs into the queue, all or none. No cluster and no dispatcher need be there.

    configs      YAML files, or folders of them, in the working directory
    words        `key=value`, laid over every one
    grid         `key=a,b,c`, several for their product: as many jobs of each config, each with the point in its name
    resolve      see `Resolve`
    folder       the queue's
    working_dir  what travels
    name         of the job; left out, the config's own. One of them only where there is one config
    user         whose job it is: users take turns, and may be limited; left out, who is logged in
    priority     higher goes first
    after        numbers or names of jobs that must have succeeded before
    retries      further attempts when one does not end well; never after a user's error
    resources    of all its workers, as {"GPU": 4}; left out, what `scaling` in the config says
    labels       by which jobs are limited together
    stalled_after  seconds without a new status or a new line in its log, after which a job is stopped and tried again
    allow_pending  take what no node has room for that the dispatcher has seen: some will come
    returns      what travels, and the jobs: working_dir, num_files, num_bytes, size, jobs: [{job, name, config}]
    raises       SubmitError saying what is wrong, and whatever `resolve` raises; QueueError
    """
    user = user or getpass.getuser()
    _check_settings(retries, user, labels, stalled_after)
    batch = prepare(configs, words, resolve=resolve, working_dir=working_dir, name=name, grid=grid)
    travels = batch.travels
    with Store(folder) as store:
        room = store.setting("room")
        for job in batch.jobs:
            if room and not allow_pending and (short := shortage(job.bundles, Room.from_json(room))):
                raise SubmitError(
                    f"{job.config}: {short}, as the dispatcher last saw the cluster: lower `scaling`, add nodes, or "
                    "say --allow-pending where some will come"
                )
        package = pack(travels, store.packages)
        jobs = [
            NewJob(
                name=job.name,
                entrypoint=entrypoint(job.config, job.words),
                user=user,
                priority=priority,
                after=tuple(store.find(which).id for which in after),
                retries=retries,
                resources=job.resources if resources is None else resources,
                bundles=job.bundles,
                labels=tuple(labels),
                stalled_after=stalled_after,
                allow_pending=allow_pending,
                package=package.name,
                metadata={"config": job.config, "resolved": job.resolved, "package": package.stem, **batch.commit},
            )
            for job in batch.jobs
        ]
        numbers = store.add(jobs, time.time())
    return {
        "working_dir": str(travels.folder),
        "num_files": len(travels.sizes),
        "num_bytes": travels.num_bytes,
        "size": megabytes(travels.num_bytes),
        **batch.commit,
        "jobs": [
            {"job": number, "name": job.name, "config": job.config}
            for number, job in zip(numbers, batch.jobs, strict=True)
        ],
    }


def _check_settings(retries: int, user: str, labels: Sequence[str], stalled_after: float | None) -> None:
    if retries < 0:
        raise SubmitError(f"retries: {retries} is below 0")
    if stalled_after is not None and stalled_after <= 0:
        raise SubmitError(f"stalled-after: {stalled_after:g} s is no time; leave it out for {STALLED_AFTER_S:g} s")
    if user == "*" or user.startswith("label:"):
        raise SubmitError(f"user: '{user}' is what limits of others are called; give a name")
    for label in labels:
        if not NAME.match(label):
            raise SubmitError(f"label: '{label}' may hold letters, digits, dot, dash and underscore, up to 128")
