"""What comes from outside (a bundle, a config, a ledger, an archive) writes nowhere else, runs nothing, reads nothing
else, and cannot fill the machine: it is refused in words."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import struct
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from library.bundle import load_bundle
from library.config import load
from library.errors import BundleError, ConfigError, DataError
from library.inference.archive_inputs import RawFile, find_raws, named_raws
from library.inference.archive_names import FACTS, templated
from library.inference.ledger import Entry, Ledger
from library.sealed import pack_sealed

SECRET = b"-----BEGIN PRIVATE KEY-----"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "id_ed25519"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


# --- bundles ----------------------------------------------------------------------------------------------------------


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name", ["../evil.py", "/tmp/stillgrain-evil.py", "a/../../evil.py", "..\\evil.py", "model.safetensors/../x"]
)
def test_a_zip_whose_names_lead_out_writes_nothing_and_is_refused(
    small_bundle: Path, tmp_path: Path, name: str
) -> None:
    inside = tmp_path / "deep" / "deeper"
    inside.mkdir(parents=True)
    archive = zipped(inside / "bundle.zip", {**read_files_of(small_bundle), name: b"import os"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match="which the manifest does not know; remove it"):
        load_bundle(archive)
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/stillgrain-evil.py").exists()


def seal(bundle: Path, manifest: dict[str, Any]) -> None:
    """As its author would: the digest says only that nothing was damaged since."""
    del manifest["digest"]
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    manifest["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def read_files_of(bundle: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in bundle.iterdir()}


def test_a_link_out_of_a_bundle_is_neither_read_nor_packed(small_bundle: Path, tmp_path: Path, secret: Path) -> None:
    """Packing does not look at hashes: the target would have become part of what is handed on."""
    bundle = shutil.copytree(small_bundle, tmp_path / "bundle")
    (bundle / "notes.txt").symlink_to(secret)
    for use in (load_bundle, lambda path: pack_sealed(path, tmp_path / "packed.zip")):
        with pytest.raises(BundleError, match=r"notes\.txt is a link out of the bundle"):
            use(bundle)
    assert not (tmp_path / "packed.zip").exists()
    (bundle / "notes.txt").unlink()
    whole = (bundle / "model.safetensors").rename(bundle / ".weights")
    (bundle / "model.safetensors").symlink_to(whole.name)
    (tmp_path / "linked").symlink_to(bundle)
    assert load_bundle(tmp_path / "linked").name == "small"  # links inside of it, and to it, are its owner's business


def saying(archive: Path, num_bytes: int) -> Path:
    """A zip whose one entry claims another size: zipfile unpacks as much as that, and no more."""
    data = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(mark) + offset, num_bytes)
    archive.write_bytes(data)
    return archive


def test_a_zip_that_unpacks_to_far_more_than_it_is_is_refused_before_it_does(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "bomb.zip", {"manifest.json": b"0" * 2**20})
    with pytest.raises(BundleError, match="made to fill this machine"):
        load_bundle(saying(archive, 2**32 - 2))
    with pytest.raises(BundleError, match="made to fill this machine"):
        load_bundle(zipped(tmp_path / "many.zip", {f"{i}": b"" for i in range(65)}))


def test_a_zip_that_claims_to_be_smaller_than_it_is_gives_no_more_than_that(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "lie.zip", {"manifest.json": b"0" * 2**20})
    with pytest.raises(BundleError, match="Bad CRC-32"):
        load_bundle(saying(archive, 10))


@pytest.mark.parametrize("width", [10**5, 10**9])
def test_a_manifest_of_a_model_larger_than_any_machine_takes_no_memory(
    small_bundle: Path, tmp_path: Path, width: int
) -> None:
    bundle = shutil.copytree(small_bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["model"]["width"] = width
    seal(bundle, manifest)
    with pytest.raises(BundleError, match=r"does not fit the model of the manifest|that no machine holds"):
        load_bundle(bundle)


@pytest.mark.parametrize("kind", ["../evil", "os", "library.errors", "unet.Config", "__init__", "blocks", "", "unet\0"])
def test_a_manifest_names_models_and_no_other_modules(small_bundle: Path, tmp_path: Path, kind: str) -> None:
    bundle = shutil.copytree(small_bundle, tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["model"] = {"kind": kind}
    seal(bundle, manifest)
    with pytest.raises(BundleError, match="unknown kind"):
        load_bundle(bundle)


def test_a_manifest_that_is_nested_without_end_is_damaged(small_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(small_bundle, tmp_path / "bundle")
    (bundle / "manifest.json").write_text("[" * 200_000)
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        load_bundle(bundle)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    import torch

    torch.save({"weights": Evil()}, tmp_path / "model.pt")
    with pytest.raises(BundleError, match="is a pickle"):
        load_bundle(tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()


# --- configs ----------------------------------------------------------------------------------------------------------


def config(folder: Path, text: str) -> Path:
    (folder / "config.yaml").write_text(text)
    return folder / "config.yaml"


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir [{0}]",
        "!!python/object/new:os.mkdir [{0}]",
        "!!python/name:os.mkdir ''",
        "!!python/module:antigravity ''",
        "!include {1}",
        "!env HOME",
    ],
)
def test_a_tag_of_yaml_runs_nothing_and_reads_nothing(tmp_path: Path, secret: Path, tag: str) -> None:
    text = tag.format(tmp_path / "ran", secret)
    with pytest.raises(ConfigError, match="could not determine a constructor for the tag"):
        load(config(tmp_path, f"name: {text}\n"))
    with pytest.raises(ConfigError, match="could not determine a constructor for the tag"):
        load(config(tmp_path, "name: demo\n"), [f"name={text}"])
    assert not (tmp_path / "ran").exists()


def test_anchors_that_stand_for_more_than_a_machine_holds_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match="holds more than 1000000 values, once its anchors are followed"):
        load(config(tmp_path, "\n".join(lines)))
    assert load(config(tmp_path, "\n".join(lines[:3])))["a2"][9][9] == ["x"] * 10


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", f"a: {'[' * 3_000}", f"{'{a: ' * 3_000}"])
def test_what_is_nested_without_end_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="is nested too deep, or holds itself by an anchor"):
        load(config(tmp_path, text))


# --- archives ---------------------------------------------------------------------------------------------------------


def test_a_sidecar_that_is_a_link_to_something_else_is_not_copied(tmp_path: Path, secret: Path) -> None:
    """Sidecars are copied beside the outputs, where others may see them."""
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in ("a.dng", "b.dng", "c.dng"):
        (archive / name).write_bytes(b"raw")
    (archive / "a.xmp").symlink_to(secret)
    (archive / "b.xmp").write_text("<x/>")
    (archive / "c.dng.xmp").symlink_to("b.xmp")
    expected = {"a.dng": (), "b.dng": ("b.xmp",), "c.dng": ("c.dng.xmp",)}
    assert {raw.relative: raw.sidecars for raw in find_raws([archive], tmp_path / "out")} == expected
    named = named_raws(sorted(archive.glob("*.dng")))
    assert {os.path.basename(raw.path): raw.sidecars for raw in named} == expected


HOSTILE = [
    "../../evil",
    "/etc/cron.d/evil",
    "a/b",
    "..",
    ".",
    "",
    ".hidden",
    "a\0b",
    "a\nb",
    "C:\\evil",
    "~",
    "$(id)",
    "{stem}",
    "%2e%2e%2f",
    "x" * 64,
]


@pytest.mark.parametrize("field", FACTS)
def test_metadata_of_a_raw_never_becomes_a_path(tmp_path: Path, field: str) -> None:
    raw = RawFile("/photos/a.dng", "a.dng", "photos")
    for value in HOSTILE:
        facts = {**dict.fromkeys(FACTS, "fine"), field: value}
        for template in (f"{{{field}}}.{{ext}}", f"{{{field}}}/{{stem}}.{{ext}}"):
            (job,) = templated([raw], tmp_path, ["dng"], template, lambda _, facts=facts: facts)
            parts = Path(os.path.normpath(job.outputs["dng"])).relative_to(tmp_path).parts
            assert len(parts) == 1 + ("/" in template), value
            assert not any(part.startswith(".") or "\0" in part for part in parts), value


@pytest.mark.parametrize(
    "template", ["../{stem}.{ext}", "/{stem}.{ext}", "{stem}/../../x.{ext}", "{stem}/../..", "a/../../{stem}"]
)
def test_a_template_does_not_lead_out_of_the_output_folder(tmp_path: Path, template: str) -> None:
    with pytest.raises(ConfigError, match="outside of the output folder"):
        templated([RawFile("/photos/a.dng", "a.dng", "photos")], tmp_path, ["dng"], template, lambda _: {})


@pytest.mark.parametrize(
    "template", ["{stem.__class__}", "{stem[0]}", "{stem!r}", "{0}", "{}", "{stem:>99999999999}", "{__import__}"]
)
def test_a_template_asks_for_nothing_but_its_fields(tmp_path: Path, template: str) -> None:
    with pytest.raises(ConfigError, match="name: "):
        templated([RawFile("/photos/a.dng", "a.dng", "photos")], tmp_path, ["dng"], template, lambda _: {})


@pytest.mark.parametrize("path", ["../../home/id_ed25519", "/etc/passwd", "a/../../b"])
def test_a_ledger_that_names_files_outside_of_its_folder_is_refused(tmp_path: Path, path: str) -> None:
    """It says which output is whole, and from there another raw with the same bytes gets a copy."""
    entry = Entry(
        input_path="a.dng",
        input_sha256="0" * 64,
        input_size=1,
        input_mtime_ns=1,
        bundle_digest="d",
        parameters={},
        engine="1",
        output_path="a.exr",
        output_sha256="0" * 64,
        output_size=1,
        output_mtime_ns=1,
        status="done",
        seconds=1.0,
    )
    with Ledger.open(tmp_path) as ledger:
        ledger.record(entry)
        file = ledger.path
        assert list(ledger.keys()) == ["a.exr"]
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE outputs SET output_path = ?", (path,))
        connection.commit()
    with Ledger.open(tmp_path) as ledger:
        for read in (ledger.keys, lambda: list(ledger.rows())):
            with pytest.raises(DataError, match="is outside of its folder"):
                read()
