"""Denoising a tree of raws with actors: mirrored, resumable, and the same files as without Ray."""

from __future__ import annotations

import hashlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from library.bundle import load_bundle
from library.codec_bundle import load_codec, write_codec_bundle
from library.codecs import rawcodec
from library.config import validate
from library.errors import BundleError, ConfigError
from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.files.noise_profile import CameraProfile, IsoProfile, NoiseProfiles, write_noise_profiles
from library.inference.archive import Product, Summary, denoise_files, jobs_of
from library.inference.archive_events import FILE, read_events
from library.inference.codec import CodecEngine
from library.inference.denoise import denoise_file
from library.inference.engine import Engine
from library.inference.ledger import Ledger
from library.inference.outputs import Encoding
from library.inference.sgr_files import encode_file
from workloads import infer
from workloads.archives.page import PAGE

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
    """Path -> SHA-256 of every file that is neither ledger, nor log, nor page."""
    own = (FILE, PAGE)
    paths = [p for p in folder.rglob("*") if p.is_file() and ".stillgrain" not in p.parts and p.name not in own]
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


@pytest.mark.slow
def test_raws_in_a_bucket_are_developed_as_a_file_is(
    ray_cluster: str, s3: str, raw_dng: Path, small_bundle: Path, tmp_path: Path
) -> None:
    with fsspec.open(f"{s3}/raws/photo.dng", "wb") as file:
        file.write(raw_dng.read_bytes())  # pyright: ignore[reportAttributeAccessIssue]
    settings = {"raws": f"{s3}/raws", "output": str(tmp_path / "out"), "bundle": str(small_bundle)}
    config = validate(
        infer.Config, {**settings, "formats": ["jpeg", "jxl"], "jpeg_quality": 80, "scaling": {"workers": 1}}, "test"
    )
    assert infer.run(config).done == 1
    assert infer.run(config).skipped == 1
    outputs = {"jpeg": tmp_path / "alone" / "photo.jpg", "jxl": tmp_path / "alone" / "photo.jxl"}
    denoise_file(raw_dng, outputs, Engine(load_bundle(small_bundle)), Encoding(jpeg_quality=80))
    assert files_below(tmp_path / "out") == files_below(tmp_path / "alone")
    assert files_below(tmp_path / "alone").keys() == {"photo.jpg", "photo.jxl"}


@pytest.mark.slow
def test_a_file_that_wants_more_than_decoding_may_take_harms_only_itself(
    ray_cluster: str, archive: Path, small_bundle: Path, tmp_path: Path
) -> None:
    """Actors decode in a process of its own, which has limits."""
    mosaic, black_level = np.full((2400, 3200), 700, np.uint16), np.full((2, 2), 512.0)
    metadata = ImageMetadata()
    write_cfa_dng(
        archive / "large.dng", mosaic, cfa="RGGB", black_level=black_level, white_level=16383, metadata=metadata
    )
    settings = {"formats": ["png"], "decoding": {"memory_gb": 0.01}, "scaling": {"workers": 1}}
    summary = run(archive, small_bundle, tmp_path / "out", **settings)
    assert (summary.done, len(summary.failures)) == (2, 2)
    assert "10 MiB that decoding a file may take" in summary.failures[str(archive / "large.dng")]
    assert files_below(tmp_path / "out").keys() == {"a.png", "trip/day 1/b.png"}


def test_a_file_that_was_not_decoded_in_time_is_not_given_up_for_good(small_bundle: Path, tmp_path: Path) -> None:
    """It may have been the machine's fault; what a damaged file meets is the file's own."""
    mosaic, black_level = np.full((1200, 1600), 700, np.uint16), np.full((2, 2), 512.0)
    raws, metadata = tmp_path / "raws", ImageMetadata()
    write_cfa_dng(raws / "a.dng", mosaic, cfa="RGGB", black_level=black_level, white_level=16383, metadata=metadata)
    (raws / "bad.dng").write_bytes(b"II*\0 cut off")
    places = {"raws": str(raws), "output": str(tmp_path / "out"), "bundle": str(small_bundle)}
    results = {}
    for seconds in (1e-4, 60.0):
        config = validate(infer.Config, {**places, "decoding": {"seconds": seconds}}, "test")
        (tmp_path / "staging").mkdir(exist_ok=True)
        product = infer.product_of(config, load_bundle(small_bundle).digest)
        maker = infer.Maker(config.model_dump(mode="json"), product, str(tmp_path / "staging"))
        for job in jobs_of([raws], tmp_path / "out", ["dng"]):
            results[seconds, Path(job.raw).name] = maker.process(job)
    late, damaged = results[1e-4, "a.dng"], results[60.0, "bad.dng"]
    assert "was not decoded within" in (late.error or "")
    assert (late.lasting, damaged.lasting) == (False, True)
    assert results[60.0, "a.dng"].outputs.keys() == {"dng"}


