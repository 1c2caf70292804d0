"""What is found of an archive, and what its outputs are called."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from library.bundle import load_bundle
from library.errors import ConfigError
from library.files.dng import write_cfa_dng
from library.files.metadata import ImageMetadata
from library.inference.archive import Archive, Product, Summary, jobs_of, one_after_another
from library.inference.archive_events import Events
from library.inference.archive_inputs import find_raws
from library.inference.archive_work import denoising
from library.inference.engine import Engine
from library.inference.ledger import Ledger


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Names with spaces, beyond ASCII, hidden ones, and files that are no raws. Nothing is opened, so all are empty."""
    for name in (
        "a.dng",
        "b.CR2",
        "2024 ünïcode 日本/é à.nef",
        "2024 ünïcode 日本/x.txt",
        ".hidden.dng",
        ".trash/t.dng",
    ):
        path = tmp_path / "raws" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "raws"


def found(*inputs: Path | str) -> list[str]:
    return [raw.relative for raw in find_raws(inputs, "/nowhere/out")]


def test_a_folder_gives_its_raws_in_order_and_nothing_else(tree: Path) -> None:
    assert found(tree) == ["2024 ünïcode 日本/é à.nef", "a.dng", "b.CR2"]
    assert found(tree, tree / "a.dng", tree) == found(tree)


def test_links_are_followed_loops_end_and_a_folders_own_name_wins(tree: Path, tmp_path: Path) -> None:
    (tree / "2024 ünïcode 日本" / "loop").symlink_to(tree)
    (tree / "0 link").symlink_to(tree / "2024 ünïcode 日本")
    (tree / "itself").symlink_to(tree / "itself")
    (tree / "itself.dng").symlink_to(tree / "itself.dng")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z.dng").touch()
    (tree / "elsewhere").symlink_to(tmp_path / "elsewhere")
    (tree / "link.dng").symlink_to(tmp_path / "elsewhere" / "z.dng")
    links = ["elsewhere/z.dng", "itself.dng", "link.dng"]
    assert found(tree) == ["2024 ünïcode 日本/é à.nef", "a.dng", "b.CR2", *links]


def test_globs_match_files_and_folders_at_any_depth(tree: Path) -> None:
    assert found(f"{tree}/*.dng") == ["a.dng"]
    assert found(f"{tree}/**/*.nef", f"{tree}/*.CR2") == ["2024 ünïcode 日本/é à.nef", "b.CR2"]
    assert found(f"{tree}/2024*") == ["2024 ünïcode 日本/é à.nef"]
    (tree / "[1].dng").touch()
    assert found(tree / "[1].dng") == ["[1].dng"]  # a file of that name is no glob
    with pytest.raises(ConfigError, match=r"\*\.arw matches no file"):
        found(f"{tree}/*.arw")


def test_a_glob_that_matches_the_output_folder_leaves_it_out(tree: Path) -> None:
    """The second run of a command whose first made that folder."""
    before = find_raws([f"{tree}/*"], tree / "out")
    (tree / "out").mkdir()
    (tree / "out" / "a.dng").touch()
    assert find_raws([f"{tree}/*"], tree / "out") == before != []
    with pytest.raises(ConfigError, match="is the folder of the raw files itself"):
        find_raws([tree / "out"], tree / "out")


