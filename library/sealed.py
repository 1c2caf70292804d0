"""A bundle's folder (or the same folder zipped), whose manifest vouches for every other file by its SHA-256.

What is in it, and what it means, say library/bundle.py (denoisers) and library/codec_bundle.py (codecs). Nothing is
unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from upath import UPath

from library.errors import BundleError
from library.files.atomic import whole_file, whole_folder
from library.files.places import is_local, place

FORMAT_VERSION = 1
MANIFEST, CARD = "manifest.json", "README.md"
# Of a zip. Weights of random numbers keep nine tenths of their size; those of zeros, which tests make, are small.
_SMALL_BYTES, _LARGEST_RATIO, _MOST_FILES = 2**28, 20, 64


def write_sealed(
    folder: str | Path | UPath, manifest: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], card: str
) -> None:
    """Write a bundle's folder, whole or not at all, replacing an older one.

    manifest  what is known of the model; format, versions, commit and hashes are added
    tensors   safetensors files by name
    card      README.md
    """
    with whole_folder(folder, last=MANIFEST) as temporary:
        for name, content in tensors.items():
            safetensors.torch.save_file(
                {key: tensor.detach().cpu().contiguous() for key, tensor in content.items()}, temporary / name
            )
        (temporary / CARD).write_text(card, encoding="utf-8")
        sealed = {
            "format_version": FORMAT_VERSION,
            **manifest,
            "versions": library_versions(),
            "git_commit": _git_commit(),
            "sha256": {name: sha256((temporary / name).read_bytes()) for name in sorted((*tensors, CARD))},
        }
        sealed["digest"] = _digest(sealed)
        (temporary / MANIFEST).write_text(_canonical(sealed), encoding="utf-8")


def read_sealed(
    path: str | Path | UPath, kind: str, expected: Collection[str]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the files of a bundle, each as it was written.

    kind      what the bundle must be: "denoiser" or "codec"
    expected  names of its files besides manifest and card
    raises    BundleError saying what is missing, damaged or foreign
    """
    files = read_files(place(path))
    manifest = _parse_manifest(path, files)
    if (there := manifest.get("type", "denoiser")) != kind:
        raise BundleError(path, f"is the bundle of a {there}, and that of a {kind} is needed here")
    known = {*expected, CARD}
    missing = sorted(known - files.keys())
    if missing:
        raise BundleError(path, f"{', '.join(missing)} is missing; copy the whole folder again")
    foreign = sorted(files.keys() - known - {MANIFEST})
    if foreign:
        raise BundleError(path, f"holds {', '.join(foreign)}, which the manifest does not know; remove it")
    for name in sorted(known):
        if sha256(files[name]) != manifest["sha256"].get(name):
            raise BundleError(
                path, f"{name} is not the file that was written (its SHA-256 differs); copy the bundle again"
            )
    return manifest, files


def bundle_type(path: str | Path | UPath) -> str:
    """What a bundle is of: "denoiser" or "codec". Raises `BundleError` when it has no readable manifest."""
    return _parse_manifest(path, read_files(place(path))).get("type", "denoiser")


def pack_sealed(folder: str | Path | UPath, archive: str | Path) -> None:
    """A bundle's folder as one zip file, whole or not at all. The same bundle gives the same bytes."""
    files = read_files(place(folder))
    with whole_file(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as target:
        for name in sorted(files):
            target.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), files[name], zipfile.ZIP_DEFLATED)


