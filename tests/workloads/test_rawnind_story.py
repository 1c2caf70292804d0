"""The way of a data set of pairs, by the commands and the configs that a person has: a RawNIND that is made up and
served on loopback is fetched, sorted, checked, prepared, trained on and evaluated on. What was planted is what comes
out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from library.datasets.paired import Paired
from library.pairs.generate import PlantedFile, PlantedScene, read_planted, true_shift
from library.pairs.index import Failure, Pair, read_index
from library.training.recorder import read_metrics
from stillgrain import app
from tests.dataverse import of_folder, serving
from workloads.evaluations.results import Evaluation
from workloads.run import read_config

CONFIGS = Path(__file__).resolve().parents[2] / "workloads" / "configs"
MODEL = "{kind: nafnet, width: 4, encoder_blocks: [1], middle_blocks: 1, decoder_blocks: [1]}"


def stillgrain(*words: str | Path, exit_code: int = 0) -> str:
    """What a command prints; where it does not end as it should, the test ends with what it said."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    said = f"stillgrain {' '.join(map(str, words))}\nended with {result.exit_code}, {result.exception!r}:\n"
    assert result.exit_code == exit_code, said + result.output
    return result.stdout


@pytest.mark.slow
def test_a_data_set_goes_from_its_repository_to_a_judged_denoiser(ray_cluster: str, tmp_path: Path) -> None:
    """Trained by two workers and evaluated on Ray, as on a cluster; trained once more without it, which must come to
    the same: the samples of a step do not depend on who shares them. Prepared without it, since `test_prepare` shows
    that actors make the same bytes."""
    served, tree, storage = tmp_path / "served", tmp_path / "tree", tmp_path / "runs"
    stillgrain("data", "generate", served, "--flat", "--scenes=12", "--width=256", "--height=256", "--seed=2")
    planted = read_planted(served)
    with serving(of_folder(served)) as repository:
        stillgrain("data", "fetch", "rawnind", "--to", tmp_path / "download", "--from", repository.url)
    stillgrain("data", "organize", tmp_path / "download", "--to", tree)
    checked = json.loads(stillgrain("data", "check", tree, "--json", "--workers=2", exit_code=1))
    broken = {Path(file.path).name for file in planted.files if file.flaw}
    assert len(broken) == 5
    # Of two files of the same bytes either may be called the second.
    twins = {Path(file.same_as).name: Path(file.path).name for file in planted.files if file.same_as}
    bad = {Path(file["path"]).name: file["problems"] for file in checked["files"] if file["problems"]}
    assert {twins.get(name, name) for name in bad} == broken, bad

    words = [f"tree={tree}", f"storage={storage}", "pairs.tile=256", "scaling.workers=0"]
    stillgrain("run", CONFIGS / "prepare_rawnind.yaml", *words)
    prepared = storage / "prepared"
    rows = read_index(prepared)
    by_name = {Path(file.path).name: (scene, file) for scene in planted.scenes for file in scene.files}
    assert len(rows) == sum(len(scene.gt) * len(scene.files) for scene in planted.scenes)
    failed = {Path(row.f_path).name: row.error for row in rows if isinstance(row, Failure)}
    assert {twins.get(name, name) for name in failed} == broken, failed
    pairs = [row for row in rows if isinstance(row, Pair)]
    shifted = {row.key: _shift_as_planted(row, by_name) for row in pairs if row.alignment_ok}
    wrong = [row.f_path for row in pairs if row.alignment_ok and not shifted[row.key]]
    assert not wrong, f"{wrong} were shifted otherwise, and their rows are certain"
    assert len(shifted) >= 0.95 * len(pairs)

    words = [f"storage={storage}", f"dataset.prepared={prepared}", f"model={MODEL}", "dataset.crop=64"]
    words += ["dataset.validation_crop=176", "dataset.validation_pairs=4", "batch_size=4", "steps=24", "log_every=6"]
    words += ["validate_every=12", "checkpoint_every=12", "optim.lr=4e-3", "optim.warmup_steps=5"]
    config = read_config(CONFIGS / "denoise_pairs.yaml", words)
    _assert_mixed_and_unreserved(config.dataset.open(prepared, config.seed), planted.scenes)
    stillgrain("run", CONFIGS / "denoise_pairs.yaml", *words)
    stillgrain("run", CONFIGS / "denoise_pairs.yaml", *words, "name=alone", "scaling.workers=0")
    shared, alone = (read_metrics(storage / name) for name in ("pairs", "alone"))
    assert [(line["step"], line["name"]) for line in shared] == [(line["step"], line["name"]) for line in alone]
    for one, other in zip(shared, alone, strict=True):
        assert one["value"] == pytest.approx(other["value"], rel=1e-3), (one, other)
    first, last = (line["value"] for line in shared if (line["split"], line["name"]) == ("val", "psnr"))
    assert last > first

    words = [f"bundles={{pairs: {storage}/pairs/bundle}}", "baselines=[gaussian]", "crop=176", "scaling.workers=1"]
    words += [f"suites.{name}.prepared={prepared}" for name in ("test", "unseen")]
    words += [f"suites.clean.of.prepared={prepared}", f"output={storage}/evaluation"]
    stillgrain("run", CONFIGS / "evaluate_pairs.yaml", *words)
    evaluation = Evaluation.read(storage / "evaluation")
    for suite, prefixes in (("test", ("TEST_", "UNK_TEST_")), ("unseen", ("UNK_",)), ("clean", ("TEST_", "UNK_TEST_"))):
        result = evaluation.suites[suite]
        reserved = [scene for scene in planted.scenes if scene.name.startswith(prefixes)]
        if suite == "unseen":
            reserved = [scene for scene in reserved if not scene.name.startswith("UNK_TEST_")]
        assert {m.scene for m in result.measurements} == {scene.name for scene in reserved}
        assert result.methods == ["noisy", "gaussian", "pairs"]
        assert all(math.isfinite(value) for m in result.measurements for value in m.metrics.values())
        if suite != "clean":
            assert result.means["pairs"]["psnr"].value > result.means["noisy"]["psnr"].value
    assert evaluation.page.exists()


def _shift_as_planted(row: Pair, by_name: dict[str, tuple[PlantedScene, PlantedFile]]) -> bool:
    (scene, gt), (_, f) = (by_name[Path(path).name] for path in (row.gt_path, row.f_path))
    assert row.scene == scene.name
    # Mosaics are cropped to RGGB alike, so the shift is the cameras' own.
    return (row.shift_y, row.shift_x) == true_shift(gt, f)


def _assert_mixed_and_unreserved(dataset: Paired, scenes: tuple[PlantedScene, ...]) -> None:
    drawn = [dataset.store.pairs[index] for index in dataset.training_pairs]
    assert {pair.f_is_clean for pair in drawn} == {True, False}
    validated = {dataset.store.pairs[index].scene for index in dataset.validation_scenes}
    reserved = {scene.name for scene in scenes if scene.name.startswith(("TEST_", "UNK_"))}
    assert len(reserved) == 3
    assert not reserved & ({pair.scene for pair in drawn} | validated)
    assert not validated & {pair.scene for pair in drawn}
