"""`lexitome demo`: two real images that ship with the installation, segmented by words."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from lexitome.cli.console import Console
from lexitome.cli.options import Ask, Debug, Job, Settings

app = typer.Typer()


@dataclass(frozen=True)
class Example:
    """One demo image: the name of its copy, and what to find in it."""

    file: str
    texts: tuple[str, ...]


EXAMPLES = (
    Example("fundus.jpg", ("retinal vessel", "polyp")),
    Example("abdomen-mr.dcm", ("liver", "left kidney", "right kidney")),
)


@app.command("demo")
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for images and results.")
    ] = Path("lexitome-demo"),
    debug: Debug = False,
) -> None:
    """Segment two images that ship along.

    A fundus photograph and an abdominal MR slice, by words; nothing is downloaded.
    """
    from lexitome.cli.plan import check_folder
    from lexitome.cli.run import run_jobs

    check_folder(output)
    images = copy_images(output / "images")
    jobs = [
        Job(image, output / image.stem, Ask(example.texts)) for image, example in zip(images, EXAMPLES, strict=True)
    ]
    code = run_jobs(jobs, Settings(preview=True, stats=True), Console(debug=debug))
    if code == 0:
        print(f"Look at {', '.join(str(job.folder / 'preview.png') for job in jobs)}")
    raise typer.Exit(code)


def copy_images(folder: Path) -> list[Path]:
    """Copies of the demo images, so that the user can go on with them; paths in the order of `EXAMPLES`.

    One ships in our package, the DICOM slice in pydicom's.
    """
    from pydicom import examples

    from lexitome.io.atomic import replacing

    copies = [folder / example.file for example in EXAMPLES]
    ours = [files("lexitome").joinpath("assets", "demo", copy.name) for copy in copies[:1]]
    contents = (*(file.read_bytes() for file in ours), Path(examples.get_path("overlay")).read_bytes())
    for copy, content in zip(copies, contents, strict=True):
        with replacing(copy) as temporary:
            temporary.write_bytes(content)
    return copies