def library_versions() -> dict[str, str]:
    """Versions of what a result can depend on."""
    names = ("torch", "numpy", "safetensors", "rawpy")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def read_files(path: UPath) -> dict[str, bytes]:
    """Every file of a folder or zip by name; hidden ones are left out.

    raises  BundleError for a link that leads out of the folder, whose target would be shown or packed as the bundle's
            own, and for a zip that unpacks to far more than it is
    """
    if path.is_dir():
        found = [f for f in path.iterdir() if f.is_file() and not f.name.startswith(".")]
        inside = os.path.join(os.path.realpath(path), "") if is_local(path) else ""
        for file in found if inside else ():
            if file.is_symlink() and not os.path.realpath(str(file)).startswith(inside):
                raise BundleError(path, f"{file.name} is a link out of the bundle; copy the file itself there")
        return {f.name: f.read_bytes() for f in found}
    if not path.exists():
        raise BundleError(path, "does not exist; give the path of a bundle folder, or of the same folder zipped")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            if any(name.endswith(".pkl") for name in archive.namelist()):
                raise BundleError(
                    path,
                    "is a pickle written by torch.save, which can run code when opened; give a bundle folder or zip",
                )
            size, packed = sum(entry.file_size for entry in archive.infolist()), file.seek(0, 2)
            if size > max(_SMALL_BYTES, _LARGEST_RATIO * packed) or len(archive.infolist()) > _MOST_FILES:
                raise BundleError(
                    path,
                    f"would unpack {packed:,} bytes to {size:,} in {len(archive.infolist())} files, and a bundle's "
                    "weights hardly shrink: it is damaged, or made to fill this machine",
                )
            return {name: archive.read(name) for name in archive.namelist()}
    # Besides its own errors, zipfile raises what the damage makes it take the file for: encrypted, newer, endless.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise BundleError(
            path, f"is neither a bundle folder nor a zip of one ({error}); pickled weights (.pt, .pth) are never opened"
        ) from None


def _parse_manifest(path: str | Path | UPath, files: Mapping[str, bytes]) -> dict[str, Any]:
    if MANIFEST not in files:
        raise BundleError(
            path, f"holds no {MANIFEST}, so it is not a bundle; a training run writes one to <storage>/<name>/bundle"
        )
    try:
        manifest = json.loads(files[MANIFEST])
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BundleError(path, f"{MANIFEST} is damaged: it is not the JSON that was written") from None
    if version != FORMAT_VERSION:
        raise BundleError(
            path,
            f"has format version {version}, and this stillgrain reads {FORMAT_VERSION}; use the version that wrote it",
        )
    if manifest.get("digest") != _digest(manifest) or files[MANIFEST] != _canonical(manifest).encode():
        raise BundleError(
            path, f"{MANIFEST} is not the file that was written (its digest differs); copy the bundle again"
        )
    return manifest


def read_tensors(path: str | Path | UPath, name: str, files: Mapping[str, bytes]) -> dict[str, Tensor]:
    """The tensors of one file of a bundle; raises `BundleError` when it is no safetensors file."""
    try:
        return safetensors.torch.load(files[name])
    except SafetensorError as error:
        raise BundleError(
            path, f"{name} is not in safetensors format ({error}); pickled weights are never opened"
        ) from None


def check_size(
    path: str | Path | UPath, name: str, weights: Mapping[str, Tensor], build: Callable[[], nn.Module]
) -> None:
    """That weights have as many values as the model which the manifest describes, before that model takes memory: a
    manifest of some bytes may describe one larger than any machine.

    build   makes it
    raises  BundleError
    """
    try:
        with torch.device("meta"):
            wanted = sum(tensor.numel() for tensor in build().state_dict().values())
    except RuntimeError as error:  # so large that its size is no number
        raise BundleError(path, f"is of a model that no machine holds ({error})") from None
    there = sum(tensor.numel() for tensor in weights.values())
    if wanted != there:
        raise BundleError(
            path, f"{name} does not fit the model of the manifest: it holds {there:,} values, and that has {wanted:,}"
        )


def _canonical(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _digest(manifest: Mapping[str, Any]) -> str:
    return sha256(_canonical({key: value for key, value in manifest.items() if key != "digest"}).encode())


def sha256(content: bytes) -> str:
    """Of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def _git_commit() -> str | None:
    """Of this checkout; None when it runs from somewhere else, such as a cluster's copy of the working directory."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
