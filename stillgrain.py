"""The `stillgrain` command: reads words, calls one documented function, prints what it returns. No logic."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from library.errors import StillgrainError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Train raw-image denoisers and raw codecs on Ray and run them over whole archives of raw files.

    Start with `make demo`, or look at a raw of yours: `stillgrain inspect photo.cr2`.

    Any command takes `--debug`, which shows the traceback of an error.""",
)
bundle_app = typer.Typer(no_args_is_help=True, help="Look at, check or zip a bundle: a trained model as a folder.")
app.add_typer(bundle_app, name="bundle")
runs_app = typer.Typer(
    no_args_is_help=True, help="Look after training runs: list, compare, tag them, free the space they take."
)
app.add_typer(runs_app, name="runs")
archive_app = typer.Typer(no_args_is_help=True, help="Look at a run over an archive, also while it goes on.")
app.add_typer(archive_app, name="archive")
data_app = typer.Typer(no_args_is_help=True, help="Pairs of clean and noisy raws: fetch, sort, check, make up.")
app.add_typer(data_app, name="data")
queue_app = typer.Typer(
    no_args_is_help=True, help="Jobs that wait for a Ray cluster: what runs when, in what order, how often."
)
app.add_typer(queue_app, name="queue")
cluster_app = typer.Typer(
    no_args_is_help=True, help="Check the files that launch a Ray cluster, or run one on this machine."
)
app.add_typer(cluster_app, name="cluster")

Words = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Words laid over the file: `optim.lr=1e-4`.")
]
ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file, for example workloads/configs/denoise_demo.yaml.")
]
Raws = Annotated[list[Path], typer.Argument(metavar="RAW...", help="Raw files.")]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="OUT", help="Folder for the results; made if it is not there.")
]
BundlePath = Annotated[
    str, typer.Option("--bundle", "-b", metavar="BUNDLE", help="Bundle folder, the same folder zipped, or its URI.")
]
BackendOption = Annotated[
    Literal["torch", "onnx", "openvino"],
    typer.Option(help="What computes the network; onnx and openvino need the extra [export]."),
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16"],
    typer.Option(help="Of the network. fp32 is exact; bf16 is faster where the processor has it."),
]
StorageOption = Annotated[
    str, typer.Option("--storage", "-s", metavar="STORAGE", help="Folder that holds the runs, or its URI.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Its name in the storage, or the path of its folder.")]
