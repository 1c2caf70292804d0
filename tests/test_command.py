"""The command as a person meets it: with exit codes, messages and silence where due."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.command import ROOT, assert_refused, stillgrain, stillgrain_alone

DEMO = "workloads/configs/denoise_demo.yaml"


def test_check_prints_the_resolved_config_as_yaml_and_starts_nothing(tmp_path: Path) -> None:
    result = stillgrain_alone("check", DEMO, "optim.lr=1e-4", f"storage={tmp_path / 'runs'}")
    resolved = yaml.safe_load(result.stdout)
    assert result.returncode == 0
    assert resolved["optim"]["lr"] == 1e-4
    assert resolved["dataset"]["flips"] is True
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("optim.lrr=1", ("optim.lrr: unknown key", "did you mean 'lr'?")),
        ("model.kind=unnet", ("model.kind: unknown kind 'unnet'", "known: demosaic, mobile, nafnet, unet, utnet3")),
        ("losses.l3.weight=1", ("losses", "unknown kind 'l3'", "known: charbonnier, l1, ms_ssim, mse")),
        ("steps=many", ("steps: ", "valid integer", "'many'")),
        ("losses.ms_ssim.weight=1", ("losses.ms_ssim", "161 px", "dataset.crop is 128")),
        ("batch_size=1", ("batch_size is 1", "2 workers")),
        ("frozen=[brain]", ("frozen names brain", "encoder, middle, decoder, head")),
        ("model={kind: demosaic}", ("nothing is left to train: model 'demosaic'",)),
        ("frozen=[encoder, middle, decoder, head]", ("nothing is left to train: model 'nafnet'", "leave one out")),
        ("workload=paint", ("workload: unknown workload 'paint'", "denoise")),
        ("model.in_channels=3", ("model.in_channels",)),
        ("validate_every=60", ("validate_every is 60", "log_every")),
        ("dataset.crop=130", ("dataset.crop is 130", "multiple of 16")),
        ("steps", ("'steps'", "key=value")),
    ],
)
def test_a_bad_word_is_refused_in_one_message_that_names_the_key(word: str, parts: tuple[str, ...]) -> None:
    result = stillgrain("check", DEMO, word)
    assert_refused(result, *parts)
    assert result.stderr.count("error:") == 1


def test_a_worker_and_a_check_of_its_config_import_neither_charts_nor_the_compiler_of_torch() -> None:
    """Either took two seconds of each start."""
    code = (
        "import sys; from workloads.run import read_config; read_config(sys.argv[1], []); "
        "import workloads.denoise; print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, DEMO], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"matplotlib.figure", "scipy", "torch._dynamo", "sympy"} & set(result.stdout.split())


def test_debug_adds_the_traceback_and_keeps_the_exit_code() -> None:
    result = stillgrain_alone("check", DEMO, "steps=many", "--debug")
    assert result.returncode == 2
    assert "Traceback" in result.stderr


@pytest.mark.parametrize("command", ["run", "check", "inspect", "develop", "denoise", "verify-tiling", "report"])
def test_help_teaches_with_an_example(command: str) -> None:
    result = stillgrain(command, "--help")
    assert result.returncode == 0
    assert f"Example: stillgrain {command}" in " ".join(result.stdout.split())


def test_inspect_prints_one_json_object_with_the_fields_of_a_raw_image(raw_dng: Path) -> None:
    facts = json.loads(stillgrain("inspect", raw_dng, "--json").stdout)
    assert facts.keys() >= {"cfa", "black_level", "white_level", "height", "width", "xyz_to_camera", "sha256", "iso"}
    assert "mosaic" not in facts


def test_a_missing_raw_is_refused_by_name(tmp_path: Path) -> None:
    assert_refused(stillgrain("inspect", tmp_path / "gone.cr2"), "gone.cr2: does not exist")


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    assert_refused(stillgrain("bundle", "verify", tmp_path), "holds no manifest.json")


def test_denoise_makes_files_skips_what_is_done_and_survives_a_bad_one(
    raw_dng: Path, small_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.cr2").write_bytes(b"II*\0 not a raw")
    words = ("denoise", raw_dng, tmp_path / "broken.cr2", "-o", tmp_path / "out", "--bundle", small_bundle)
    first = stillgrain_alone(*words)
    assert first.returncode == 1
    assert "1 denoised, 0 done before, 1 failed" in first.stdout
    assert "broken.cr2" in first.stdout
    assert (tmp_path / "out" / f"{raw_dng.stem}.dng").exists()
    assert "0 denoised, 1 done before, 1 failed" in stillgrain(*words).stdout


def test_develop_makes_a_picture(raw_dng: Path, tmp_path: Path) -> None:
    result = stillgrain("develop", raw_dng, "-o", tmp_path)
    assert result.stdout.strip() == str(tmp_path / f"{raw_dng.stem}.png")
    assert (tmp_path / f"{raw_dng.stem}.png").stat().st_size > 1000


def test_verify_tiling_prints_the_geometry_and_the_verdict(small_bundle: Path) -> None:
    result = stillgrain("verify-tiling", "--bundle", small_bundle)
    assert result.returncode == 0
    assert "halo" in result.stdout
    assert "bit for bit" in result.stdout


def test_bundle_show_and_pack(small_bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads(stillgrain("bundle", "show", small_bundle, "--json").stdout)
    assert manifest["model"]["kind"] == "nafnet"
    assert stillgrain("bundle", "pack", small_bundle, tmp_path / "b.zip").returncode == 0
    assert "verified" in stillgrain("bundle", "verify", tmp_path / "b.zip").stdout


RUNS = {
    "list": [],
    "show": ["RUN"],
    "compare": ["RUN..."],
    "clean": ["RUN..."],
    "tag": ["RUN"],
    "note": ["RUN", "TEXT"],
}


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Two runs as a list needs them: one that ended, and one whose config is broken."""
    folder = tmp_path / "runs"
    (folder / "done").mkdir(parents=True)
    (folder / "done" / "run.yaml").write_text("workload: denoise\nname: done\nsteps: 4\noptim: {lr: 1.0e-4}\n")
    lines = [("train", "loss", 2, 0.5), ("val", "psnr", 2, 31.0), ("val", "psnr", 4, 30.0)]
    (folder / "done" / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": step, "split": split, "name": name, "value": value}) + "\n"
            for split, name, step, value in lines
        )
    )
    (folder / "bad").mkdir()
    (folder / "bad" / "run.yaml").write_text("name: [\n")
    for step in (2, 4):
        checkpoint = folder / "done" / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text(json.dumps({"progress": {"step": step}}))
        (checkpoint / "tensors.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.mark.parametrize("command", RUNS)
def test_help_of_the_runs_teaches_with_an_example(command: str) -> None:
    text = " ".join(stillgrain("runs", command, "--help").stdout.split())
    assert f"Example: stillgrain runs {command}" in text
    assert "--storage" in text
    for argument in RUNS[command]:
        assert argument in text


def test_runs_are_listed_as_a_table_and_as_json_and_a_broken_one_too(storage: Path) -> None:
    listed = json.loads(stillgrain("runs", "list", "-s", storage, "--json").stdout)
    found = {run["name"]: run for run in listed}
    assert found["done"]["status"] == "finished"
    assert found["done"]["best"] == {"metric": "val/psnr", "mode": "max", "step": 2, "value": 31.0}
    assert found["bad"]["status"] == "broken"
    table = stillgrain("runs", "list", "-s", storage, "--sort", "val/psnr").stdout
    assert "4 / 4" in table
    assert "31 @ 2" in table
    assert "not valid YAML" in table


def test_a_run_is_shown_tagged_noted_and_found_by_its_tag(storage: Path) -> None:
    assert stillgrain("runs", "tag", "done", "paper", "draft", "-s", storage).stdout == "paper draft\n"
    assert stillgrain("runs", "tag", "done", "--remove", "draft", "-s", storage).stdout == "paper\n"
    assert stillgrain("runs", "note", storage / "done", "[bold]as it is[/bold]").returncode == 0
    shown = stillgrain("runs", "show", "done", "-s", storage).stdout
    assert "[bold]as it is[/bold]" in shown
    assert "val/psnr" in shown
    facts = json.loads(stillgrain("runs", "show", "done", "-s", storage, "--json").stdout)
    assert (facts["tags"], facts["config"]["optim"]["lr"]) == (["paper"], 1e-4)
    tagged = json.loads(stillgrain("runs", "list", "--tag", "paper", "-s", storage, "--json").stdout)
    assert [run["name"] for run in tagged] == ["done"]


def test_runs_are_compared_on_the_screen_and_on_a_page(storage: Path, tmp_path: Path) -> None:
    other = storage / "other"
    other.mkdir()
    (other / "run.yaml").write_text("workload: denoise\nname: other\nsteps: 4\noptim: {lr: 2.0e-4}\n")
    result = stillgrain("runs", "compare", "done", "other", "-s", storage, "-o", tmp_path / "compare.html")
    assert result.returncode == 0
    assert "optim.lr" in result.stdout
    assert result.stdout.endswith(f"{tmp_path / 'compare.html'}\n")
    assert "optim.lr" in (tmp_path / "compare.html").read_text()


def test_cleaning_says_what_it_would_do_until_it_is_told_to(storage: Path) -> None:
    tensors = storage / "done" / "checkpoints" / "step-00000004" / "tensors.safetensors"
    assert "nothing is yet, say --yes" in stillgrain("runs", "clean", "-s", storage).stdout
    assert tensors.exists()
    assert "removed: " in stillgrain("runs", "clean", "-s", storage, "--yes").stdout
    assert not tensors.exists()
    assert (storage / "bad").exists()
    assert_refused(stillgrain("runs", "clean", "--all", "--yes", "-s", storage), "--all removes whole runs: name them")
    assert stillgrain("runs", "clean", "bad", "--all", "--yes", "-s", storage).returncode == 0
    assert [child.name for child in storage.iterdir()] == ["done"]


def test_a_run_that_is_not_there_is_refused_with_those_that_are(storage: Path) -> None:
    assert_refused(stillgrain("runs", "show", "dnoe", "-s", storage), "did you mean 'done'?", "bad, done")
    assert_refused(stillgrain("runs", "list", "-s", storage / "gone"), "there is no folder", "--storage")


def test_the_installed_command_is_this_checkout_and_no_copy_that_grows_old(tmp_path: Path) -> None:
    code = "import stillgrain, library; print(stillgrain.__file__, library.__file__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(ROOT / "stillgrain.py"), str(ROOT / "library" / "__init__.py")]
