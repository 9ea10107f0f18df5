"""Which of a preset's datasets lie below a folder, which of their labels are the paper's targets, and how the copy that
was found differs from what the paper used."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lexitome.data.dataset import Case, Dataset, Target
from lexitome.data.sources import load_any
from lexitome.errors import InputError
from lexitome.evaluation.presets import Concept, Preset, Source, Task, plain_name
from lexitome.evaluation.reference import cases_of, is_external

DEEPEST = 4
"""Levels of folders below the data root that are looked at."""
_INSIDE = frozenset({
    "images", "masks", "instances", "negatives", "annotations", "imagestr", "imagests", "labelstr", "labelsts",
    "masksclavicles",
})  # fmt: skip
"""Folders within a dataset, which are none themselves (see `plain_name`)."""


@dataclass(frozen=True)
class FoundSet:
    """A folder that holds a dataset of a preset.

    Args:
        dataset: None where it cannot be read; `problem` then says why.
        others: further folders that look like the same set and are not used.
    """

    source: Source
    path: Path
    dataset: Dataset | None
    problem: str = ""
    others: tuple[Path, ...] = ()


@dataclass(frozen=True)
class TaskData:
    """A task and the data for it.

    Args:
        dataset: as given to the runner: the cases that count are its split "test", targets are called as in the paper.
        concepts: names of the targets that make the score.
        differs: how this is not what the paper measured, a sentence each without a full stop.
    """

    task: Task
    found: FoundSet
    dataset: Dataset
    concepts: tuple[str, ...]
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Selection:
    """Which images count, and in whose words is asked.

    Args:
        taught: names of datasets that the model was trained on: of those, only the test part counts.
        limit: at most so many images of each set, None for all.
    own_words: targets keep the names that the dataset gives them, as files of predictions do.
    """

    taught: frozenset[str] = frozenset()
    limit: int | None = None
    own_words: bool = False


def find_sets(root: Path, preset: Preset, *, seed: int = 0) -> dict[str, FoundSet]:
    """The datasets of a preset below `root` (or `root` itself), by key of their source.

    A folder is recognised by its name, or by "name" or "title" in its dataset.json, without regard to case and
    punctuation. Of several folders for one set the first that can be read is taken, the least deep first.

    Raises:
        InputError: there is no such folder.
    """
    if not root.is_dir():
        cause = "is not a folder" if root.exists() else "there is no such folder"
        raise InputError(root, cause, "Give the folder that holds your datasets with --data-root.")
    places: dict[str, list[Path]] = {}
    for folder in _folders(root):
        for source in preset.sources:
            if _is_set(folder, source, root):
                places.setdefault(source.key, []).append(folder)
    found = {}
    for source in preset.sources:
        if source.key in places:
            concepts = {c for task in preset.tasks_of(source) for c in task.concepts}
            found[source.key] = _load_first(source, places[source.key], concepts, seed)
    return found


def _folders(root: Path) -> Iterator[Path]:
    """`root` and what is below it, level by level, in alphabetical order."""
    level = [root]
    for _ in range(DEEPEST + 1):
        yield from level
        level = [Path(entry.path) for folder in level for entry in _entries(folder)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        inside = [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:  # not ours to read: another user's folder below a shared root
        return []
    return sorted((e for e in inside if plain_name(e.name) not in _INSIDE), key=lambda entry: entry.name)


def _is_set(folder: Path, source: Source, root: Path) -> bool:
    names = {plain_name(alias) for alias in source.aliases}
    if plain_name(folder.resolve().name) in names:
        return True
    if not (folder / "dataset.json").is_file():
        return False
    inside = folder != root and plain_name(folder.parent.resolve().name) in names  # AMOS22/raw/dataset.json
    return inside or any(plain_name(stated) in names for stated in _stated_names(folder / "dataset.json"))


def _stated_names(path: Path) -> list[str]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):  # `load_any` says what is wrong with it, if its folder's name is recognised
        return []
    return [str(meta[key]) for key in ("name", "title") if meta.get(key)] if isinstance(meta, dict) else []


def _load_first(source: Source, places: Sequence[Path], concepts: Collection[Concept], seed: int) -> FoundSet:
    problem: InputError | None = None
    for place in places:
        try:
            dataset = _load(place.resolve(), concepts, seed)
            return FoundSet(source, place, dataset, others=tuple(p for p in places if p != place))
        except InputError as error:
            problem = problem or error
    return FoundSet(source, places[0], None, problem.cause if problem else "", tuple(places[1:]))


def _load(place: Path, concepts: Collection[Concept], seed: int) -> Dataset:
    try:
        return load_any(place, seed=seed)
    except InputError as error:
        if len(concepts) != 1:
            raise
        try:  # masks of one thing that do not say what they show: the preset knows
            return load_any(place, seed=seed, concept=next(iter(concepts)).names[0])
        except InputError:
            raise error from None


def prepare(preset: Preset, found: dict[str, FoundSet], selection: Selection) -> list[TaskData]:
    """What can be measured: a `TaskData` for each task whose set was read and has at least one of its targets. Tasks of
    one set share one `Dataset`."""
    prepared: list[TaskData] = []
    for source in preset.sources:
        place = found.get(source.key)
        if place is None or place.dataset is None:
            continue
        tasks = preset.tasks_of(source)
        matches = {task.name: match_targets(task, place.dataset) for task in tasks}
        prompts = {t.name: prompt for match in matches.values() for prompt, t in match.items()}
        renamed = {} if selection.own_words else prompts
        evaluated = preset.group(tasks[0]).evaluated
        cases = choose_cases(place.dataset, evaluated, selection)
        dataset = replace(
            place.dataset, cases=cases, targets=tuple(_called(t, renamed.get(t.name)) for t in place.dataset.targets)
        )
        for task in tasks:
            if matches[task.name]:
                concepts = tuple(_called(t, renamed.get(t.name)).name for t in matches[task.name].values())
                differs = _differences(preset, task, place, cases, selection)
                prepared.append(TaskData(task, place, dataset, concepts, tuple(differs)))
    return prepared


def match_targets(task: Task, dataset: Dataset) -> dict[str, Target]:
    """The paper's prompts that the dataset has a target for. Without listed concepts, every label."""
    if not task.concepts:
        return {target.name: target for target in dataset.targets if not target.derived}
    own = [target for target in dataset.targets if not target.derived]
    if len(task.concepts) == 1 and len(own) == 1:
        return {task.concepts[0].prompt: own[0]}
    found = {}
    for concept in task.concepts:
        names = [plain_name(name) for name in (concept.prompt, *concept.names)]
        by_name = [t for name in names for t in dataset.targets if plain_name(t.name) == name]
        by_synonym = [t for t in dataset.targets if set(map(plain_name, t.synonyms)) & set(names)]
        if by_name or by_synonym:
            found[concept.prompt] = (by_name or by_synonym)[0]
    return found


