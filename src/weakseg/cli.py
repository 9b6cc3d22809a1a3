"""The command line: parse, call, print. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weakseg.errors import Stopped, WeaksegError, explain
from weakseg.version import __version__

if TYPE_CHECKING:
    from weakseg.report.comparison.reading import Comparison

app = typer.Typer(
    name="weakseg",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


@data_app.callback()
def _data() -> None:
    """Check, count, make, simulate and fetch data sets.

    \b
    Examples:
      weakseg data check photos
      weakseg data fetch voc2012 --out VOC2012
    """


WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
"""What says how threads of OpenMP wait; whoever sets any of them has reasons."""

DataFolder = Annotated[Path, typer.Option("--data", help="Folder of the data set (VOC, COCO or images/ + labels.csv).")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write to.")]
Format = Annotated[
    str | None,
    typer.Option("--format", help="Layout of the data set: voc, coco or folder. Default: recognised by what is there."),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="A file of pretrained weights for every backbone that does not start at random."),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def main() -> None:
    """Run the command line; a user's mistake ends with its text and status 1, never with a traceback."""
    # Before PyTorch is imported: threads that wait for each other busily take the core away from whom they wait for as
    # soon as any other process wants it, too.
    if not WAITING.intersection(os.environ):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    # Pillow's remarks about metadata, which nothing here uses; what keeps it from decoding is told by an exception.
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whose encoding may lack letters of a class or a file name
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except WeaksegError as error:
        sys.exit(f"Error: {error}")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read what we print has gone, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        text = explain(error)
        if text is None:
            raise
        sys.exit(f"Error: {text}")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """Cheap labels in, pixel masks and a trained segmenter out.

    \b
    Examples:
      weakseg data make-toy toy
      weakseg run toy --data toy --out runs/toy
      weakseg predict runs/toy photos/ --out predicted
    """
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe (see `weakseg recipes`) or the path of a YAML file.")],
    data: DataFolder,
    out: OutFolder,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be given several times.")
    ] = [],  # noqa: B006 (typer copies it)
    reuse: Annotated[
        list[Path],
        typer.Option("--reuse", metavar="RUN", help="Another run, whose equal stages are taken over; several times."),
    ] = [],  # noqa: B006
    redo: Annotated[
        list[str], typer.Option("--redo", metavar="STAGE", help="Do a finished stage again; several times for several.")
    ] = [],  # noqa: B006
    until: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help="Carry out only this stage and what it needs.")
    ] = None,
    weights: Weights = None,
    format: Format = None,
) -> None:
    """Carry out a recipe: labels in, masks, a model and a report out.

    Finished stages are skipped, so the same command continues an interrupted run. For several processes, start it
    with torchrun.

    \b
    Examples:
      weakseg run cam --data photos --out runs/photos
      weakseg run cam --data VOC2012 --out runs/voc --set data.train=train_aug --set cam.train.epochs=2
      weakseg run cam --data photos --out runs/nocrf --set masks.crf=null --reuse runs/photos
      weakseg run cam --data photos --out runs/photos --until masks --weights mobilenet_v2.safetensors
      weakseg run cam --data photos --out runs/photos --set runtime.tensorboard=true
      torchrun --nproc-per-node 4 -m weakseg run cam --data VOC2012 --out runs/voc
    """
    from weakseg.pipeline import recipe as recipes
    from weakseg.pipeline.recipe_files import read_recipe

    read_recipe(recipe, set_)  # whose mistakes are told before networks are imported
    found = recipes.load_recipe(recipe, set_)
    if until is not None:
        recipes.needed_for(found, until)
    if weights is not None:
        found = recipes.with_weights(found, str(weights))
    from weakseg.data.opening import open_dataset
    from weakseg.parallel import rank
    from weakseg.pipeline.run import description
    from weakseg.pipeline.run import run as run_recipe

    dataset = open_dataset(data, format)
    if "RANK" not in os.environ or os.environ["RANK"] == "0":
        print("\n".join(description(found, dataset)))
    run_recipe(found, dataset, out, reuse=reuse, redo=redo, until=until)
    if rank() == 0:
        report(out)