QueueOption = Annotated[
    str | None,
    typer.Option("--queue", metavar="FOLDER", help="Of the queue, on a local disk; left out, ~/.stillgrain/queue."),
]
AllowClear = Annotated[
    bool, typer.Option("--allow-clear", help="Talk in clear to an address that is not this machine.")
]
ClusterFolder = Annotated[
    str | None,
    typer.Option("--folder", metavar="DIR", help="Of the local cluster; left out, ~/.stillgrain/cluster."),
]
JobNames = Annotated[list[str], typer.Argument(metavar="JOB...", help="Numbers or names.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON value.")]
IsolateOption = Annotated[
    bool, typer.Option("--isolate", help="Decode in a process of its own, which a damaged file may crash or hang.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]


@app.command(epilog="Example: `stillgrain run workloads/configs/denoise_demo.yaml steps=200 name=quick`")
def run(config: ConfigFile, words: Words = None) -> None:
    """Run a workload: prepare, train, infer, simulate, evaluate. On the Ray that is there, or on one started here."""
    from workloads.run import read_config
    from workloads.run import run as run_workload

    result = run_workload(read_config(config, words or []))
    typer.echo(str(result))
    raise typer.Exit(result.exit_code)


@app.command(epilog="Example: `stillgrain check workloads/configs/denoise_demo.yaml optim.lr=1e-4`")
def check(config: ConfigFile, words: Words = None) -> None:
    """Print a config as it would run, with every default filled in, and start nothing."""
    from library.config import to_yaml
    from workloads.run import read_config

    typer.echo(to_yaml(read_config(config, words or [])), nl=False)


@app.command(epilog="Example: `stillgrain inspect photo.cr2 --json | jq .white_level`")
def inspect(
    raw: Annotated[Path, typer.Argument(metavar="FILE", help="A raw file.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    isolate: IsolateOption = False,
) -> None:
    """Show what is known about a raw file: size, CFA, levels, colour, camera."""
    from library.files.isolate import read_raw_isolated
    from library.files.raw import read_raw

    facts = (read_raw_isolated if isolate else read_raw)(raw).to_json()
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print_facts(facts)


@app.command(epilog="Example: `stillgrain calibrate ~/flats --dark ~/darks -o noise.json`")
def calibrate(
    raws: Annotated[
        list[str], typer.Argument(metavar="FOLDER...", help="Folders or raws; best of something even, out of focus.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The profile; the curves lie beside it as a picture.")
    ] = Path("noise.json"),
    dark: Annotated[
        list[str] | None, typer.Option(metavar="FOLDER", help="Of raws taken with the lens covered; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the noise of cameras, by ISO, from their raws: a profile that `dataset.sensor.table` takes.

    What the pictures do not show well enough is not guessed: it is left out, with the reason."""
    from workloads.calibration import calibrate as calibrate_cameras

    result = calibrate_cameras(raws, output, dark=dark or (), progress=lambda files: _progress(files, "reading"))
    typer.echo(json.dumps(result.to_json(), indent=2, ensure_ascii=False) if as_json else str(result))
    raise typer.Exit(result.exit_code)


@app.command(epilog="Example: `stillgrain compare IMG_0001.CR2 denoised/IMG_0001.dng --picture difference.png`")
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A raw, DNG, EXR, TIFF, PNG, JPEG, or a folder of them.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The same photograph; of a folder, files called alike.")],
    picture: Annotated[
        Path | None,
        typer.Option("--picture", "-p", metavar="PNG", help="Both and their difference; a folder for folders."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each pair.")] = False,
    isolate: IsolateOption = False,
) -> None:
    """Show what differs between two files of one photograph: levels, means, shadows, highlights, clipping, tags."""
    from library.inference.compare import compare_paths

    failures = 0
    for found in compare_paths(first, second, picture=picture, isolate=isolate):
        if isinstance(found, StillgrainError):
            failures += 1
            _say_error(found)
        else:
            typer.echo(json.dumps(found.to_json(), ensure_ascii=False) if as_json else str(found))
    raise typer.Exit(1 if failures else 0)


@app.command(epilog="Example: `stillgrain develop *.cr2 -o pictures`")
def develop(
    raws: Raws,
    output: Output,
    exposure_ev: Annotated[float | None, typer.Option("--ev", help="Stops; left out, the highlights decide.")] = None,
) -> None:
    """Make a PNG of each raw to look at, without denoising: OUT/STEM.png."""
    from library.inference.develop import develop_file

    failures = 0
    for raw in _progress(raws, "developing"):
        try:
            typer.echo(develop_file(raw, output / f"{raw.stem}.png", exposure_ev=exposure_ev))
        except StillgrainError as error:
            failures += 1
            _say_error(error)
    raise typer.Exit(1 if failures else 0)


@app.command(epilog="Example: `stillgrain denoise IMG_0001.CR2 -o denoised --bundle runs/demo/bundle --format dng`")
def denoise(
    raws: Raws,
    output: Output,
    bundle: BundlePath,
    output_format: Annotated[
        Literal["dng", "cfa-dng", "exr", "tiff", "png", "jpeg", "jxl"],
        typer.Option(
            "--format",
            "-f",
            help="dng: demosaiced; cfa-dng: a mosaic; exr: scene-linear; tiff, png, jpeg, jxl: developed.",
        ),
    ] = "dng",
    strength: Annotated[float, typer.Option(min=0, max=1, help="0 keeps the noise as it is, 1 removes it.")] = 1.0,
    luma: Annotated[
        float | None, typer.Option(min=0, max=1, help="The same for the noise of luminance; left out, STRENGTH.")
    ] = None,
    chroma: Annotated[float | None, typer.Option(min=0, max=1, help="For that of colour.")] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Mean over eight mirrored and turned forms, for eight times the work.")
    ] = False,
    backend: BackendOption = "torch",
    precision: PrecisionOption = "fp32",
    device: DeviceOption = "cpu",
    tile: Annotated[
        Any,
        typer.Option(
            metavar="auto|N",
            parser=lambda word: word if word == "auto" else int(word),
            help="Packed pixels a side. auto: as large as memory allows where the result stays the same.",
        ),
    ] = "auto",
    memory: Annotated[
        float, typer.Option(metavar="GIB", min=0.5, help="What the process may come to, to which `auto` keeps.")
    ] = 4.0,
    noise_profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="From `calibrate`, for a bundle of CFA planes, which is told the noise."),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Also OUT/STEM.report.json and .png: what changed, as `compare` shows it.")
    ] = False,
    compress: Annotated[
        bool, typer.Option("--compress", help="Of dng and cfa-dng: losslessly, smaller by a quarter to a half.")
    ] = False,
    isolate: IsolateOption = False,
) -> None:
    """Denoise raw files: OUT/STEM.dng. What is done already is skipped; a bad file harms only itself."""
    from library.bundle import load_bundle
    from library.files.noise_profile import read_noise_profiles
    from library.inference.archive import denoise_files
    from library.inference.compare import report_outputs
    from library.inference.engine import Engine
    from library.inference.outputs import Encoding
    from library.inference.strength import Strength

    engine = Engine(
        load_bundle(bundle),
        tile=tile,
        precision=precision,
        device=device,
        backend=backend,
        strength=Strength(strength if luma is None else luma, strength if chroma is None else chroma),
        ensemble=ensemble,
        memory=int(memory * 2**30),
        noise=None if noise_profile is None else read_noise_profiles(noise_profile),
    )
    typer.echo(str(engine.opened), err=True)
    summary = denoise_files(
        raws,
        output,
        engine,
        output_format,
        encoding=Encoding(dng_compression="lossless-jpeg" if compress else "none"),
        isolate=isolate,
        progress=lambda jobs: _progress(jobs, "denoising"),
    )
    typer.echo(str(summary))
    if report:
        report_outputs(raws, output, output_format)
    raise typer.Exit(summary.exit_code)


@app.command(epilog="Example: `stillgrain encode IMG_0001.CR2 -o IMG_0001.sgr --bundle runs/codec/bundle --quality 32`")
def encode(
    raw: Annotated[Path, typer.Argument(metavar="RAW", help="A raw file.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The compressed file: NAME.sgr.")],
    bundle: BundlePath,
    quality: Annotated[
        int | None, typer.Option("--quality", "-q", metavar="0..63", help="0 gives the smallest file.")
    ] = None,
    bpp: Annotated[
        float | None, typer.Option(metavar="R", help="Instead: bits of the file per photosite to aim at.")
    ] = None,
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="Of denoising: 0 keeps the noise as it is, 1 removes it.")
    ] = 1.0,
    noise: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="A B", help="Variance A x + B; left out, the file's NoiseProfile or an estimate."),
    ] = None,
    tile: Annotated[int, typer.Option(help="Photosites a side that can be decoded alone; a power of two.")] = 1024,
    coder: Annotated[
        Literal["rans", "constriction"], typer.Option(help="Of the streams; constriction is needed to decode them too.")
    ] = "rans",
    denoiser: Annotated[
        str | None, typer.Option(metavar="BUNDLE", help="A denoiser that goes before a codec of clean raws.")
    ] = None,
    thumbnail: Annotated[bool, typer.Option("--thumbnail", help="Put a small JPEG into the file.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read the file back and decode every tile.")] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Compress a raw file: denoised, demosaiced and coded by one network. Says the bits that are on disk."""
    from library.bundle import load_bundle
    from library.codec_bundle import load_codec
    from library.inference.codec import CodecEngine
    from library.inference.engine import Engine
    from library.inference.sgr_files import encode_file

    engine = CodecEngine(load_codec(bundle), device=device)
    with _busy(f"encoding {raw.name}"):
        encoded = encode_file(
            raw,
            output,
            engine,
            quality=quality,
            bpp=bpp,
            strength=strength,
            noise=noise,
            tile=tile,
            coder=coder,
            thumbnail=thumbnail,
            verify=verify,
            denoiser=Engine(load_bundle(denoiser), device=device) if denoiser else None,
        )
    typer.echo(f"{encoded}{', verified' if verify else ''}")


@app.command(epilog="Example: `stillgrain decode IMG_0001.sgr -o IMG_0001.dng --bundle runs/codec/bundle`")
def decode(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="NAME.sgr.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Its suffix says what: .dng, .exr, .tiff, .png.")
    ],
    bundle: BundlePath,
    mosaic: Annotated[bool, typer.Option("--mosaic", help="For .dng: a mosaic, not a picture.")] = False,
    region: Annotated[
        str | None, typer.Option(metavar="TOP,LEFT,HEIGHT,WIDTH", help="Only this part, in photosites.")
    ] = None,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Decode what is whole of a damaged file; the rest becomes flat.")
    ] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Make a picture of a compressed raw. It needs the bundle that made the file."""
    from library.codec_bundle import load_codec
    from library.inference.codec import CodecEngine
    from library.inference.sgr_files import decode_file, format_of, parse_region

    output_format = format_of(output, mosaic=mosaic)
    engine = CodecEngine(load_codec(bundle), device=device)
    with _busy(f"decoding {file.name}"):
        decoded = decode_file(
            file, {output_format: output}, engine, region=parse_region(region) if region else None, salvage=salvage
        )
    typer.echo(str(decoded))
    raise typer.Exit(1 if decoded.damaged_tiles else 0)


@app.command(epilog="Example: `stillgrain info IMG_0001.sgr --json | jq .sizes`")
def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="NAME.sgr.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Also read every tile and check it.")] = False,
) -> None:
    """Show what is in a compressed file: picture, codec, sizes, camera. Needs no bundle."""
    from library.inference.sgr_files import describe_file

    facts = describe_file(file, check=check)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print_facts(facts)
    raise typer.Exit(1 if facts.get("damaged_tiles") else 0)


@app.command(epilog="Example: `stillgrain report runs/demo --evaluation runs/demo/evaluation`")
def report(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Of a training run, a sweep, an evaluation or an archive.")
    ],
    evaluation: Annotated[
        Path | None, typer.Option(help="For a run: output folder of a workload: evaluate, to be shown on its page.")
    ] = None,
    archive: Annotated[
        list[Path] | None, typer.Option(help="For a run: output folder of a workload: infer; may be repeated.")
    ] = None,
    steps: Annotated[
        Path | None, typer.Option(help="For a run: lines of seconds, a tab and a command, to be shown.")
    ] = None,
) -> None:
    """Write the folder's page anew: curves, pictures, tables, in one file that needs nothing else."""
    from workloads.report import read_steps, write_report

    page = write_report(folder, evaluation=evaluation, archives=archive or (), steps=read_steps(steps) if steps else ())
    typer.echo(page)


@app.command(epilog="Example: `stillgrain promote runs/loss_weights --best val/ms_ssim -o runs/chosen`")
def promote(
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="Folder of a sweep, or its URI.")],
    best: Annotated[
        str | None, typer.Option(metavar="METRIC", help="That decides; left out, the sweep's first.")
    ] = None,
    trial: Annotated[int | None, typer.Option(metavar="N", help="Instead: the trial of that number.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT", help="Left out, `promoted` in the sweep's folder.")
    ] = None,
) -> None:
    """Copy the bundle and the config of a sweep's winner to a folder that other runs can start from."""
    from workloads.sweeps.promote import promote as copy_winner

    typer.echo(str(copy_winner(sweep, output, best=best, trial=trial)))


@app.command(epilog="Example: `stillgrain export runs/demo/bundle --to dtmodel -o demo.dtmodel --raw photo.cr2`")
def export(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="Of a denoiser: folder, zip or URI.")],
    to: Annotated[Literal["onnx", "dtmodel", "openvino"], typer.Option(help="dtmodel: a package for darktable.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT", help="NAME.onnx, NAME.dtmodel, or a folder for openvino.")
    ],
    tile: Annotated[
        int | None, typer.Option(help="Input pixels a side; left out, any size, and 512 for darktable.")
    ] = None,
    linear: Annotated[
        str | None, typer.Option(metavar="BUNDLE", help="For darktable: an RGB denoiser, for what is no Bayer raw.")
    ] = None,
    card: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="For darktable: license, author, source, paper, ...")
    ] = None,
    raw: Annotated[
        Path | None, typer.Option(metavar="RAW", help="For darktable: compare its way with ours on this raw.")
    ] = None,
) -> None:
    """Write a bundle for ONNX Runtime, darktable or OpenVINO. It must reproduce the golden tiles, or is not written."""
    from library.export.export import export_bundle

    fields = {key: value for key, _, value in (word.partition("=") for word in card or [])}
    typer.echo(str(export_bundle(bundle, output, to=to, tile=tile, linear=linear, card=fields, raw=raw)))


