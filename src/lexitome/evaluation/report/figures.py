"""The plots of a report, each as SVG and PNG. Needs matplotlib (the extra lexitome[eval]), imported when one is drawn.

Series are told apart by colours of Okabe and Ito (Color Universal Design, 2008), which all kinds of colour vision
separate; oracle series are hatched as well.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THEME = {"ink": "#1b2733", "muted": "#65717e", "line": "#dbe1e8", "card": "#fefefe"}
"""Colours that a page replaces by its own, so that a figure fits light and dark; nothing else has these values."""
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MOST_ROWS = 36
"""Rows of one figure; more go on the next one."""
_WIDTH, _ROW, _FRAME = 7.6, 0.17, 0.95
"""Inches: of a figure, of one series in a row, of what is above and below the rows."""
_VECTOR_POINTS = 1500
"""More points than this are drawn as an image inside the SVG, which stays small so."""
_PNG_DPI = 96
_LABEL = 44


@dataclass(frozen=True, eq=False)
class Spread:
    """The cases behind one mean.

    Args:
        row: where it stands, e.g. the name of a dataset.
        series: which colour it has, e.g. the name of a model.
        values: one for each case, in the unit of the axis.
        bounds: interval of the mean, None where there is none.
    """

    row: str
    series: str
    values: NDArray[np.float64]
    mean: float
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Curve:
    """Reliability: of all pixels (or answers) given about this probability, the share that was right; and how many
    there are. One entry for each bin, NaN where it is empty."""

    name: str
    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    counts: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Drawn:
    svg: str
    png: bytes


def available() -> bool:
    """Whether matplotlib is there; a report without it has tables only, and says so."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def box_plots(spreads: Sequence[Spread], axis: str, *, oracle: bool = False) -> list[Drawn]:
    """Rows of boxes (quartiles, median, whiskers to the last case within 1.5 interquartile ranges, dots beyond), a
    diamond at the mean. Several figures where there are many rows."""
    return [_draw_page(page, axis, oracle, strips=False) for page in _pages(spreads)]


def strip_plots(spreads: Sequence[Spread], axis: str, *, oracle: bool = False) -> list[Drawn]:
    """Rows of dots, one for each case, with the mean and its interval in front."""
    return [_draw_page(page, axis, oracle, strips=True) for page in _pages(spreads)]