@app.command()
def compare(
    recipe: Annotated[
        list[str], typer.Argument(help="Shipped recipes and paths of YAML files; the first is compared to.")
    ],
    data: Annotated[
        list[Path], typer.Option("--data", help="Folder of a data set; several times for a table over several.")
    ],
    out: OutFolder,
    seeds: Annotated[str, typer.Option(help="Every recipe is carried out with each of these seeds.")] = "0,1,2",
    refine: Annotated[
        str | None,
        typer.Option(help="Recipes whose refinement each is given, such as none,affinitynet. Default: its own."),
    ] = None,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="[RECIPE:]KEY=VALUE",
            help="Change a setting of every recipe that has it, or of one; may be given several times.",
        ),
    ] = [],  # noqa: B006
    weights: Weights = None,
    format: Format = None,
) -> None:
    """Carry out several recipes with several seeds and compare them in one table.

    The table (compare.html, .md, .tex, .csv, .json) has means, standard deviations, differences to the first recipe
    seed by seed, times and image passes of training. Each run has its own folder RECIPE/seed-N with its own report;
    stages that runs have in common are done once. The same command continues an interrupted comparison. With several
    data sets, each has a comparison of its own in DATA/, and the table over all says where a recipe does worst.

    \b
    Examples:
      weakseg compare cam supervised --data photos --out runs/compare
      weakseg compare cam --refine none,affinitynet --data VOC2012 --out runs/walk --set affinity.train.epochs=2
      weakseg compare cam seam --data photos --data tiles --out runs/both
      weakseg compare cam mine.yaml --data photos --out runs/mine --seeds 0,1 --set mine:cam.train.epochs=8
    """
    from weakseg.pipeline.recipe_files import read_recipe

    for name in recipe:
        read_recipe(name)  # whose mistakes are told before networks are imported
    folders = _folders(data, out)
    from weakseg.parallel import rank
    from weakseg.report.comparison.across import across_text, write_across

    finished: dict[str, Comparison] = {}
    failed: dict[Path, str] = {}
    for folder, source in folders.items():
        if len(folders) > 1:
            print(f"{source}:")
        found, mishaps = _compare(recipe, source, folder, seeds, refine, set_, weights, format)
        finished[folder.name] = found
        failed |= mishaps
    if len(folders) > 1 and rank() == 0:
        print(across_text(write_across(out, finished), list(finished)))
        print(f"Comparison: {out / 'compare.html'}")
    if failed:
        lines = (f"  {folder}: {message}" for folder, message in failed.items())
        raise WeaksegError("\n".join(["Some runs failed:", *lines]))


def _folders(data: list[Path], out: Path) -> dict[Path, Path]:
    """The folder of the comparison on each data set."""
    if len(data) == 1:
        return {out: data[0]}
    folders = {out / path.resolve().name: path for path in data}
    if len(folders) < len(data):
        raise WeaksegError("Two data sets have the same name, which is that of their folder here; rename one.")
    return folders


