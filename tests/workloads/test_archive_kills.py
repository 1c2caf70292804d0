"""Five hundred raws, ten kills and sixty hostile files, in small: what is left are the files of an undisturbed run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from library.bundle import load_bundle
from library.config import validate
from library.inference.archive import Archive, Product, Summary, jobs_of, one_after_another
from library.inference.archive_events import Events, read_events
from library.inference.archive_inputs import printable
from library.inference.archive_status import archive_status
from library.inference.archive_work import denoising
from library.inference.engine import Engine
from library.inference.ledger import Ledger
from tests.archive_kills import LAST, ArchiveRun, kill_at_random, outputs_of, write_archive
from workloads import infer

NUM_FILES, NUM_HOSTILE = 90, 62


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_whatever_is_killed_the_archive_ends_with_the_same_bytes_and_hostile_files_harm_only_themselves(
    ray_cluster: str, small_bundle: Path, tmp_path: Path
) -> None:
    hostile = write_archive(tmp_path / "raws", NUM_FILES, NUM_HOSTILE, side=200)
    settings = {"raws": str(tmp_path / "raws"), "output": str(tmp_path / "out"), "bundle": str(small_bundle)}
    with ArchiveRun(settings, ray_cluster) as run:
        run.wait(lambda: (tmp_path / "out" / "events.jsonl").exists() and bool(read_events(tmp_path / "out")))
        hostile.pop().unlink()
        killed = kill_at_random(run, ["actor", "driver"], random.Random(3), num_files=NUM_FILES)
        assert len(killed) == 2, f"only {killed} before the run ended: {run.log.read_text()[-2000:]}"
        run.finish()

    # What the kills have quarantined is tried again, and nothing else.
    summary = infer.run(validate(infer.Config, settings, "test"))
    num_good = NUM_FILES - NUM_HOSTILE
    assert (summary.done + summary.skipped, len(summary.failures)) == (num_good, 60), str(summary)
    assert summary.skipped >= num_good - 3
    # A folder with a raw's name is a folder like any other.
    assert summary.failures.keys() == {printable(str(path)) for path in hostile if path.name != "folder.dng"}
    assert all(name in reason for name, reason in summary.failures.items())
    assert archive_status(tmp_path / "out").waiting == 0
    assert not (tmp_path / "out" / ".stillgrain" / "staging").exists()

    alone = tmp_path / "alone"
    with Ledger.open(alone) as ledger, Events.open(alone) as events:
        engine = Engine(load_bundle(small_bundle))
        archive = Archive(ledger, Product.of_denoiser(engine), Summary(alone), events)
        good = [job for job in jobs_of([tmp_path / "raws"], alone, ["dng"]) if "hostile" not in job.raw]
        archive.run(good, one_after_another(denoising(engine)))
    assert outputs_of(tmp_path / "out") == outputs_of(alone)
    assert len(outputs_of(alone)) == num_good
    assert LAST not in outputs_of(alone)