@app.command("verify-tiling", epilog="Example: `stillgrain verify-tiling --bundle runs/demo/bundle`")
def verify_tiling(
    bundle: BundlePath,
    precision: PrecisionOption = "fp32",
    device: DeviceOption = "cpu",
    backend: BackendOption = "torch",
) -> None:
    """Prove on this machine that tiles give what the whole image gives: bit for bit in fp32, within a bound in bf16."""
    from library.bundle import load_bundle
    from library.inference.verify import verify_tiling as verify

    with _busy("comparing tiles with the whole image"):
        report = verify(load_bundle(bundle), precision=precision, device=device, backend=backend)
    typer.echo(str(report))
    raise typer.Exit(0 if report.exact or not report.promised else 1)


@app.command()
def version() -> None:
    """Print the versions that results depend on."""
    import importlib.metadata

    from library.sealed import library_versions

    _print_facts({"stillgrain": importlib.metadata.version("stillgrain"), **library_versions()})


@bundle_app.command("show", epilog="Example: `stillgrain bundle show runs/demo/bundle --json`")
def bundle_show(
    bundle: str, as_json: Annotated[bool, typer.Option("--json", help="The whole manifest.")] = False
) -> None:
    """Show what a bundle is: model, contract, metrics, origin."""
    from library.codec_bundle import load_any

    manifest = load_any(bundle).manifest
    if as_json:
        typer.echo(json.dumps(manifest, indent=2))
    else:
        _print_facts({key: value for key, value in manifest.items() if key not in ("training", "sha256")})


