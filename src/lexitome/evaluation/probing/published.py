"""What "Does DINOv3 set a new medical vision standard?" (arXiv 2509.06467 v3) published: data sets, protocols, numbers.

Quoted, never measured here; `assets/published/dinov3-medical.json`. Beside ours they stand only for the same data set,
and are marked as published.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from lexitome.evaluation.presets import plain_name

FILE = "dinov3-medical.json"


@dataclass(frozen=True)
class PublishedProbe:
    """One published number.

    Args:
        protocol: a key of `protocols`.
        model: as published.
        metric: as published, "auc", "accuracy", "dice"...
        value: in the unit of the paper, see `unit`.
        higher_is_better: False for errors.
        note: what a reader of this number must know; "" for nothing.
    """

    dataset: str
    protocol: str
    model: str
    metric: str
    value: float
    unit: str
    higher_is_better: bool
    note: str


@cache
def preset() -> dict[str, Any]:
    """The file: "title", "url", "caveats", "protocols" (key to words), "datasets" (key to title, size, split, task,
    aliases), "numbers"."""
    text = files("lexitome").joinpath("assets", "published", FILE).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def published_probes(dataset: str | None = None) -> list[PublishedProbe]:
    """All numbers, or those of a data set by its name or one of its aliases."""
    entry = preset()
    found = []
    for table in entry["numbers"]:
        about = entry["datasets"][table["dataset"]]
        names = (table["dataset"], about["title"], *about["aliases"])
        if dataset is not None and plain_name(dataset) not in map(plain_name, names):
            continue
        for model, value in table["values"].items():
            found.append(PublishedProbe(
                about["title"], table["protocol"], model, table["metric"], float(value), table["unit"],
                bool(table.get("higher_is_better", True)), str(table.get("note", "")),
            ))  # fmt: skip
    return found


def published_lines(names: Sequence[str]) -> list[str]:
    """Markdown: the published numbers of data sets that were measured; else of which data sets there are some."""
    entry = preset()
    mine = [each for name in names for each in published_probes(name)]
    if not mine:
        titles = ", ".join(sorted({about["title"] for about in entry["datasets"].values()}))
        return [f"{entry['title']} ({entry['url']}) has numbers of: {titles}. None of these was probed here."]
    lines = ["## Published, not measured here", "", f"{entry['title']}: {entry['url']}. "
             "Other images, splits and protocols: no number below was measured by this command.", ""]  # fmt: skip
    lines += ["| data set | protocol | metric | model | published |", "|---|---|---|---|---|"]
    for each in mine:
        arrow = "" if each.higher_is_better else " (lower is better)"
        lines.append(f"| {each.dataset} | {each.protocol} | {each.metric}{arrow} | {each.model} | {each.value:g} |")
    return [*lines, "", *(f"- {caveat}" for caveat in entry["caveats"])]
