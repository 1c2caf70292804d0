"""Denoising a tree of raws with actors: mirrored, resumable, and the same files as without Ray."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from ray.util.state import list_actors

from library.bundle import load_bundle
from library.codec_bundle import load_codec, write_codec_bundle
from library.codecs import rawcodec
from library.config import validate
from library.errors import BundleError, ConfigError
from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.inference.archive import Product, Summary, denoise_files, jobs_of
from library.inference.archive_events import FILE, read_events
from library.inference.archive_status import archive_status
from library.inference.codec import CodecEngine
from library.inference.denoise import denoise_file
from library.inference.engine import Engine
from library.inference.ledger import Ledger
from library.inference.sgr_files import encode_file
from workloads import infer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def archive(raw_dng: Path, tmp_path: Path) -> Path:
    """Two raws in a tree, one broken file, and files that are none."""
    raws = tmp_path / "raws"
    for name in ("a.dng", "trip/day 1/b.dng"):
        (raws / name).parent.mkdir(parents=True, exist_ok=True)
        (raws / name).write_bytes(raw_dng.read_bytes())
    (raws / "trip" / "broken.cr2").write_bytes(b"II*\0 cut off")
    (raws / "trip" / "notes.txt").write_text("not a raw")
    (raws / ".hidden.dng").write_bytes(b"not to be touched")
    return raws


def run(archive: Path, bundle: Path, output: Path, **changes: object) -> Summary:
    places = {"raws": str(archive), "output": str(output), "bundle": str(bundle)}
    return infer.run(validate(infer.Config, {**places, "formats": ["dng", "exr"], **changes}, "test"))


def files_below(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file that is neither ledger nor log."""
    paths = [p for p in folder.rglob("*") if p.is_file() and ".stillgrain" not in p.parts and p.name != FILE]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