@bundle_app.command("verify", epilog="Example: `stillgrain bundle verify runs/demo/bundle`")
def bundle_verify(bundle: str) -> None:
    """Check every hash of a bundle and reproduce its golden tiles on this machine."""
    from library.codec_bundle import load_any

    with _busy("verifying"):
        loaded = load_any(bundle)
    typer.echo(f"{bundle}: verified, {loaded.name} sha256:{loaded.digest}")


@bundle_app.command("pack", epilog="Example: `stillgrain bundle pack runs/demo/bundle demo.zip`")
def bundle_pack(bundle: str, archive: Path) -> None:
    """Zip a verified bundle into one file, which every command takes in place of the folder."""
    from library.codec_bundle import pack_bundle

    with _busy("packing"):
        pack_bundle(bundle, archive)
    typer.echo(f"{archive}: packed")


@runs_app.command("list", epilog="Example: `stillgrain runs list --tag paper --sort val/ms_ssim`")
def runs_list(
    storage: StorageOption = "runs",
    tags: Annotated[
        list[str] | None, typer.Option("--tag", metavar="WORD", help="Only runs that have it; may be repeated.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="METRIC", help="Best first: val/psnr. Left out, the newest comes first.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
) -> None:
    """List the runs: how far, how good, when a value was last recorded. A run that is broken is listed as such."""
    from workloads.runs.find import find_runs, select
    from workloads.runs.show import runs_table

    runs = select(find_runs(storage), tags=tags or (), sort=sort)
    if as_json:
        typer.echo(json.dumps([run.to_json() for run in runs], indent=2, ensure_ascii=False))
    else:
        _print_table(runs_table(runs, sort))


@runs_app.command("show", epilog="Example: `stillgrain runs show demo`")
def runs_show(
    run: RunName,
    storage: StorageOption = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, with the config.")] = False,
) -> None:
    """Show one run: status, best and last values with their curves, checkpoints, bundle, tags, notes."""
    from workloads.runs.find import find_run
    from workloads.runs.show import describe, overview

    found = find_run(storage, run)
    if as_json:
        typer.echo(json.dumps(describe(found), indent=2, ensure_ascii=False, default=str))
    else:
        _print_table(overview(found))


@runs_app.command("compare", epilog="Example: `stillgrain runs compare demo wider --output compare.html`")
def runs_compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Two or more: names, or paths of folders.")],
    storage: StorageOption = "runs",
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Also a page with the curves, as HTML.")
    ] = None,
) -> None:
    """Show how runs differ, in their settings and in what came of them: at each one's best step and at its last."""
    from workloads.runs.compare import compare, comparison_tables

    comparison = compare(storage, runs)
    _print_table(comparison_tables(comparison))
    if output is not None:
        from workloads.runs.page import write_comparison

        typer.echo(write_comparison(comparison, output))


@runs_app.command(
    "clean", epilog="Example: `stillgrain runs clean`, and when that is what should go, `stillgrain runs clean --yes`"
)
def runs_clean(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="Left out, every run in the storage.")
    ] = None,
    storage: StorageOption = "runs",
    keep_last: Annotated[
        int, typer.Option(metavar="N", help="Newest checkpoints of each run that stay; with 0 only its bundle does.")
    ] = 0,
    whole: Annotated[bool, typer.Option("--all", help="Remove the named runs altogether, whatever they are.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; otherwise only say what would be removed.")] = False,
) -> None:
    """Free space: what killed writers left, and the checkpoints of runs that have ended.

    Their bundles, numbers and pictures stay, and so does all of a run that may still go on."""
    from workloads.runs.clean import clean

    typer.echo(clean(storage, runs or (), keep_last=keep_last, whole=whole, confirmed=yes))


