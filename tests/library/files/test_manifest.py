"""Every file of the shared data does what its manifest says: read, with the facts that are there, or refused with the
reason. The table is printed: `pytest tests/library/files/test_manifest.py -s`."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from library.errors import ImageFileError, RawFileError
from library.files.exr import read_exr
from library.files.picture import read_image
from library.files.raw import read_raw

PICTURES = (".png", ".jpg", ".jxl", ".hdr")
SIDECAR = {"width": 768, "height": 512, "black_level": 600, "white_level": 16383}
"""What the manifest says of the two headless raws, beside their phase."""


@dataclass(frozen=True)
class Row:
    """A line of the manifest."""

    name: str
    sha256: str
    size: int
    says: str


def manifest(folder: Path) -> list[Row]:
    rows = []
    for line in (folder / "MANIFEST.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 6 and re.fullmatch(r"[0-9a-f]{64}", cells[3]):
            rows.append(Row(cells[0], cells[3], int(cells[4]), cells[5]))
    return rows


def what_happens(folder: Path, name: str, work: Path) -> tuple[str, dict[str, object]]:
    """`read` with facts, or `refused` with the reason."""
    path = folder / name
    try:
        return "read", facts_of(path, work)
    except (RawFileError, ImageFileError) as error:
        return "refused", {"reason": error.reason, "names": error.path}


def facts_of(path: Path, work: Path) -> dict[str, object]:
    if path.suffix == ".exr":
        image = read_exr(path)
        return {"height": image.rgb.shape[0], "width": image.rgb.shape[1], "finite": bool(np.isfinite(image.rgb).all())}
    if path.suffix in PICTURES:
        picture = read_image(path)
        height, width = picture.rgb.shape[:2]
        return {"height": height, "width": width, "encoding": picture.encoding, "space": picture.color_space}
    if path.suffix == ".json":
        return {"entries": len(json.loads(path.read_text(encoding="utf-8")))}
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return {"entries": sum(1 for _ in csv.DictReader(file))}
    if path.suffix == ".raw":  # headless: the manifest's own words, as a sidecar
        copy = work / path.name
        shutil.copy(path, copy)
        phase = re.search(r"_([rgb]{4})_", path.name)
        assert phase is not None
        copy.with_name(f"{copy.name}.json").write_text(json.dumps(SIDECAR | {"cfa": phase[1].upper()}))
        path = copy
    raw = read_raw(path)
    kind = "X-Trans" if len(raw.cfa) == 36 else raw.cfa
    return {
        "height": raw.height,
        "width": raw.width,
        "cfa": kind,
        "black": sorted(set(raw.black_level.flatten().tolist())),
        "white": raw.white_level,
        "iso": raw.iso,
        "noise": raw.noise_profile[0] if raw.noise_profile else None,
    }


REFUSALS = {
    "edge/canon_eos_6d_linear_iso1000.dng": ("must be rejected as non-CFA", "already demosaiced"),
    "edge/gopro_hero7_gopr8513.gpr": ("test of a clear error", "VC-5"),
    "edge/truncated_s40_600k.crw": ("must raise a clear error", "truncated"),
    # Not of the manifest's words, but of the project: what cannot be a picture says why.
    "exr/TestImages_WideFloatRange.exr": ("range and special-value test", "has the channels G"),
    "rgb16/hdr_room.png": ("HDR transfer", "HLG"),
}
"""What the manifest says in words, and what the refusal must say."""


def disagreements(row: Row, outcome: str, facts: dict[str, object]) -> list[str]:
    """Where what happened is not what the manifest says."""
    if row.name in REFUSALS:
        said, reason = REFUSALS[row.name]
        assert said in row.says
        wrong = [] if outcome == "refused" else [f"must be refused, but was read: {facts}"]
        if outcome == "refused" and not str(facts["names"]).endswith(row.name):
            wrong.append(f"the refusal names another file: {facts['names']}")
        return wrong if reason in str(facts.get("reason")) else [*wrong, f"the reason does not say '{reason}': {facts}"]
    if outcome == "refused":
        return [f"was refused: {facts['reason']}"]
    return [
        f"{key} is {facts.get(key)}, and the manifest says {said}"
        for key, said in facts_said(row).items()
        if not agrees(facts.get(key), said)
    ]


def facts_said(row: Row) -> dict[str, object]:
    """The facts in a line's prose, by the names of `facts_of`."""
    says, found = row.says, {}
    if row.name.startswith(("raw/", "synthetic/")) and not row.name.endswith(".exr"):
        if cfa := re.search(r"\b(RGGB|GRBG|GBRG|BGGR|X-Trans)\b", says):
            found["cfa"] = cfa[1]
        size = re.search(r"active (\d+)x(\d+)", says) or re.search(r"\b(\d{3,4})x(\d{3,4})\b", says)
        if size:
            found |= {"width": int(size[1]), "height": int(size[2])}
        if levels := re.search(r"black ~?(\d+) white (\d+)", says):
            found |= {"black": [float(levels[1])], "white": int(levels[2])}
        if iso := re.search(r"\bISO (\d+)\b", says):
            found["iso"] = float(iso[1])
        if noise := re.search(r"var = ([0-9.e+-]+)\*x \+ ([0-9.e+-]+)", says):
            found["noise"] = (float(noise[1]), float(noise[2]))
    elif row.name.startswith(("rgb", "hdr/", "noisy_real/")):
        if size := re.search(r"\b(\d{2,4})x(\d{2,4})\b(?! or)", says):
            found |= {"sides": {int(size[1]), int(size[2])}}
        if row.name.startswith("hdr/"):
            found["encoding"] = "linear"
    elif row.name.startswith("tables/"):
        if entries := re.search(r"^(\d+) (?:entries|camera modes)", says):
            found["entries"] = int(entries[1])
        elif entries := re.search(r"(\d+) \(camera, ISO\) rows|(\d+) white-balance presets", says):
            found["entries"] = int(entries[1] or entries[2])
    return found


def agrees(fact: object, said: object) -> bool:
    if isinstance(said, tuple) and isinstance(fact, tuple):
        return bool(np.allclose(np.array(fact), np.array(said), rtol=1e-3))
    return fact == said


def test_every_file_does_what_its_manifest_says(shared_data: Path, tmp_path: Path):
    rows = manifest(shared_data)
    wrong, table = [], []
    for row in rows:
        path = shared_data / row.name
        assert path.stat().st_size == row.size, row.name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == row.sha256, row.name
        outcome, facts = what_happens(shared_data, row.name, tmp_path)
        if "width" in facts:
            facts["sides"] = {facts["width"], facts["height"]}
        found = disagreements(row, outcome, facts)
        facts.pop("sides", None)
        wrong += [f"{row.name}: {line}" for line in found]
        happened = ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None)
        table.append((row.name, row.says, f"{outcome}: {happened}", "" if not found else "DIFFERS"))
    for name, says, happened, verdict in table:
        print(f"{name:58.58} | {says:60.60} | {happened:90.90} {verdict}")
    assert not wrong, "\n".join(wrong)
    assert len(rows) > 100


def test_every_file_is_in_the_manifest(shared_data: Path):
    known = {row.name for row in manifest(shared_data)} | {"MANIFEST.md"}
    found = {str(path.relative_to(shared_data)) for path in shared_data.rglob("*") if path.is_file()}
    assert {name for name in found - known if not name.startswith("LICENSES")} == set()