@pytest.mark.slow
def test_outputs_mirror_the_tree_and_one_bad_file_harms_only_itself(
    ray_cluster: str, archive: Path, small_bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    summary = run(archive, small_bundle, output)
    assert (summary.done, summary.skipped, len(summary.failures)) == (2, 0, 1)
    assert "broken.cr2" in next(iter(summary.failures))
    assert summary.exit_code == 1
    assert files_below(output).keys() == {"a.dng", "a.exr", "trip/day 1/b.dng", "trip/day 1/b.exr"}
    with Ledger.open(output) as ledger:
        assert ledger.counts() == {"done": 4, "failed": 2, "quarantined": 0}

    # The same files as without Ray, bit for bit.
    engine = Engine(load_bundle(small_bundle))
    denoise_file(archive / "a.dng", {"dng": tmp_path / "a.dng", "exr": tmp_path / "a.exr"}, engine)
    for name in ("a.dng", "a.exr"):
        assert (tmp_path / name).read_bytes() == (output / name).read_bytes()

    # Again: nothing is done twice, and nothing changes.
    before = files_below(output)
    for verify in (False, True):
        again = run(archive, small_bundle, output, verify=verify)
        assert (again.done, again.skipped, again.remembered) == (0, 2, 1)
    assert files_below(output) == before

    # An output that went away is work again, with all else left alone.
    (output / "a.exr").unlink()
    third = run(archive, small_bundle, output)
    assert (third.done, third.skipped) == (1, 1)
    assert files_below(output) == before
    events = read_events(output)
    assert [e["done"] for e in events if e["event"] == "end"] == [2, 0, 0, 1]
    assert sorted(e["file"] for e in events if e["event"] == "failed") == [str(archive / "trip" / "broken.cr2")]


def test_a_bundle_that_is_none_stops_it_before_anything_is_written(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        run(archive, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_raws_that_differ_in_their_suffix_only_keep_it_in_their_outputs(tmp_path: Path) -> None:
    for name in ("x.cr2", "x.dng", "y.nef"):
        (tmp_path / name).write_bytes(b"")
    jobs = jobs_of([tmp_path], tmp_path / "out", ["dng"])
    assert [Path(job.outputs["dng"]).name for job in jobs] == ["x.cr2.dng", "x.dng.dng", "y.dng"]


def test_the_output_folder_inside_the_archive_is_not_searched(raw_dng: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.dng").write_bytes(raw_dng.read_bytes())
    assert jobs_of([tmp_path], tmp_path / "out", ["dng"]) == []


def test_two_files_of_one_name_are_refused_rather_than_overwritten(small_bundle: Path, tmp_path: Path) -> None:
    engine = Engine(load_bundle(small_bundle))
    with pytest.raises(ConfigError, match=r"(?s)1/x\.cr2 and .*2/x\.cr2 would both be written to"):
        denoise_files([tmp_path / "1" / "x.cr2", tmp_path / "2" / "x.cr2"], tmp_path / "out", engine, "dng")
    assert not (tmp_path / "out").exists()


def test_two_formats_of_one_suffix_are_refused(archive: Path, small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"formats: dng, cfa-dng would write the same file names"):
        run(archive, small_bundle, tmp_path / "out", formats=["dng", "cfa-dng"])


def test_the_archive_itself_is_refused_as_output(archive: Path, small_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="output: is the folder of the raw files itself"):
        run(archive, small_bundle, archive)


def test_a_file_that_was_not_made_here_is_never_overwritten(raw_dng: Path, small_bundle: Path, tmp_path: Path) -> None:
    """`denoise IMG.CR2 -o .` beside an IMG.dng that the camera or another program wrote."""
    (tmp_path / "x.cr2").write_bytes(raw_dng.read_bytes())
    (tmp_path / "x.dng").write_bytes(b"an original")
    engine = Engine(load_bundle(small_bundle))
    summary = denoise_files([tmp_path / "x.cr2"], tmp_path, engine, "dng")
    assert (summary.done, summary.exit_code) == (0, 1)
    assert "would overwrite" in summary.failures[str(tmp_path / "x.cr2")]
    assert (tmp_path / "x.dng").read_bytes() == b"an original"
    (tmp_path / "x.dng").unlink()
    assert denoise_files([tmp_path / "x.cr2"], tmp_path, engine, "dng").done == 1
    (tmp_path / "x.dng").write_bytes(b"cut short")
    assert denoise_files([tmp_path / "x.cr2"], tmp_path, engine, "dng").done == 1  # its own output it may replace


def test_an_archive_that_is_no_folder_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        run(tmp_path / "gone", small_bundle, tmp_path / "out")


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec without training."""
    torch.manual_seed(0)
    model = rawcodec.Config(width=8, latents=8, hyper_latents=4, encoder_blocks=1, decoder_blocks=1).build()
    folder = tmp_path_factory.mktemp("codec") / "bundle"
    write_codec_bundle(folder, model, name="plain", training={}, data_digest="none", metrics={}, step=0)
    return folder


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_after_an_actor_and_the_driver_were_killed_the_same_files_are_there_as_without_kills(
    ray_cluster: str, small_bundle: Path, tmp_path: Path
) -> None:
    raws, output = tmp_path / "raws", tmp_path / "out"
    for number in range(24):
        mosaic = np.random.default_rng(number).integers(600, 9000, (400, 400)).astype(np.uint16)
        levels = {"black_level": np.full((2, 2), 512.0), "white_level": 16383}
        write_cfa_dng(raws / f"{number:02}.dng", mosaic, cfa="RGGB", metadata=ImageMetadata(), **levels)
    shutil.copy(raws / "00.dng", raws / "twin.dng")
    (raws / "bad.dng").write_bytes(b"II*\0 cut off")
    settings = {"workload": "infer", "raws": str(raws), "output": str(output), "bundle": str(small_bundle)}
    (tmp_path / "infer.yaml").write_text(yaml.safe_dump(settings))

    def num_ended() -> int:
        return sum(event["event"] in ("done", "failed") for event in read_events(output))

    def workers() -> list[int]:
        """The processes of the run's actors, which load for a while before their first file."""
        alive = [("state", "=", "ALIVE"), ("class_name", "=", "_Worker")]
        return [actor.pid for actor in list_actors(ray_cluster, filters=alive, detail=True)]

    command = [sys.executable, "-m", "stillgrain", "run", str(tmp_path / "infer.yaml")]
    driver = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "RAY_ADDRESS": ray_cluster})
    try:
        wait_for(lambda: len(workers()) == 2, driver)
        pid = workers()[0]
        wait_for(lambda: num_ended() >= 1, driver)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: num_ended() >= 4, driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    num_before = num_ended()
    assert num_before < 26

    summary = run(raws, small_bundle, output, formats=["dng"])
    assert (summary.done + summary.skipped, len(summary.failures)) == (25, 1)
    assert summary.skipped >= num_before - 1
    engine = Engine(load_bundle(small_bundle))
    for raw in sorted(raws.glob("[0-9]*.dng")):
        denoise_file(raw, {"dng": tmp_path / "alone" / raw.name}, engine)
    shutil.copy(tmp_path / "alone" / "00.dng", tmp_path / "alone" / "twin.dng")
    assert files_below(output) == files_below(tmp_path / "alone")
    assert not (output / ".stillgrain" / "staging").exists()
    status = archive_status(output)
    assert (status.done, status.failed, status.quarantined, status.waiting) == (25, 1, 0, 0)


@pytest.mark.slow
def test_an_archive_is_encoded_as_single_files_are(
    ray_cluster: str, archive: Path, codec: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    settings = {"formats": ["sgr"], "quality": 20, "strength": 0.5, "name": "{stem}_{iso}.{ext}"}
    summary = run(archive, codec, output, **settings)
    assert (summary.done, len(summary.failures)) == (2, 1)
    assert "2 encoded" in str(summary)
    assert files_below(output).keys() == {"a_800.sgr", "b_800.sgr"}
    encode_file(archive / "a.dng", tmp_path / "a.sgr", CodecEngine(load_codec(codec)), quality=20, strength=0.5)
    assert (output / "a_800.sgr").read_bytes() == (tmp_path / "a.sgr").read_bytes()
    assert run(archive, codec, output, **settings).skipped == 2


def test_what_changes_an_output_is_new_work_and_what_does_not_is_none() -> None:
    def product(**changes: object) -> Product:
        places = {"raws": "/raws", "output": "/out", "bundle": "/bundle"}
        return infer.product_of(validate(infer.Config, {**places, **changes}, "test"), "d" * 64)

    sgr = {"formats": ["sgr"]}
    ours = [
        *(product(), product(precision="bf16"), product(precision="bf16", tile=256)),
        *(product(**sgr, quality=20), product(**sgr, quality=21), product(**sgr, quality=20, strength=0.5)),
        *(product(**sgr, bpp=20.0), product(**sgr, bpp=1.0)),
    ]
    assert len({p.key("a", "dng") for p in ours}) == len(ours)
    same = [product(tile=256), product(scaling={"workers": 1}), product(name="{stem}.{ext}"), product(verify=True)]
    assert {p.key("a", "dng") for p in same} == {product().key("a", "dng")}
    assert product().key("a", "dng") != product().key("a", "exr") != product().key("b", "exr")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formats": ["sgr", "dng"], "quality": 20}, "run them apart"),
        ({"formats": ["sgr"]}, "either quality"),
        ({"formats": ["sgr"], "quality": 20, "bpp": 1.0}, "either quality"),
        ({"strength": 0.5}, "settings of a codec"),
        ({"formats": ["sgr"], "quality": 20}, "a denoiser's, which makes no sgr"),
        ({"name": "{stem}_{isoo}.{ext}"}, "unknown field 'isoo'"),
        ({"raws": ["s3://photos/2024"]}, "is a URI"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_anything_is_written(
    changes: dict[str, object], message: str, archive: Path, small_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(archive, small_bundle, tmp_path / "out", **{"formats": ["dng"], **changes})
    assert not (tmp_path / "out").exists()