def test_an_actor_that_finds_another_bundle_than_the_run_began_with_stops_it(
    small_bundle: Path, tmp_path: Path
) -> None:
    """A training publishes its best so far at the same place: what actors make of it is not the old one's."""
    write_noise_profiles(tmp_path / "noise.json", noise_profiles(1e-3))
    places = {"raws": "/raws", "output": str(tmp_path), "bundle": str(small_bundle)}
    config = validate(infer.Config, {**places, "noise_profile": str(tmp_path / "noise.json")}, "test")
    old = infer.product_of(config, "d" * 64)
    with pytest.raises(ConfigError, match=r"bundle: .* was replaced .*, and was sha256:dddddddddddd\): run again"):
        infer.Maker(config.model_dump(mode="json"), old, str(tmp_path))
    product = infer.product_of(config, load_bundle(small_bundle).digest)
    infer.Maker(config.model_dump(mode="json"), product, str(tmp_path))
    write_noise_profiles(tmp_path / "noise.json", noise_profiles(2e-3))
    with pytest.raises(ConfigError, match=r"noise_profile: .*noise\.json was replaced"):
        infer.Maker(config.model_dump(mode="json"), product, str(tmp_path))


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


def noise_profiles(a: float) -> NoiseProfiles:
    iso = IsoProfile(iso=100, a=a, b=1e-6, a_error=0.01, num_files=1)
    return NoiseProfiles(cameras=(CameraProfile(make="A", model="B", profiles=(iso,)),))


def test_what_changes_an_output_is_new_work_and_what_does_not_is_none(tmp_path: Path) -> None:
    def profile(a: float) -> str:
        write_noise_profiles(tmp_path / f"{a}.json", noise_profiles(a))
        return str(tmp_path / f"{a}.json")

    def product(**changes: object) -> Product:
        places = {"raws": "/raws", "output": "/out", "bundle": "/bundle"}
        return infer.product_of(validate(infer.Config, {**places, **changes}, "test"), "d" * 64)

    sgr = {"formats": ["sgr"]}
    ours = [
        *(product(), product(precision="bf16"), product(precision="bf16", tile=256)),
        *(product(strength=0.5), product(luma=0.5), product(chroma=0.5), product(ensemble=True)),
        *(product(backend="onnx"), product(backend="openvino"), product(backend="openvino", precision="bf16")),
        *(product(**sgr, quality=20), product(**sgr, quality=21), product(**sgr, quality=20, strength=0.5)),
        *(product(**sgr, bpp=20.0), product(**sgr, bpp=1.0)),
        product(noise_profile=profile(1e-3)),
        product(noise_profile=profile(2e-3)),
    ]
    assert len({p.key("a", "dng") for p in ours}) == len(ours)
    same = [product(tile=256), product(tile="auto", chroma=1.0), product(scaling={"memory_gb": 1.0})]
    same += [product(scaling={"workers": 1}), product(name="{stem}.{ext}"), product(verify=True)]
    assert {p.key("a", "dng") for p in same} == {product().key("a", "dng")}
    assert product().key("a", "dng") != product().key("a", "exr") != product().key("b", "exr")
    # What only one format has changes that one alone.
    lossy = product(jpeg_quality=50, jxl_distance=2.0)
    assert lossy.key("a", "dng") == product().key("a", "dng")
    assert lossy.key("a", "jpeg") != product().key("a", "jpeg")
    assert lossy.key("a", "jxl") != product().key("a", "jxl")
    smaller = product(dng_compression="lossless-jpeg")
    assert smaller.key("a", "exr") == product().key("a", "exr")
    assert smaller.key("a", "cfa-dng") != product().key("a", "cfa-dng")


def test_an_object_store_as_output_is_refused_with_the_reason(archive: Path, small_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="no object store has: give a folder"):
        validate(infer.Config, {"raws": str(archive), "output": "s3://b/out", "bundle": str(small_bundle)}, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"formats": ["sgr", "dng"], "quality": 20}, "run them apart"),
        ({"formats": ["sgr"]}, "either quality"),
        ({"formats": ["sgr"], "quality": 20, "bpp": 1.0}, "either quality"),
        ({"bpp": 2.0}, "settings of a codec"),
        ({"formats": ["sgr"], "quality": 20}, "a denoiser's, which makes no sgr"),
        ({"name": "{stem}_{isoo}.{ext}"}, "unknown field 'isoo'"),
        ({"jpeg_quality": 0}, "jpeg_quality"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_before_anything_is_written(
    changes: dict[str, object], message: str, archive: Path, small_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(archive, small_bundle, tmp_path / "out", **{"formats": ["dng"], **changes})
    assert not (tmp_path / "out").exists()