def _compare(
    recipe: list[str],
    data: Path,
    out: Path,
    seeds: str,
    refine: str | None,
    changes: list[str],
    weights: Path | None,
    format: str | None,
) -> tuple[Comparison, dict[Path, str]]:
    """Carry out a comparison on one data set; why runs have failed comes with it."""
    from dataclasses import replace

    from weakseg.data.opening import open_dataset
    from weakseg.parallel import rank
    from weakseg.pipeline.compare import Cell, carry_out, plan
    from weakseg.pipeline.recipe import with_weights
    from weakseg.report.comparison.files import write_comparison
    from weakseg.report.comparison.reading import Comparison
    from weakseg.report.comparison.tables import summary_text
    from weakseg.report.run import write_report

    cells = plan(recipe, out, _seeds(seeds), refine.split(",") if refine else (), changes)
    if weights is not None:
        cells = [replace(cell, recipe=with_weights(cell.recipe, str(weights))) for cell in cells]

    def after(cell: Cell) -> None:
        if rank() == 0:
            write_report(cell.folder)
            write_comparison(out, cells, {})

    failed = carry_out(cells, open_dataset(data, format), out, after=after)
    if rank() != 0:
        return Comparison.read(cells, failed), failed
    found = write_comparison(out, cells, failed)
    print(summary_text(found))
    print(f"Comparison: {out / 'compare.html'}")
    return found, failed


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(word) for word in text.split(",")]
    except ValueError:
        seeds = [-1]
    if min(seeds) < 0:
        raise WeaksegError(f"--seeds {text}: write numbers from 0 on, such as 0,1,2.")
    return seeds


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe with all its settings, explained.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print a JSON schema of recipe files, from which editors complete.")
    ] = False,
) -> None:
    """List the recipes that come with weakseg, or print one with what each setting means.

    \b
    Examples:
      weakseg recipes
      weakseg recipes cam > mine.yaml
      weakseg recipes --schema > recipe.schema.json
    """
    from weakseg.pipeline.recipe_files import shipped_recipes

    if schema:
        from weakseg.pipeline.describe import recipe_schema

        print(json.dumps(recipe_schema(), indent=2, ensure_ascii=False))
        return
    if name is not None:
        from weakseg.pipeline.recipe import load_recipe

        recipe = load_recipe(name)
        from weakseg.pipeline.describe import explained

        print(explained(recipe), end="")
        return
    known = shipped_recipes()
    for recipe_name, about in known.items():
        print(f"{recipe_name:{max(map(len, known))}}  {about}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A model folder or the folder of a run.")],
    images: Annotated[list[Path], typer.Argument(help="Image files and folders of images.")],
    out: OutFolder,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write the scores as arrays, too.")] = False,
    overlays: Annotated[bool, typer.Option(help="Write the image with the mask laid over it.")] = True,
    scales: Annotated[str | None, typer.Option(help="Sizes of the image, such as 0.75,1,1.25.")] = None,
    mirror: Annotated[bool | None, typer.Option(help="Use the mirrored image, too.")] = None,
    crf: Annotated[
        str | None, typer.Option(help="Parameters of a dense CRF, such as deeplab; none for no CRF.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="The background's score, for localisers.")] = None,
    window: Annotated[
        str | None, typer.Option(help="Side in pixels of the windows that large images are seen through; none, auto.")
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Write areas.csv: the pixels of every class.")] = False,
    tags: Annotated[
        Path | None,
        typer.Option("--tags", help="A labels.csv or labels.json with the classes in the images, for localisers."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Write masks for any images: palette PNGs, overlays and, if wanted, probabilities.

    Settings that are not given are those that the model was evaluated with. Images that cannot be read are told at the
    end; the status then is 1.

    \b
    Examples:
      weakseg predict runs/photos holiday.jpg --out predicted
      weakseg predict runs/photos/segment/model photos/ --out predicted --probabilities --crf deeplab
      weakseg predict runs/photos/cam/model photos/images --out maps --tags photos/labels.csv --table
    """
    from weakseg.pipeline.predict import find_model, predict_files
    from weakseg.runtime import RuntimeSettings, start
    from weakseg.settings import validate

    changes = _given(mirror=mirror, threshold=threshold)
    if scales is not None:
        changes["scales"] = scales.split(",")
    if window is not None:
        changes["window"] = None if window == "none" else int(window) if window.isdecimal() else window
    if crf is not None and crf != "none":
        changes["crf"] = crf
    if crf == "none":
        changes["crf"] = None
    runtime = validate(RuntimeSettings, {"device": device}, "")
    how, count, failures = predict_files(
        find_model(model),
        images,
        out,
        changes=changes,
        device=start(runtime).device,
        probabilities=probabilities,
        overlays=overlays,
        table=table,
        tags=tags,
    )
    print(how)
    print(f"{count} images: masks in {out / 'masks'}" + (f", overlays in {out / 'overlays'}" if overlays else ""))
    _require_no(failures, count)


@app.command()
def superpixels(
    images: Annotated[list[Path], typer.Argument(help="Image files and folders of images.")],
    out: OutFolder,
    k: Annotated[float | None, typer.Option(help="Larger: larger segments. Default: 75.")] = None,
    min_size: Annotated[
        int | None, typer.Option(help="Smaller segments join a neighbour, in pixels. Default: 75.")
    ] = None,
    merge: Annotated[bool, typer.Option(help="Merge segments that a network finds alike.")] = True,
    count: Annotated[int | None, typer.Option(help="Superpixels that are left after merging. Default: 64.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="The network, see docs/backbones.md. Default: mobilenet_v2.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="A file of its weights. Default: ImageNet's, downloaded once.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Cut images into superpixels: PNGs with an id for every pixel, blue + 256 green + 65536 red.

    Images whose file is there already are skipped, so the same command continues. Images that cannot be read are told
    at the end; the status then is 1.

    \b
    Examples:
      weakseg superpixels photos/ --out cut
      weakseg superpixels photos/ --out cut --count 32 --weights mobilenet_v2-b0353104.pth
      weakseg superpixels photo.jpg --out cut --no-merge --k 200
    """
    from weakseg.models.registry import BackboneSettings
    from weakseg.pipeline.superpixels import SuperpixelSettings, superpixel_files
    from weakseg.runtime import RuntimeSettings, start
    from weakseg.settings import validate

    settings = validate(SuperpixelSettings, _given(k=k, min_size=min_size, count=count), "")
    network = _given(name=backbone, weights=weights)
    if not merge and (network or count is not None):
        raise WeaksegError("--count, --backbone and --weights have no effect with --no-merge; leave them out.")
    chosen = validate(BackboneSettings, {"name": "mobilenet_v2", "output_stride": 8, **network}, "backbone")
    runtime = validate(RuntimeSettings, {"device": device}, "")
    done, before, failures = superpixel_files(images, out, settings, chosen if merge else None, start(runtime).device)
    print(f"{done} images: superpixels in {out}" + (f" ({before} were there already)" if before else ""))
    _require_no(failures, done)


def _require_no(failures: list[str], done: int) -> None:
    """Raise `WeaksegError` where some images failed, beside so many that are done."""
    if failures:
        raise WeaksegError("\n".join([f"{len(failures)} of {len(failures) + done} images failed:", *failures]))


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


@app.command()
def evaluate(
    masks: Annotated[Path, typer.Argument(help="Folder of label maps, NAME.png for each image of the split.")],
    data: DataFolder,
    out: OutFolder,
    split: Annotated[
        str | None, typer.Option(help="The split whose masks to compare with. Default: val, or the only one.")
    ] = None,
    format: Format = None,
) -> None:
    """Compare masks with ground truth: mIoU, per-class table, boundary F-score, confusion matrix.

    \b
    Examples:
      weakseg evaluate predicted/masks --data VOC2012 --split val --out scores
    """
    from weakseg.data.opening import open_dataset
    from weakseg.report.evaluation import evaluate_folder

    dataset = open_dataset(data, format)
    if split is None:
        split = "val" if "val" in dataset.splits else dataset.only_split() or "val"
    print(evaluate_folder(masks, dataset, split, out))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
) -> None:
    """Write the report of a run, one HTML file, and print its scores.

    \b
    Examples:
      weakseg report runs/photos
    """
    from weakseg.report.run import write_report
    from weakseg.report.scores import scores_table

    path = write_report(run)
    print(scores_table(run))
    print(f"Report: {path}")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A published .pth, .params or .caffemodel file.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write to.")],
    as_: Annotated[
        str | None, typer.Option("--as", help="What it is, see docs/checkpoints.md. Default: recognised.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option("--classes", help="A file with one class per line. Default: VOC's 20.")
    ] = None,
) -> None:
    """Turn a checkpoint that a paper's authors published into a model folder or into backbone weights.

    \b
    Examples:
      weakseg convert res38_cls.pth --to models/affinitynet-cam
      weakseg convert ilsvrc-cls_rna-a1_cls1000_ep-0001.params --to weights
      weakseg convert mine.pth --as irnet-cam --classes names.txt --to models/mine
    """
    from weakseg.pipeline.convert import convert as convert_checkpoint
    from weakseg.pipeline.convert import read_classes

    print(convert_checkpoint(checkpoint, to, as_, None if classes is None else read_classes(classes)))


@data_app.command("check")
def check(
    data: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    format: Format = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on notes, too.")] = False,
) -> None:
    """Read every file of a data set and report every problem at once; the status is 1 if there is any.

    \b
    Examples:
      weakseg data check photos
      weakseg data check VOC2012 --strict
    """
    from weakseg.data.check import check_dataset
    from weakseg.progress import Steps

    with Steps("images") as steps:
        found = check_dataset(data, format, lambda done, total: steps.show("checking", done, total))
    for line in found.contents:
        print(line)
    for note in found.notes:
        print(f"note: {note}")
    for problem in found.problems:
        print(f"problem: {problem}")
    print(f"{data}: {len(found.problems)} problems, {len(found.notes)} notes")
    if found.problems or (strict and found.notes):
        raise typer.Exit(1)


@data_app.command("summary")
def summary(
    data: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    split: Annotated[str, typer.Option("--split", help="The split whose classes are counted.")] = "train",
    out: Annotated[Path | None, typer.Option("--out", help="A JSON file for all numbers.")] = None,
    format: Format = None,
) -> None:
    """Count the images of every class, and tell which classes are seen together.

    A classifier may take for a class what is nearly always in the picture with it.

    \b
    Examples:
      weakseg data summary photos
      weakseg data summary VOC2012 --split train_aug --out together.json
    """
    from weakseg.data.opening import open_dataset
    from weakseg.report.dataset import summarise

    print(summarise(open_dataset(data, format), split, out))


@data_app.command("make-toy")
def make_toy(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    train: Annotated[int, typer.Option(min=1, help="Images to learn from.")] = 480,
    val: Annotated[int, typer.Option(min=1, help="Images to measure on.")] = 120,
    size: Annotated[int, typer.Option(help="Width and height in pixels.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another countryside.")] = 0,
) -> None:
    """Draw the toy data set: a countryside with six classes of things and all the troubles of photographs.

    \b
    Examples:
      weakseg data make-toy toy
      weakseg data make-toy tiny --train 20 --val 5 --size 64
    """
    from weakseg.data.toy import make_toy as make
    from weakseg.progress import Progress

    with Progress("drawing", train + val) as progress:
        make(out, seed=seed, train=train, val=val, size=size, progress=progress.advance)
    print(f"{train} + {val} images in {out}")


@data_app.command("simulate")
def simulate(
    data: Annotated[Path, typer.Argument(help="Folder of a data set with masks.")],
    out: Annotated[Path, typer.Option("--out", help="The labels.json to write.")],
    split: Annotated[list[str], typer.Option("--split", help="May be given several times.")] = ["train"],  # noqa: B006
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", help="tags, boxes, points or scribbles; several times for several. Default: all."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    points: Annotated[int, typer.Option(min=1, help="Points in each part of a mask.")] = 1,
    background: Annotated[bool, typer.Option(help="Mark background with points and scribbles, too.")] = True,
    min_area: Annotated[int, typer.Option(min=1, help="Smallest part of a mask that is marked, pixels.")] = 16,
    format: Format = None,
) -> None:
    """Derive tags, boxes, points and scribbles from masks, to try what weaker labels would give.

    \b
    Examples:
      weakseg data simulate VOC2012 --split train --kind points --out points/labels.json
      weakseg data simulate toy --split train --split val --seed 1 --out toy-labels.json
    """
    from weakseg.data.folder import SIDECARS
    from weakseg.data.opening import open_dataset
    from weakseg.data.simulate import KINDS, simulate_dataset
    from weakseg.progress import Progress

    dataset = open_dataset(data, format)
    with Progress("simulating", sum(len(dataset.split(name)) for name in split)) as progress:
        simulate_dataset(
            dataset,
            split,
            out,
            kind or KINDS,
            seed,
            points=points,
            background=background,
            min_area=min_area,
            progress=progress.advance,
        )
    if out.name in SIDECARS:
        use = f"{out.parent} is read with them if it is a data set of these images in the layout folder or voc."
    else:
        use = f"With the images in {out.parent / 'images'} beside it, it is a data set."
    print(f"Weak labels in {out}. {use}")


@data_app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="voc2012, sbd or coco2014.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the data set; the same for voc2012 and sbd.")],
    base_url: Annotated[
        list[str] | None,
        typer.Option("--base-url", help="A mirror to ask instead of the publisher; several times for several."),
    ] = None,
) -> None:
    """Download a public data set: resumed where it broke off, checked by size and hash, unpacked safely.

    \b
    Examples:
      weakseg data fetch voc2012 --out VOC2012
      weakseg data fetch sbd --out VOC2012
    """
    from weakseg.data.fetch import fetch as fetch_dataset
    from weakseg.progress import Steps

    with Steps("MB", scale=1e6) as steps:
        fetch_dataset(name, out, base_urls=base_url, progress=steps.show)
    print(f"{name} is in {out}")