@runs_app.command("tag", epilog="Example: `stillgrain runs tag demo paper --remove draft`")
def runs_tag(
    run: RunName,
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORD...]", help="Tags to add.")] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            "--remove",
            metavar="WORD",
            help="Tag to take away; may be repeated. One that the config names is back when the run goes on.",
        ),
    ] = None,
    storage: StorageOption = "runs",
) -> None:
    """Add tags to a run, and take some away. They are kept in its run.yaml; prints those it then has."""
    from workloads.runs.labels import tag

    typer.echo(" ".join(tag(storage, run, words or (), remove or ()).tags))


@runs_app.command("note", epilog='Example: `stillgrain runs note demo "first with the new noise model"`')
def runs_note(
    run: RunName,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="In place of the notes before.")],
    storage: StorageOption = "runs",
) -> None:
    """Write a run's notes, which are kept in its run.yaml."""
    from workloads.runs.labels import note

    typer.echo(note(storage, run, text).notes)


@app.command(epilog="Example: `stillgrain submit workloads/configs/denoise_demo.yaml optim.lr=1e-3 --priority 5`")
def submit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, or a folder of them.")],
    words: Words = None,
    name: Annotated[str | None, typer.Option(metavar="X", help="Of the job; left out, the config's own.")] = None,
    priority: Annotated[int, typer.Option(metavar="N", help="Higher goes first.")] = 0,
    after: Annotated[
        list[str] | None, typer.Option(metavar="JOB", help="That must have succeeded before; may be repeated.")
    ] = None,
    retries: Annotated[int, typer.Option(metavar="N", help="Further attempts; never after a user's error.")] = 3,
    grid: Annotated[
        list[str] | None,
        typer.Option("--sweep-grid", metavar="KEY=A,B,C", help="A job for each value; several give their product."),
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--label", metavar="X", help="By which jobs are limited together.")
    ] = None,
    stalled_after: Annotated[
        float | None,
        typer.Option(
            metavar="S", help="Seconds without progress until it is stopped and tried again; left out, a day."
        ),
    ] = None,
    allow_pending: Annotated[
        bool, typer.Option("--allow-pending", help="Take what no node has room for yet: some will come.")
    ] = False,
    backend: Annotated[
        Literal["queue", "kuberay"], typer.Option(help="kuberay: RayJobs for Kubernetes, which Kueue starts.")
    ] = "queue",
    packages: Annotated[
        str | None, typer.Option(metavar="URI", help="For kuberay: where pods find the packed working directory.")
    ] = None,
    template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For kuberay: left out, cluster/kuberay/rayjob.yaml.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="For kuberay: print the manifests, create nothing.")
    ] = False,
    user: Annotated[str | None, typer.Option(help="Whose job it is; left out, who is logged in.")] = None,
    working_dir: Annotated[Path, typer.Option(metavar="DIR", help="What travels to the cluster.")] = Path("."),
    queue: QueueOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a config, or a folder of them, into the queue. Neither cluster nor dispatcher need be there."""
    from cluster.jobqueue import DEFAULT_FOLDER
    from cluster.rayjob import TEMPLATE, submit_rayjobs
    from cluster.submit import STALLED_AFTER_S
    from cluster.submit import submit as put
    from library.config import to_yaml
    from library.files.atomic import whole_file
    from library.files.places import place
    from workloads.run import read_config

    def resolve(file: Path, its_words: Any) -> str:
        return to_yaml(read_config(file, its_words))

    def upload(file: Path, uri: str) -> None:
        if not (target := place(uri)).exists():
            with whole_file(target) as temporary:
                temporary.write_bytes(file.read_bytes())

    if backend == "kuberay":
        text = submit_rayjobs(
            [config],
            words or [],
            resolve=resolve,
            packages=packages or "",
            upload=upload,
            working_dir=working_dir,
            name=name,
            priority=priority,
            after=after or [],
            retries=retries,
            grid=grid or [],
            labels=labels or [],
            template=template or TEMPLATE,
            dry_run=dry_run,
        )
        typer.echo(text, nl=False)
        return
    done = put(
        [config],
        words or [],
        resolve=resolve,
        folder=queue or DEFAULT_FOLDER,
        working_dir=working_dir,
        name=name,
        user=user,
        priority=priority,
        after=after or [],
        retries=retries,
        grid=grid or [],
        labels=labels or [],
        stalled_after=STALLED_AFTER_S if stalled_after is None else stalled_after,
        allow_pending=allow_pending,
    )
    _print_rows(done["jobs"], as_json, whole=done)


@queue_app.command("status", epilog="Example: `stillgrain queue status`")
def queue_status(
    every: Annotated[bool, typer.Option("--all", help="Also all that have ended, not only the last ten.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="A live table, until Ctrl-C.")] = False,
    queue: QueueOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the jobs: what runs, what waits and for what, what has ended."""
    from cluster.jobqueue import DEFAULT_FOLDER, status

    if watch:
        _watch(lambda: status(queue or DEFAULT_FOLDER, ended=None if every else 10), _queue_view)
        return
    found = status(queue or DEFAULT_FOLDER, ended=None if every else 10)
    _print_rows(found["jobs"], as_json, whole=found)


@queue_app.command("show", epilog="Example: `stillgrain queue show 7`")
def queue_show(job: str, queue: QueueOption = None) -> None:
    """Show all that is known of a job, its attempts and what happened to them."""
    from cluster.jobqueue import DEFAULT_FOLDER, show

    typer.echo(json.dumps(show(job, queue or DEFAULT_FOLDER), indent=2, ensure_ascii=False))


@queue_app.command("logs", epilog="Example: `stillgrain queue logs 7 -f`")
def queue_logs(
    job: str,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
    attempt: Annotated[int | None, typer.Option(metavar="N", help="Left out, the last.")] = None,
    queue: QueueOption = None,
    allow_clear: AllowClear = False,
) -> None:
    """Print what a job has said."""
    from cluster.jobqueue import DEFAULT_FOLDER, logs

    for text in logs(job, queue or DEFAULT_FOLDER, attempt=attempt, follow=follow, allow_clear=allow_clear):
        typer.echo(text, nl=False)