def test_lists_name_files_and_folders_from_their_own_place(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("raws/b.CR2\r\n\nraws/2024 ünïcode 日本\n" + f"{tree}/a.dng\nraws/gone.dng")
    names = ["raws/2024 ünïcode 日本/é à.nef", "raws/a.dng", "raws/b.CR2", "raws/gone.dng"]
    assert found(tmp_path / "list.txt") == names
    table = pyarrow.table({"path": ["raws/b.CR2", f"{tree}/a.dng"], "stars": [3, 5]})
    pyarrow.parquet.write_table(table, tmp_path / "list.parquet")
    assert found(tmp_path / "list.parquet") == ["raws/a.dng", "raws/b.CR2"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "list.txt").rename(tmp_path / "sub" / "list.txt")
    (tmp_path / "sub" / "list.txt").write_text(f"{tree}/a.dng")
    assert found(tmp_path / "sub" / "list.txt") == [f"{tree}/a.dng".lstrip("/")]  # beside the list's own tree


@pytest.mark.parametrize(("name", "column"), [("x.parquet", {"file": ["a"]}), ("x.parquet", {"path": [1]})])
def test_a_table_without_paths_is_refused(name: str, column: dict[str, list[object]], tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table(column), tmp_path / name)
    with pytest.raises(ConfigError, match=r"x\.parquet has"):
        found(tmp_path / name)


def test_several_roots_are_merged_and_what_collides_is_refused_with_both_names(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "c.dng").touch()
    out = tmp_path / "out"
    assert [Path(job.outputs["dng"]).name for job in jobs_of([tree, tmp_path / "card"], out, ["dng"])] == [
        *("é à.dng", "a.dng", "b.dng", "c.dng"),
    ]
    (tmp_path / "card" / "a.nef").touch()
    for template in (None, "{stem}.{ext}"):
        with pytest.raises(ConfigError, match=r"raws/a\.dng and .*card/a\.nef would both be written to .*out/a\.exr"):
            jobs_of([tree, tmp_path / "card"], out, ["exr", "dng"], template=template)
    jobs = jobs_of([tree, tmp_path / "card"], out, ["dng"], template="{root}/{stem}_{suffix}.{ext}")
    assert {os.path.relpath(job.outputs["dng"], out) for job in jobs} == {
        *("card/a_nef.dng", "card/c_dng.dng", "raws/a_dng.dng", "raws/b_CR2.dng", "raws/é à_nef.dng"),
    }


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{stem}_{isoo}.{ext}", "unknown field 'isoo'; known: root"),
        ("{stem", "is no template"),
        ("{stem:>9}.{ext}", "formats a field"),
        ("../{stem}.{ext}", "outside of the output folder"),
        ("/{stem}.{ext}", "outside of the output folder"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(template: str, message: str, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        jobs_of([tree], tmp_path / "out", ["dng"], template=template)


def test_a_template_is_filled_from_metadata_which_is_read_once(tree: Path, tmp_path: Path) -> None:
    metadata = ImageMetadata(make="A/B", model="..", iso=800.0, timestamp="2024-05-06T07:08:09")
    levels = {"black_level": np.full((2, 2), 512.0), "white_level": 16383}
    write_cfa_dng(tree / "a.dng", np.full((64, 64), 900, np.uint16), cfa="RGGB", metadata=metadata, **levels)
    template, out = "{year}/{folder}/{make} {model} {iso} {date} {time}.{ext}", tmp_path / "out"
    for _ in range(2):
        with Ledger.open(out) as ledger:
            job = jobs_of([tree / "a.dng"], out, ["dng"], ledger=ledger, template=template)[0]
        assert os.path.relpath(job.outputs["dng"], out) == "2024/A_B unknown 800 2024-05-06 070809.dng"
        stat = (tree / "a.dng").stat()
        (tree / "a.dng").write_bytes(bytes(stat.st_size))
        os.utime(tree / "a.dng", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_sidecars_go_along_are_brought_up_to_date_and_never_overwrite_an_edit(
    small_bundle: Path, tmp_path: Path
) -> None:
    raws, out = tmp_path / "raws", tmp_path / "out"
    mosaic = np.random.default_rng(0).integers(600, 9000, (64, 64)).astype(np.uint16)
    levels = {"black_level": np.full((2, 2), 512.0), "white_level": 16383}
    write_cfa_dng(raws / "a.dng", mosaic, cfa="RGGB", metadata=ImageMetadata(), **levels)
    (raws / "a.xmp").write_text("adobe")
    (raws / "a.dng.xmp").write_text("darktable")
    (raws / "other.xmp").write_text("of no raw")
    engine = Engine(load_bundle(small_bundle))

    def run() -> None:
        with Ledger.open(out) as ledger, Events.open(out) as events:
            archive = Archive(ledger, Product.of_denoiser(engine), Summary(out), events)
            archive.run(jobs_of([raws], out, ["dng", "exr"]), one_after_another(denoising(engine)))

    run()
    copies = {path.name: path.read_text() for path in out.glob("*.xmp")}
    assert copies == {"a.xmp": "adobe", "a.dng.xmp": "darktable", "a.exr.xmp": "darktable"}
    (raws / "a.xmp").write_text("adobe, with stars")
    (out / "a.exr.xmp").write_text("edited beside the output")
    (raws / "a.dng.xmp").write_text("darktable again")
    run()
    assert (out / "a.xmp").read_text() == "adobe, with stars"
    assert (out / "a.dng.xmp").read_text() == "darktable again"
    assert (out / "a.exr.xmp").read_text() == "edited beside the output"

    # A run that is killed in the middle of a copy, and before it could say that another is its own.
    with Ledger.open(out) as ledger:
        ledger.connection.execute("DELETE FROM inputs WHERE path = ?", (str(out / "a.xmp"),))
    half = out / ".stillgrain" / "sidecar.tmp"
    half.write_text("half")
    half.chmod(0o444)
    run()
    (raws / "a.xmp").write_text("adobe, once more")
    run()
    assert (out / "a.xmp").read_text() == "adobe, once more"
