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
    help="""Train raw-image denoisers on Ray and run them over whole archives of raw files.

    Start with `make demo`, or look at a raw of yours: `stillgrain inspect photo.cr2`.

    Any command takes `--debug`, which shows the traceback of an error.""",
)
bundle_app = typer.Typer(no_args_is_help=True, help="Look at, check or zip a bundle: a trained model as a folder.")
app.add_typer(bundle_app, name="bundle")

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
    Path, typer.Option("--bundle", "-b", metavar="BUNDLE", help="Bundle folder, or the same folder zipped.")
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16"],
    typer.Option(help="Of the network. fp32 is exact; bf16 is faster where the processor has it."),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]


@app.command(epilog="Example: `stillgrain run workloads/configs/denoise_demo.yaml steps=200 name=quick`")
def run(config: ConfigFile, words: Words = None) -> None:
    """Run a workload: train, infer, simulate, evaluate. Uses the Ray cluster that is there, or starts Ray here."""
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
) -> None:
    """Show what is known about a raw file: size, CFA, levels, colour, camera."""
    from library.files.raw import read_raw

    facts = read_raw(raw).to_json()
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print_facts(facts)


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
        Literal["dng", "cfa-dng", "exr", "tiff", "png"],
        typer.Option(
            "--format", "-f", help="dng: demosaiced; cfa-dng: a mosaic; exr: scene-linear; tiff, png: developed."
        ),
    ] = "dng",
    precision: PrecisionOption = "fp32",
    device: DeviceOption = "cpu",
    tile: Annotated[
        int, typer.Option(help="Packed pixels a side; memory grows with its square, the result stays.")
    ] = 512,
) -> None:
    """Denoise raw files: OUT/STEM.dng. What is done already is skipped; a bad file harms only itself."""
    from library.bundle import load_bundle
    from library.inference.archive import denoise_files
    from library.inference.engine import Engine

    engine = Engine(load_bundle(bundle), tile=tile, precision=precision, device=device)
    summary = denoise_files(raws, output, engine, output_format, progress=lambda jobs: _progress(jobs, "denoising"))
    typer.echo(str(summary))
    raise typer.Exit(summary.exit_code)


@app.command(epilog="Example: `stillgrain report runs/demo --evaluation runs/demo/evaluation`")
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    evaluation: Annotated[Path | None, typer.Option(help="Output folder of a workload: evaluate.")] = None,
    archive: Annotated[
        list[Path] | None, typer.Option(help="Output folder of a workload: infer; may be repeated.")
    ] = None,
    steps: Annotated[Path | None, typer.Option(help="Lines of seconds, a tab and a command, to be shown.")] = None,
) -> None:
    """Write RUN/report.html anew: curves, pictures, tables, in one page that needs nothing else."""
    from workloads.report import read_steps, write_run_report

    page = write_run_report(
        run_folder, evaluation=evaluation, archives=archive or (), steps=read_steps(steps) if steps else ()
    )
    typer.echo(page)


@app.command("verify-tiling", epilog="Example: `stillgrain verify-tiling --bundle runs/demo/bundle`")
def verify_tiling(bundle: BundlePath, precision: PrecisionOption = "fp32", device: DeviceOption = "cpu") -> None:
    """Prove on this machine that tiles give what the whole image gives: bit for bit in fp32, within a bound in bf16."""
    from library.bundle import load_bundle
    from library.inference.verify import verify_tiling as verify

    with _busy("comparing tiles with the whole image"):
        report = verify(load_bundle(bundle), precision=precision, device=device)
    typer.echo(str(report))
    raise typer.Exit(0 if report.exact or precision == "bf16" else 1)


@app.command()
def version() -> None:
    """Print the versions that results depend on."""
    import importlib.metadata

    from library.bundle import library_versions

    _print_facts({"stillgrain": importlib.metadata.version("stillgrain"), **library_versions()})


@bundle_app.command("show", epilog="Example: `stillgrain bundle show runs/demo/bundle --json`")
def bundle_show(
    bundle: Path, as_json: Annotated[bool, typer.Option("--json", help="The whole manifest.")] = False
) -> None:
    """Show what a bundle is: model, contract, metrics, origin."""
    from library.bundle import load_bundle

    manifest = load_bundle(bundle).manifest
    if as_json:
        typer.echo(json.dumps(manifest, indent=2))
    else:
        _print_facts({key: value for key, value in manifest.items() if key not in ("training", "sha256")})


@bundle_app.command("verify", epilog="Example: `stillgrain bundle verify runs/demo/bundle`")
def bundle_verify(bundle: Path) -> None:
    """Check every hash of a bundle and reproduce its golden tiles on this machine."""
    from library.bundle import load_bundle

    with _busy("verifying"):
        loaded = load_bundle(bundle)
    typer.echo(f"{bundle}: verified, {loaded.name} sha256:{loaded.digest}")


@bundle_app.command("pack", epilog="Example: `stillgrain bundle pack runs/demo/bundle demo.zip`")
def bundle_pack(bundle: Path, archive: Path) -> None:
    """Zip a verified bundle into one file, which every command takes in place of the folder."""
    from library.bundle import pack_bundle

    with _busy("packing"):
        pack_bundle(bundle, archive)
    typer.echo(f"{archive}: packed")


def main() -> None:
    """Run the command. A user's error is one message and exit code 2; its traceback only with --debug."""
    words = sys.argv[1:]
    try:
        app([word for word in words if word != "--debug"], prog_name="stillgrain")
    except StillgrainError as error:
        if "--debug" in words:
            traceback.print_exc()
        _say_error(error)
        sys.exit(2)


def _say_error(error: Exception) -> None:
    typer.secho(f"error: {error}", err=True, fg="red")


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        typer.echo(f"{key:<{width}}  {json.dumps(value) if isinstance(value, (list, dict)) else value}")


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