def _pages(spreads: Sequence[Spread]) -> list[list[Spread]]:
    rows = list(dict.fromkeys(spread.row for spread in spreads))
    series = max(1, len({spread.series for spread in spreads}))
    most = max(8, MOST_ROWS * 2 // (series + 1))
    pages = -(-len(rows) // most)
    size = -(-len(rows) // max(1, pages))
    parts = [set(rows[start : start + size]) for start in range(0, len(rows), max(1, size))]
    return [[spread for spread in spreads if spread.row in part] for part in parts]


def _draw_page(spreads: Sequence[Spread], axis: str, oracle: bool, *, strips: bool) -> Drawn:
    rows = list(dict.fromkeys(spread.row for spread in spreads))
    series = list(dict.fromkeys(spread.series for spread in spreads))
    tall = max(2, len(series) + 1) * _ROW * len(rows) + _FRAME
    figure, axes = _canvas(_WIDTH, tall)
    points = sum(len(spread.values) for spread in spreads)
    for spread in spreads:
        at = rows.index(spread.row) + (series.index(spread.series) + 1) / (len(series) + 1) - 0.5
        room = 0.8 / (len(series) + 1)
        colour = SERIES[series.index(spread.series) % len(SERIES)]
        if strips:
            _draw_strip(axes, spread, at, room, (colour, points > _VECTOR_POINTS))
        else:
            _draw_box(axes, spread, at, room, (colour, oracle))
    for edge in range(1, len(rows)):
        axes.axhline(edge - 0.5, color=THEME["line"], linewidth=0.6, zorder=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [_short(row) for row in rows])
    axes.set_xlim(-1.5, 101.5)
    axes.set_xlabel(axis)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=THEME["line"], linewidth=0.6)
    _name_series(axes, series, hatched=oracle and not strips)
    return _finish(figure)


def _draw_box(axes: Axes, spread: Spread, at: float, room: float, look: tuple[str, bool]) -> None:
    colour, oracle = look
    low, middle, high = np.percentile(spread.values, [25, 50, 75])
    reach = 1.5 * (high - low)
    within = spread.values[(spread.values >= low - reach) & (spread.values <= high + reach)]
    beyond = spread.values[(spread.values < low - reach) | (spread.values > high + reach)]
    whiskers = [min(float(within.min()), low), high], [low, max(float(within.max()), high)]
    axes.hlines([at, at], *whiskers, color=colour, linewidth=1.1, zorder=2)
    style: dict[str, Any] = {"hatch": "////", "linestyle": (0, (3, 1.5))} if oracle else {}
    axes.barh(at, high - low, room, low, facecolor=_pale(colour), edgecolor=colour, linewidth=1, zorder=3, **style)
    axes.vlines(middle, at - room / 2, at + room / 2, color=colour, linewidth=2, zorder=4)
    axes.plot(beyond, np.full(len(beyond), at), "o", color=colour, markersize=2, alpha=0.55, markeredgewidth=0,
              zorder=2, rasterized=len(beyond) > 100)  # fmt: skip
    axes.plot([spread.mean], [at], "D", color=THEME["card"], markeredgecolor=THEME["ink"], markersize=3.6, zorder=5)


def _draw_strip(axes: Axes, spread: Spread, at: float, room: float, look: tuple[str, bool]) -> None:
    colour, rasterized = look
    # Dots are spread by a fixed low-discrepancy sequence: the picture is the same every time.
    apart = (np.arange(len(spread.values)) * 0.618033988749895) % 1.0 - 0.5
    axes.plot(spread.values, at + 0.9 * room * apart, "o", color=colour, markersize=2.4, alpha=0.4, markeredgewidth=0,
              zorder=2, rasterized=rasterized)  # fmt: skip
    if spread.bounds is not None:
        axes.hlines(at, *spread.bounds, color=THEME["ink"], linewidth=1.6, zorder=4)
    axes.vlines(spread.mean, at - room / 2, at + room / 2, color=THEME["ink"], linewidth=1.6, zorder=5)


def reliability_diagram(curves: Sequence[Curve], axes_names: tuple[str, str]) -> Drawn:
    """Predicted against observed share with the diagonal of perfect calibration, and below how many there were."""
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(5.2, 6.2 + 0.2 * len(curves)), layout="constrained", facecolor=THEME["card"])
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.plot([0, 1], [0, 1], color=THEME["muted"], linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated")
    for index, curve in enumerate(curves):
        colour, known = SERIES[index % len(SERIES)], np.isfinite(curve.predicted) & np.isfinite(curve.observed)
        upper.plot(curve.predicted[known], curve.observed[known], "o-", color=colour, linewidth=1.4, markersize=4,
                   markeredgewidth=0, label=curve.name)  # fmt: skip
        share = curve.counts / max(float(np.nansum(curve.counts)), 1.0)
        lower.plot(
            curve.predicted[known], share[known], "o-", color=colour, linewidth=1, markersize=3, markeredgewidth=0
        )
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel=axes_names[1])
    lower.set(xlabel=axes_names[0], ylabel="share", ylim=(0, 1), yticks=(0, 0.5, 1))
    for axes in (upper, lower):
        _clean(axes)
        axes.grid(color=THEME["line"], linewidth=0.6)
    with _style():  # above the axes: curves run through every corner of them
        figure.legend(loc="outside upper left", frameon=False, fontsize=8, labelcolor=THEME["ink"])
    return _finish(figure)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(width, height), layout="constrained", facecolor=THEME["card"])
        axes = figure.subplots()
    _clean(axes)
    return figure, axes


def _style() -> Any:
    import matplotlib

    ink, muted = THEME["ink"], THEME["muted"]
    return matplotlib.rc_context({
        "font.size": 8.5, "text.color": ink, "axes.labelcolor": muted, "xtick.color": muted, "ytick.color": ink,
        "svg.fonttype": "none", "svg.hashsalt": "lexitome", "hatch.linewidth": 0.5,
    })  # fmt: skip


def _clean(axes: Axes) -> None:
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(THEME["line"])
    axes.tick_params(axis="x", color=THEME["line"])
    axes.set_axisbelow(True)


def _name_series(axes: Axes, series: Sequence[str], *, hatched: bool) -> None:
    from matplotlib.patches import Patch

    if len(series) < 2 and not hatched:
        return
    look: dict[str, Any] = {"hatch": "////"} if hatched else {}
    patches = [
        Patch(facecolor=_pale(colour), edgecolor=colour, label=name, **look)
        for name, colour in zip(series, SERIES * (len(series) // len(SERIES) + 1), strict=False)
    ]
    axes.legend(handles=patches, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(3, len(series)), frameon=False,
                fontsize=8, labelcolor=THEME["ink"], borderaxespad=0.2)  # fmt: skip


def _finish(figure: Figure) -> Drawn:
    vector, pixels = io.StringIO(), io.BytesIO()
    with _style():
        figure.savefig(vector, format="svg", metadata={"Date": None}, dpi=150)
        figure.savefig(pixels, format="png", metadata={"Software": None}, dpi=_PNG_DPI)
    # A hundredth of a point is finer than anybody sees; six decimals would be half of the file.
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", vector.getvalue())
    return Drawn(svg, _few_colours(pixels.getvalue()))


def _few_colours(png: bytes) -> bytes:
    """A plot has few colours: an eighth of the size, and no difference to see."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as opened:
        opened.convert("RGB").quantize(48, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _pale(colour: str) -> tuple[float, float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue, 0.28


def _short(text: str) -> str:
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"
