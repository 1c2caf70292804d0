"""The command as a person meets it: in a process of its own, with exit codes, messages and silence where due."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DEMO = "workloads/configs/denoise_demo.yaml"


def stillgrain(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stillgrain", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def assert_refused(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def test_check_prints_the_resolved_config_as_yaml_and_starts_nothing(tmp_path: Path) -> None:
    result = stillgrain("check", DEMO, "optim.lr=1e-4", f"storage={tmp_path / 'runs'}")
    resolved = yaml.safe_load(result.stdout)
    assert result.returncode == 0
    assert resolved["optim"]["lr"] == 1e-4
    assert resolved["dataset"]["flips"] is True
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("optim.lrr=1", ("optim.lrr: unknown key", "did you mean 'lr'?")),
        ("model.kind=unnet", ("model.kind: unknown kind 'unnet'", "known: nafnet, unet")),
        ("losses.l3.weight=1", ("losses", "unknown kind 'l3'", "known: l1, ms_ssim, mse")),
        ("steps=many", ("steps: ", "valid integer", "'many'")),
        ("losses.ms_ssim.weight=1", ("losses.ms_ssim", "161 px", "dataset.crop is 128")),
        ("batch_size=3", ("batch_size is 3", "2 workers")),
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


def test_debug_adds_the_traceback_and_keeps_the_exit_code() -> None:
    result = stillgrain("check", DEMO, "steps=many", "--debug")
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
    first = stillgrain(*words)
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


def test_the_installed_command_is_this_checkout_and_no_copy_that_grows_old(tmp_path: Path) -> None:
    code = "import stillgrain, library; print(stillgrain.__file__, library.__file__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(ROOT / "stillgrain.py"), str(ROOT / "library" / "__init__.py")]