@queue_app.command("stop", epilog="Example: `stillgrain queue stop 7 8`")
def queue_stop(jobs: JobNames, queue: QueueOption = None, as_json: JsonOption = False) -> None:
    """Stop jobs, or take them out of the queue. What a training has done stays in its folder."""
    from cluster.jobqueue import DEFAULT_FOLDER, stop

    _print_rows(stop(jobs, queue or DEFAULT_FOLDER), as_json)


@queue_app.command("retry", epilog="Example: `stillgrain queue retry 7`")
def queue_retry(jobs: JobNames, queue: QueueOption = None, as_json: JsonOption = False) -> None:
    """Queue jobs that have ended once more."""
    from cluster.jobqueue import DEFAULT_FOLDER, retry

    _print_rows(retry(jobs, queue or DEFAULT_FOLDER), as_json)


@queue_app.command("priority", epilog="Example: `stillgrain queue priority 7 10`")
def queue_priority(job: str, number: int, queue: QueueOption = None, as_json: JsonOption = False) -> None:
    """Change a waiting job's priority: higher goes first."""
    from cluster.jobqueue import DEFAULT_FOLDER, priority

    _print_rows([priority(job, number, queue or DEFAULT_FOLDER)], as_json)


@queue_app.command("pause", epilog="Example: `stillgrain queue pause`")
def queue_pause(queue: QueueOption = None) -> None:
    """Start no further jobs; those that run go on."""
    from cluster.jobqueue import DEFAULT_FOLDER, pause

    typer.echo(json.dumps(pause(queue or DEFAULT_FOLDER)))


@queue_app.command("resume", epilog="Example: `stillgrain queue resume`")
def queue_resume(queue: QueueOption = None) -> None:
    """Start jobs again."""
    from cluster.jobqueue import DEFAULT_FOLDER, resume

    typer.echo(json.dumps(resume(queue or DEFAULT_FOLDER)))


@queue_app.command("limit", epilog="Example: `stillgrain queue limit anna 2`, `stillgrain queue limit label:gpu 4`")
def queue_limit(
    user: Annotated[
        str, typer.Argument(metavar="USER", help="`*`: who has no limit of their own; `label:X`: a label.")
    ],
    most: Annotated[int | None, typer.Argument(metavar="[N]", help="Left out, there is no limit.")] = None,
    queue: QueueOption = None,
) -> None:
    """How many jobs of a user, or of a label, run at a time."""
    from cluster.jobqueue import DEFAULT_FOLDER, limit

    typer.echo(json.dumps(limit(user, most, queue or DEFAULT_FOLDER)))


@queue_app.command("dispatch", epilog="Example: `stillgrain queue dispatch --address http://127.0.0.1:8265`")
def queue_dispatch(
    address: Annotated[str, typer.Option(metavar="URL", help="Of the cluster's job server.")],
    job_slots: Annotated[
        int | None, typer.Option(metavar="N", help="Jobs at a time; left out, as the nodes say.")
    ] = None,
    cluster_file: Annotated[
        Path | None,
        typer.Option(
            "--cluster", metavar="FILE", help="Of `ray up`: what nodes can come. Left out, those that are seen."
        ),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Of loopback, for Prometheus; left out, none.")
    ] = None,
    moved: Annotated[bool, typer.Option("--moved", help="The cluster of running jobs has this address now.")] = False,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when nothing is left to do.")] = False,
    queue: QueueOption = None,
    allow_clear: AllowClear = False,
) -> None:
    """Start the queue's jobs on a cluster and follow them, until stopped. One process; jobs outlive it."""
    from cluster.dispatcher import Policy
    from cluster.jobqueue import DEFAULT_FOLDER, dispatch
    from cluster.room import room_of_cluster_file

    policy = Policy(job_slots=job_slots, room=None if cluster_file is None else room_of_cluster_file(cluster_file))
    dispatch(
        address,
        queue or DEFAULT_FOLDER,
        policy=policy,
        moved=moved,
        until_idle=until_idle,
        allow_clear=allow_clear,
        metrics_port=metrics_port,
    )