def _called(target: Target, prompt: str | None) -> Target:
    """Under the paper's name, but in the dataset's own spelling where only the spelling differs."""
    if prompt is None or plain_name(prompt) == plain_name(target.name):
        return target
    return replace(target, name=prompt, synonyms=(target.name, *target.synonyms))


def choose_cases(dataset: Dataset, evaluated: Literal["all", "held-out"], selection: Selection) -> tuple[Case, ...]:
    """The cases that count, all of them marked "test".

    Every case where the paper scored all of them or the set lies in a folder of external ones, unless the model was
    taught on it; else the test part, or where the data have none, the validation part.
    """
    parts = {split: [c for c in dataset.cases if c.split == split] for split in ("test", "val", "train")}
    if dataset.name not in selection.taught and (evaluated == "all" or is_external(dataset)):
        chosen = list(dataset.cases)
    else:
        chosen = parts["test"] or parts["val"] or parts["train"]
    marked = replace(dataset, cases=tuple(replace(case, split="test") for case in chosen))
    return tuple(cases_of(marked, "test", selection.limit))


def _differences(
    preset: Preset, task: Task, found: FoundSet, cases: Sequence[Case], selection: Selection
) -> Iterator[str]:
    source, dataset = task.source, found.dataset
    assert dataset is not None
    yield from (text for name, text in source.variants.items() if plain_name(name) == plain_name(found.path.name))
    if source.dims == 3 and dataset.dims == 2:
        yield "2D slices instead of volumes"
    side = _long_side(cases) if source.long_side and dataset.dims == 2 else None
    if side is not None and side != source.long_side:
        yield f"images of {side} instead of {source.long_side} pixels on the longer side"
    have = len(dataset.cases)
    if source.images is not None and dataset.dims == source.dims and have != source.images:
        yield (
            f"{have} of the original's {source.images} images"
            if have < source.images
            else (f"{have} images, the original has {source.images}")
        )
    if len(cases) < have:
        yield f"scored on {len(cases)} of {have}"
    if preset.group(task).evaluated == "held-out":
        yield "another part than the paper's, whose split is not published"
    if dataset.name in selection.taught:
        yield "the model was taught on other images of this set"
    matched = match_targets(task, dataset)
    lacking = [concept.prompt for concept in task.concepts if concept.prompt not in matched]
    if lacking:
        yield f"without {', '.join(lacking)}"


def _long_side(cases: Sequence[Case]) -> int | None:
    try:
        return max(cases[0].content.volume().grid[1:]) if cases else None
    except InputError:  # the runner says so, for each case
        return None
