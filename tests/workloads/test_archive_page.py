"""The page of an archive: what it says, and that it can be mailed."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from library.bundle import load_bundle
from library.errors import DataError
from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.inference.archive import Summary, denoise_files
from library.inference.archive_events import FILE
from library.inference.engine import Engine
from workloads.archives.live import LiveTable
from workloads.archives.page import is_archive, note_run, write_archive_page
from workloads.report import write_report


@pytest.fixture(scope="module")
def archive(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three raws, one of which is none, denoised."""
    folder = tmp_path_factory.mktemp("archive")
    for seed, name in enumerate(("a.dng", "<b>.dng")):
        mosaic = np.random.default_rng(seed).integers(600, 9000, (64, 64)).astype(np.uint16)
        metadata, black_level = ImageMetadata(iso=800.0), np.full((2, 2), 512.0)
        write_cfa_dng(folder / name, mosaic, cfa="RGGB", black_level=black_level, white_level=16383, metadata=metadata)
    (folder / "<i>bad.dng").write_bytes(b"II*\0 cut off")
    output = folder / "denoised"
    denoise_files(sorted(folder.glob("*.dng")), output, Engine(load_bundle(small_bundle)), "dng")
    note_run(output, {"command": "stillgrain run infer.yaml", "versions": {"torch": "2"}, "config": "raws: <x>"})
    return output


def test_it_says_what_was_done_what_failed_and_why_and_how_it_was_made(archive: Path) -> None:
    assert is_archive(archive)
    page = Path(str(write_report(archive))).read_text()
    assert "2 raws have their 2 outputs, 1 failed." in page
    assert re.search(r'class="path">[^<]*&lt;i&gt;bad\.dng</td><td class="reason">is ', page)
    assert "&lt;b&gt;.dng" in page
    assert "<b>.dng" not in page
    assert page.count("data:image/png;base64,") == 4  # two raws, before and after
    assert "stillgrain run infer.yaml" in page
    assert "raws: &lt;x&gt;" in page


def test_it_loads_nothing_and_does_without_books_that_are_gone(archive: Path) -> None:
    page = Path(str(write_archive_page(archive))).read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    for path in (archive / FILE, archive / ".stillgrain" / "samples.json", archive / ".stillgrain" / "run.json"):
        kept = path.read_bytes()
        path.unlink()
        assert "2 raws have their 2 outputs" in Path(str(write_archive_page(archive))).read_text()
        path.write_bytes(kept)


def test_time_between_two_runs_counts_for_no_rate(archive: Path) -> None:
    """A hundred files in ten seconds, half of them a day later."""
    kept = (archive / FILE).read_bytes()
    start, lines = datetime(2026, 1, 1, tzinfo=UTC), []
    for run in range(2):
        for number in range(51):
            time = start + timedelta(days=run, seconds=number / 10)
            facts = {"event": "done", "file": f"{run} {number}", "memory": 2 * 10**9} if number else {"event": "run"}
            lines.append(json.dumps({"time": time.isoformat(), **facts}))
    (archive / FILE).write_text("\n".join(lines))
    page = Path(str(write_archive_page(archive))).read_text()
    (archive / FILE).write_bytes(kept)
    [rate] = re.findall(r"<dd>([\d,]+) <small>raws an hour", page)
    assert float(rate.replace(",", "")) == pytest.approx(36_000, rel=0.03)
    assert "2 <small>GB" in page
    assert page.count("<svg") == 2


def test_a_folder_without_a_ledger_is_refused(tmp_path: Path) -> None:
    assert not is_archive(tmp_path)
    with pytest.raises(DataError, match="holds no training run, sweep, evaluation or archive"):
        write_report(tmp_path)


def test_the_live_table_shows_rate_remaining_time_failures_and_memory(tmp_path: Path) -> None:
    summary = Summary(tmp_path, peak_bytes=1_230_000_000, failures={"a.dng": "a.dng: is empty", "b.dng": "b.dng: gone"})
    table = LiveTable(4, summary)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    table.count()
    console.print(table)
    before, after = console.export_text().split("0/4")[1].split("1/4")
    assert "not known yet" in before
    assert "raws an hour" in after
    for text in ("remaining", "less than a minute", "2", "1.23 GB", "a.dng: is empty", "b.dng: gone"):
        assert text in after