@cluster_app.command("check", epilog="Example: `stillgrain cluster check cluster.yaml`")
def cluster_check(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Left out, every one that is in this folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find faults in launcher files and Kubernetes manifests, without a cluster. Exit code 1 if there are any."""
    from cluster.check import check as find_faults

    findings = find_faults(files or [])
    typer.echo(json.dumps(findings.to_json(), indent=2, ensure_ascii=False) if as_json else str(findings))
    raise typer.Exit(1 if findings.faults else 0)


@cluster_app.command("up-local", epilog="Example: `stillgrain cluster up-local --nodes 2 --cpus-per-node 2`")
def cluster_up_local(
    nodes: Annotated[int, typer.Option(metavar="N", help="Beside the head, which runs no training.")] = 2,
    cpus_per_node: Annotated[int, typer.Option(metavar="K", help="What Ray is told that each has.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(metavar="K", help="Of this machine, each its own.")] = 0,
    job_slots: Annotated[int, typer.Option(metavar="N", help="Jobs at a time.")] = 2,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With the token to ask for; left out, a new one.")
    ] = None,
    folder: ClusterFolder = None,
    as_json: JsonOption = False,
) -> None:
    """Run a Ray cluster on this machine: head and nodes as processes, token, dashboard on loopback."""
    from cluster.local import DEFAULT_FOLDER, up

    with _busy("starting"):
        found = up(
            folder or DEFAULT_FOLDER,
            nodes=nodes,
            cpus_per_node=cpus_per_node,
            gpus_per_node=gpus_per_node,
            job_slots=job_slots,
            token_file=token_file,
        )
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else str(found))


@cluster_app.command("down", epilog="Example: `stillgrain cluster down`")
def cluster_down(
    node: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this one, at once, as a machine does that is lost.")
    ] = None,
    folder: ClusterFolder = None,
) -> None:
    """End what `up-local` has started, with all jobs there, and nothing else."""
    from cluster.local import DEFAULT_FOLDER, down

    typer.echo(f"ended: {', '.join(down(folder or DEFAULT_FOLDER, node=node)) or 'nothing was there'}")


@data_app.command(
    "fetch", epilog='Example: `stillgrain data fetch rawnind --to rawnind --from https://HOST --only "*_GT_*"`'
)
def data_fetch(
    dataset: Annotated[str, typer.Argument(metavar="NAME|DOI", help="rawnind, or doi:10.14428/DVN/DEQCIM, say.")],
    folder: Annotated[Path, typer.Option("--to", metavar="DIR", help="Made if it is not there.")],
    base_url: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="URL",
            help="Of the Dataverse repository that keeps it, https://HOST: where a browser arrives that follows the "
            "DOI.",
        ),
    ],
    only: Annotated[str, typer.Option(metavar="PATTERN", help="Of file names, as a shell has them.")] = "*",
    connections: Annotated[int, typer.Option(min=1, metavar="N", help="Files at a time.")] = 4,
    version: Annotated[str, typer.Option(metavar="V", help="Of the data set: 1.0, say.")] = ":latest-published",
) -> None:
    """Fetch a data set; go on where it stopped. No file has its name before its bytes have the promised checksum."""
    from library.pairs.fetch import fetch

    fetched = fetch(
        dataset,
        folder,
        base_url=base_url,
        version=version,
        only=only,
        connections=connections,
        progress=lambda jobs: _progress(jobs, "fetching"),
    )
    typer.echo(str(fetched))
    raise typer.Exit(fetched.exit_code)


@data_app.command("organize", epilog="Example: `stillgrain data organize rawnind --to rawnind/src --dry-run`")
def data_organize(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="Holds the fetched files, at any depth.")],
    root: Annotated[Path, typer.Option("--to", metavar="ROOT", help="Of the tree; may lie in DIR.")],
    move: Annotated[
        bool, typer.Option("--move", help="Take the files out of DIR, where `fetch` will miss them.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Sort a RawNIND download into ROOT/SENSOR/SCENE/[gt/]. Replaces nothing that is there."""
    from library.pairs.tree import organize

    organized = organize(source, root, move=move, dry_run=dry_run)
    typer.echo(str(organized))
    raise typer.Exit(organized.exit_code)


@data_app.command("check", epilog="Example: `stillgrain data check rawnind/src --json | jq .bad`")
def data_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Searched with its subfolders.")],
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Files at a time; left out, a core each.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, with every file.")] = False,
) -> None:
    """List raws that cannot be read, are not what their names say, are there twice, or are badly exposed."""
    from library.pairs.check import check

    report = check(folder, workers=workers, progress=lambda jobs: _progress(jobs, "checking"))
    typer.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False) if as_json else str(report))
    raise typer.Exit(report.exit_code)


