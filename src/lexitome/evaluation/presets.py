"""Published experiments as data: their tasks, prompts, protocols and numbers, each with the table it was printed in.

The files are in `assets/published/`: one for each preset, and `datasets.json` for the sets they were measured on (home
page, licence, how to get them; "not checked" wherever nobody could confirm it). Nothing here is measured by us.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import TypeAdapter

from lexitome.errors import InputError

PRESETS = ("medical-sam3", "meddinov3", "sam-zero-shot")
NOT_CHECKED = "not checked"

Values = Mapping[str, Mapping[str, float]]
"""Column to metric to value, a share of 1."""


@dataclass(frozen=True)
class Source:
    """A dataset that a published experiment used.

    Args:
        get: where and how it is had, e.g. after registration.
        licence_from: who says so.
        size: in words; `images` is the number of annotated images or volumes, None where it is not known.
        dims: 3 for volumes.
        long_side: pixels of the longer side of every original image, None where they differ or nobody checked.
        aliases: names of folders that hold it, compared without case and punctuation.
        variants: folder name to what is known to differ in that copy.
    """

    key: str
    title: str
    home: str
    get: str
    licence: str
    licence_from: str
    size: str
    images: int | None
    dims: int
    aliases: tuple[str, ...]
    long_side: int | None = None
    variants: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Concept:
    """A target in the paper's words, and the names it may have among the labels of a dataset."""

    prompt: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """A model as published.

    Args:
        protocol: ours that asks in the same way, as typed after --prompts; "" where none does.
        setting: the published protocol in words; says "oracle" where prompts came from the reference.
        source: paper and table.
    """

    key: str
    model: str
    protocol: str
    setting: str
    source: str


@dataclass(frozen=True)
class Group:
    """Tasks that are averaged together.

    Args:
        evaluated: whether all images were scored, or only a part that was held out from training.
        source: of the printed `means`.
        means: over all tasks of the group, as printed.
    """

    key: str
    title: str
    evaluated: Literal["all", "held-out"]
    source: str
    means: Values


@dataclass(frozen=True)
class Task:
    """One line of a published table.

    Args:
        concepts: () for every label of the dataset under its own name. With several, a score is the mean over them.
    """

    name: str
    source: Source
    group: str
    concepts: tuple[Concept, ...]
    published: Values
    note: str = ""

    @property
    def prompt(self) -> str:
        """What is asked, in a few words."""
        shown = ", ".join(concept.prompt for concept in self.concepts[:2])
        more = len(self.concepts) - 2
        return f"{shown} and {more} more" if more > 0 else shown or "each label of the set"


@dataclass(frozen=True)
class Preset:
    """A published experiment.

    Args:
        scale: what the stored numbers are divided by to become shares of 1.
        decimals: with which they were printed, in percent.
        metrics: the published ones, the most important first; names of `evaluation.metrics.METRICS`.
        protocols: ours that are run by default, as typed.
        tolerance_mm: of the published NSD, None where there is none.
        caveats: what must be known before numbers of others are compared.
    """

    name: str
    title: str
    paper: str
    url: str
    scale: float
    decimals: int
    metrics: tuple[str, ...]
    protocols: tuple[str, ...]
    caveats: tuple[str, ...]
    groups: tuple[Group, ...]
    columns: tuple[Column, ...]
    tasks: tuple[Task, ...]
    tolerance_mm: float | None = None

    @property
    def sources(self) -> tuple[Source, ...]:
        """Of its tasks, each once, in their order."""
        return tuple({task.source.key: task.source for task in self.tasks}.values())

    def group(self, task: Task) -> Group:
        return next(group for group in self.groups if group.key == task.group)

    def tasks_of(self, source: Source) -> list[Task]:
        return [task for task in self.tasks if task.source.key == source.key]

    def column(self, key: str) -> Column:
        return next(column for column in self.columns if column.key == key)


@dataclass(frozen=True)
class PublishedScore:
    """One published number for a dataset, to be shown beside ours and marked as published."""

    preset: str
    task: str
    model: str
    protocol: str
    setting: str
    metric: str
    value: float
    source: str
    differs: str


@cache
def load_sources() -> dict[str, Source]:
    """Every dataset of the presets, by its key."""
    entries = _read("datasets.json")
    return TypeAdapter(dict[str, Source]).validate_python({k: {"key": k, **entry} for k, entry in entries.items()})


@cache
def load_preset(name: str) -> Preset:
    """
    Raises:
        InputError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise InputError(name, "is no benchmark that is known", f"Type one of {', '.join(PRESETS)}.")
    entry, sources = _read(f"{name}.json"), load_sources()
    entry["tasks"] = [
        {key: value for key, value in task.items() if key != "dataset"} | {"source": sources[task["dataset"]]}
        for task in entry["tasks"]
    ]
    preset = TypeAdapter(Preset).validate_python(entry)
    return replace(
        preset,
        groups=tuple(replace(group, means=_shares(group.means, preset.scale)) for group in preset.groups),
        tasks=tuple(replace(task, published=_shares(task.published, preset.scale)) for task in preset.tasks),
    )


def published_for(dataset: str) -> list[PublishedScore]:
    """Every published number for a dataset of that name, of all presets."""
    return list(_published_for(dataset))


def _published_for(dataset: str) -> Iterator[PublishedScore]:
    for preset in map(load_preset, PRESETS):
        for task in preset.tasks:
            if plain_name(dataset) not in map(plain_name, task.source.aliases):
                continue
            differs = next((v for k, v in task.source.variants.items() if plain_name(k) == plain_name(dataset)), "")
            for column in preset.columns:
                for metric, value in task.published.get(column.key, {}).items():
                    yield PublishedScore(
                        preset.name, task.name, column.model, column.protocol, column.setting, metric, value,
                        column.source, differs,
                    )  # fmt: skip


def plain_name(text: str) -> str:
    """Without case, punctuation and the number that nnU-Net puts before a name ("Dataset017_BTCV" -> "btcv")."""
    lowered = text.lower()
    head, _, tail = lowered.partition("_")
    if tail and head.startswith("dataset") and head.removeprefix("dataset").isdigit():
        lowered = tail
    return "".join(letter for letter in lowered if letter.isalnum())


def _read(name: str) -> dict[str, Any]:
    return json.loads(files("lexitome").joinpath("assets", "published", name).read_text(encoding="utf-8"))


def _shares(values: Values, scale: float) -> dict[str, dict[str, float]]:
    return {key: {metric: value / scale for metric, value in entry.items()} for key, entry in values.items()}
