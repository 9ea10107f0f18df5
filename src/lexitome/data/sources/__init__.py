"""Readers of annotated data, one module for each form; `load_any` recognises which one a path has."""

from __future__ import annotations

from pathlib import Path

from lexitome.data.dataset import Dataset
from lexitome.data.sources import coco, huggingface
from lexitome.data.sources.folder import load_dataset, load_plain
from lexitome.data.sources.nnunet import load_nnunet
from lexitome.errors import InputError

_SMALLEST = (
    "The smallest layout that works: DIR/images/a.png and DIR/masks/a.png (0 background, else the thing), "
    "with --concept NAME."
)
_NO_CONCEPT = "Leave --concept out, or remove the list of labels if all masks show one thing."


def load_any(path: str | Path, *, seed: int = 0, concept: str = "", unit_pattern: str | None = None) -> Dataset:
    """Read annotated data in whatever form they are.

    Args:
        path: a folder in the form of `sources.folder`, of nnU-Net (raw), COCO or Hugging Face `datasets`, or just
            `images/` and `masks/`.
        seed: of the split into train, val and test, where the data have none of their own.
        concept: what the masks show, for forms that do not say it.
        unit_pattern: regular expression for the subject in a name; by default `units.find_units` looks for it.

    Raises:
        InputError: no such folder, none of these forms, or a form that is not kept to.
    """
    root = Path(path)
    if not root.is_dir():
        cause = "is not a folder" if root.exists() else "there is no such folder"
        raise InputError(root, cause, "Give the folder that holds the images and the annotation.")
    concept = concept.strip()
    if (root / "dataset.json").is_file():
        _refuse_concept(root / "dataset.json", concept)
        if (root / "imagesTr").is_dir():
            return load_nnunet(root, seed=seed, unit_pattern=unit_pattern)
        return load_dataset(root, seed=seed, unit_pattern=unit_pattern)
    if huggingface.is_saved(root):
        return huggingface.load_huggingface(root, seed=seed, concept=concept, unit_pattern=unit_pattern)
    documents = coco.find_annotations(root)
    if documents:
        _refuse_concept(next(iter(documents)), concept)
        return coco.load_coco(root, documents, seed=seed, unit_pattern=unit_pattern)
    is_plain = (root / "images").is_dir() and (root / "masks").is_dir()
    if is_plain and (concept or not huggingface.is_table(root)):
        if not concept:
            remedy = "Give --concept NAME if every mask shows one thing, else write dataset.json with labels."
            raise InputError(root, "does not say what its masks show", remedy)
        return load_plain(root, concept, seed=seed, unit_pattern=unit_pattern)
    if huggingface.is_table(root):
        return huggingface.load_huggingface(root, seed=seed, concept=concept, unit_pattern=unit_pattern)
    raise InputError(root, *_what_was_looked_for(root))


def _refuse_concept(source: Path, concept: str) -> None:
    if concept:
        raise InputError(source, f"names its own labels, so that {concept!r} has no meaning", _NO_CONCEPT)


def _what_was_looked_for(root: Path) -> tuple[str, str]:
    inside = sorted(path.parent.name for path in root.glob("*/dataset.json"))
    if inside:
        return f"holds {len(inside)} datasets", f"Give one of them, e.g. {root / inside[0]}."
    looked = (
        "dataset.json with images/ and masks/, or with imagesTr/ and labelsTr/ (nnU-Net); a COCO .json here or in "
        "annotations/; dataset_dict.json, state.json, *.parquet or metadata.jsonl (Hugging Face); images/ with masks/"
    )
    return f"is in no form that can be read (looked for {looked})", _SMALLEST