@data_app.command(
    "to-descriptor", epilog="Example: `stillgrain data to-descriptor runs/prepared --tree rawnind/src -o pairs.yaml`"
)
def data_to_descriptor(
    folder: Annotated[Path, typer.Argument(metavar="PREPARED", help="Folder that `workload: prepare` left.")],
    tree: Annotated[Path, typer.Option(metavar="ROOT", help="Of the tree it was made of.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="YAML", help="Masks go to a folder beside it.")],
    crops: Annotated[Path | None, typer.Option(metavar="DIR", help="RawNIND's folder of tiles, to be listed.")] = None,
) -> None:
    """Write RawNIND's own descriptor of prepared pairs, for its tools."""
    from library.pairs.descriptor import export_descriptor

    typer.echo(f"{output}: {len(export_descriptor(folder, tree, output, crops=crops))} pairs")


@data_app.command(
    "from-descriptor",
    epilog="Example: `stillgrain data from-descriptor pairs.yaml --to runs/theirs --base rawnind/src`",
)
def data_from_descriptor(
    descriptor: Annotated[Path, typer.Argument(metavar="YAML", help="RawNIND_masks_and_alignments.yaml, say.")],
    folder: Annotated[Path, typer.Option("--to", metavar="PREPARED", help="Made if it is not there.")],
    base: Annotated[Path, typer.Option(metavar="DIR", help="What relative paths in it count from.")] = Path("."),
) -> None:
    """Take over shifts, masks and scores that RawNIND's own tools found, for training here."""
    from library.pairs.descriptor import import_descriptor

    imported = import_descriptor(descriptor, folder, base=base, progress=lambda items: _progress(items, "reading"))
    typer.echo(str(imported))
    raise typer.Exit(imported.exit_code)


@data_app.command("generate", epilog="Example: `stillgrain data generate pairs --scenes 12`")
def data_generate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Made; must hold nothing yet.")],
    scenes: Annotated[int, typer.Option(metavar="N", help="Of about five files each.")] = 12,
    xtrans: Annotated[int, typer.Option(metavar="N", help="Scenes of an X-Trans sensor besides.")] = 0,
    width: Annotated[int, typer.Option(metavar="PX", help="Of a mosaic; even.")] = 768,
    height: Annotated[int, typer.Option(metavar="PX", help="Of a mosaic; even.")] = 512,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed makes the same bytes.")] = 0,
    flat: Annotated[
        bool, typer.Option("--flat", help="All in one folder under download names, for `data organize`.")
    ] = False,
) -> None:
    """Make up a RawNIND of DNGs with known shifts, movers and broken files; what was planted is in planted.json."""
    from library.pairs.generate import generate

    planted = generate(folder, scenes=scenes, width=width, height=height, seed=seed, flat=flat, xtrans=xtrans)
    typer.echo(str(planted))


@data_app.command("export", epilog="Example: `stillgrain data export runs/prepared -o rawnind-npz`")
def data_export(
    prepared: Annotated[Path, typer.Argument(metavar="PREPARED", help="Folder that `workload: prepare` made.")],
    output: Output,
    file_format: Annotated[Literal["npz"], typer.Option("--format", help="Of the files: npz, which NumPy reads.")] = (
        "npz"
    ),
) -> None:
    """Write every prepared pair as a file of its own, for programs of other kinds. Those that are there stay."""
    from library.pairs.npz import export_npz

    paths = export_npz(prepared, output, progress=lambda pairs: _progress(pairs, "exporting"))
    typer.echo(f"{output}: {len(paths)} pairs as {file_format}; library/pairs/NPZ.md says what a file holds")


@data_app.command("import", epilog="Example: `stillgrain data import rawnind-npz -o runs/imported`")
def data_import(
    files: Annotated[Path, typer.Argument(metavar="DIR", help="Of NPZ files, searched with its subfolders.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="PREPARED", help="Prepared folder to make of them.")
    ],
) -> None:
    """Make a prepared folder of NPZ files that keep the contract of `data export`: ready to train on."""
    from library.pairs.npz import import_npz

    count = import_npz(files, output, progress=lambda paths: _progress(paths, "importing"))
    typer.echo(f"{output}: {count} pairs")


@data_app.command("summary", epilog="Example: `stillgrain data summary runs/prepared`")
def data_summary(
    prepared: Annotated[Path, typer.Argument(metavar="PREPARED", help="Folder that `workload: prepare` made.")],
    most: Annotated[int, typer.Option("--pairs", min=0, metavar="N", help="Shown on the page, the worst first.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """Count prepared pairs by camera, ISO, scene and score, and write a page with those to look at first."""
    from workloads.pairs_page import write_pairs_page

    summary = write_pairs_page(prepared, most=most, progress=lambda pairs: _progress(pairs, "drawing"))
    typer.echo(json.dumps(summary.to_json(), indent=2, ensure_ascii=False) if as_json else str(summary))


@archive_app.command("status", epilog="Example: `stillgrain archive status ~/denoised --json`")
def archive_status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of a workload: infer, or of denoise.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show what is done, failed and waiting, how large it is and how fast it goes."""
    from library.inference.archive_status import archive_status as status_of

    status = status_of(folder)
    typer.echo(json.dumps(status.to_json(), indent=2, ensure_ascii=False) if as_json else str(status))


def main() -> None:
    """Run the command. A user's error is one message and exit code 2; its traceback only with --debug. Of what is in
    nobody's hand the code is another, which a queue takes as a reason to try again (see cluster/dispatcher.py)."""
    words = sys.argv[1:]
    from cluster.errors import ClusterError

    try:
        app([word for word in words if word != "--debug"], prog_name="stillgrain")
    except (StillgrainError, ClusterError) as error:
        if "--debug" in words:
            traceback.print_exc()
        _say_error(error)
        sys.exit(getattr(error, "exit_code", 2))
    except Exception:
        traceback.print_exc()
        sys.exit(70)


def _say_error(error: Exception) -> None:
    typer.secho(f"error: {error}", err=True, fg="red")


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        typer.echo(f"{key:<{width}}  {json.dumps(value) if isinstance(value, (list, dict)) else value}")


def _print_table(renderable: Any) -> None:
    """On a terminal as wide as that is; elsewhere so wide that lines are not broken."""
    from rich.console import Console

    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=240)).print(renderable)


def _queue_view(found: dict[str, Any]) -> Any:
    """The queue's state in a line, and its jobs."""
    from rich.console import Group
    from rich.text import Text

    dispatcher, counts = found["dispatcher"], found["counts"]
    line = Text("  ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no jobs")
    line.append("  paused" if found["paused"] else "", "bold")
    line.append(f"  {dispatcher['trouble']}" if dispatcher["at_work"] else "  no dispatcher", "red")
    return Group(line, _table_of(found["jobs"]))


def _watch(read: Any, view: Any) -> None:
    """Shows what `read` gives anew each second, until Ctrl-C."""
    import time

    from rich.live import Live

    with contextlib.suppress(KeyboardInterrupt), Live(view(read()), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(1)
            live.update(view(read()), refresh=True)


def _table_of(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in rows[0] if rows else ():
        table.add_column(str(name))
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    return table


def _print_rows(rows: list[dict[str, Any]], as_json: bool, whole: Any = None) -> None:
    """One line a row, or all of it as JSON."""
    if as_json:
        typer.echo(json.dumps(rows if whole is None else whole, indent=2, ensure_ascii=False))
        return
    _print_table(_table_of(rows) if rows else "nothing")


def _busy(what: str) -> contextlib.AbstractContextManager[Any]:
    """A spinner on stderr where that is a terminal, for what cannot say how far it is."""
    from rich.console import Console

    console = Console(stderr=True)
    return console.status(what) if console.is_terminal else contextlib.nullcontext()


def _progress(items: Any, what: str) -> Any:
    """The items, with a progress bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    items = list(items)
    return track(items, description=what, console=console) if console.is_terminal else items


if __name__ == "__main__":
    main()
