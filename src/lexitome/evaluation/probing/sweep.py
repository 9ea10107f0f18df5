"""The plot of a sweep: what a score becomes with the size of pictures, a line for each encoder. Needs matplotlib (the
extra lexitome[eval]), imported when it is drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lexitome.evaluation.report.figures import SERIES, THEME, Drawn

_WIDTH, _HEIGHT, _DPI = 6.4, 3.6, 110
_MARKERS = "os^Dv"


@dataclass(frozen=True)
class Point:
    """A score of one encoder at one side (pixels), with its interval where there is one."""

    encoder: str
    side: int
    mean: float
    low: float | None
    high: float | None


def sweep_plot(points: Sequence[Point], title: str, score: str) -> Drawn:
    """Lines are moved a little to the sides, so that their intervals do not lie on each other."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names, sides = list(dict.fromkeys(p.encoder for p in points)), sorted({p.side for p in points})
    look: Any = {
        "font.size": 8.5,
        "text.color": THEME["ink"],
        "axes.labelcolor": THEME["muted"],
        "svg.fonttype": "none",
        "svg.hashsalt": "lexitome",
    }
    with rc_context(look):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained", facecolor=THEME["card"])
        axes = figure.subplots()
        axes.set_facecolor("none")
        for index, name in enumerate(names):
            mine = sorted((p for p in points if p.encoder == name), key=lambda p: p.side)
            moved = (index - (len(names) - 1) / 2) * 0.05
            places = [sides.index(p.side) + moved for p in mine]
            reach = [[p.mean - (p.mean if p.low is None else p.low) for p in mine],
                     [(p.mean if p.high is None else p.high) - p.mean for p in mine]]  # fmt: skip
            marker = _MARKERS[index // len(SERIES) % len(_MARKERS)]
            axes.errorbar(places, [p.mean for p in mine], yerr=reach, color=SERIES[index % len(SERIES)], marker=marker,
                          markersize=4.5, linewidth=1.4, elinewidth=0.9, capsize=2, label=name)  # fmt: skip
        axes.set(xticks=range(len(sides)), xticklabels=list(map(str, sides)), xlabel="side of pictures, pixels",
                 ylabel=score)  # fmt: skip
        axes.set_xlim(-0.4, len(sides) - 0.6)
        axes.grid(axis="y", color=THEME["line"], linewidth=0.6)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(THEME["line"])
        axes.set_title(title, fontsize=9, loc="left")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        vector, pixels = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format="svg", metadata={"Date": None})
        figure.savefig(pixels, format="png", metadata={"Software": None}, dpi=_DPI)
    return Drawn(vector.getvalue(), pixels.getvalue())
