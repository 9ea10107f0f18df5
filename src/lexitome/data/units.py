"""Which images belong together: the subject, video or section, told from file names, must not be split.

Names of unknown sets are read by a rule: what trails after the last identifier and looks like the number of a frame,
slice, tile, side or channel is stripped ("patient_001_slice_12" -> "patient_001"). What was understood is said, and a
regular expression can overrule it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lexitome.data.dataset import Finding
from lexitome.errors import InputError

_PARTS = (
    "slice|slc|sl|s|z|frame|frm|fr|f|img|image|im|tile|patch|crop|roi|time|tp|t|section|sec|view|v|rater|r|page|layer"
    "|level|depth|x|y|row|col"
)
_CHANNELS = "left|right|od|os|l|r|pet|ct|mr|t1|t1c|t1ce|t1gd|t2|flair|dwi|adc"
_TAGGED = re.compile(rf"[_\-./\s]+(?:(?:{_PARTS})[_\-.]?\d+|{_CHANNELS})$|(?<=\d)[LR]$", re.IGNORECASE)
_NUMBER = re.compile(r"[_\-./\s]+\d+$")
_BIDS = re.compile(r"^(?:.*/)?(sub-[A-Za-z0-9]+)")
FEWEST_UNITS = 3
_FEWEST_AFTER_TWO_NUMBERS = 10


@dataclass(frozen=True)
class Units:
    """Stem to unit, and how it was found."""

    of: dict[str, str]
    finding: Finding


def find_units(stems: Sequence[str], pattern: str | None = None) -> Units:
    """The unit of every stem, by `pattern` (its first group, or the whole match) or by the rule above.

    Raises:
        InputError: `pattern` is no regular expression, or matches no name.
    """
    if pattern is not None:
        return _by_pattern(stems, pattern)
    units = _bids_subjects(stems) or _strip_parts(stems)
    count = len(set(units.values()))
    remedy = "If that is wrong, give --unit-pattern REGEX: its first group (or whole match) in a name is the subject."
    if count == len(stems):
        return Units(units, Finding("hint", "subjects", "every image counts as a subject of its own", remedy))
    example = next(stem for stem in stems if units[stem] != stem)
    cause = f"names tell {count} subjects in {len(stems)} images, e.g. {example!r} is of {units[example]!r}"
    return Units(units, Finding("hint", "subjects", cause, remedy))


def _by_pattern(stems: Sequence[str], pattern: str) -> Units:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(
            "--unit-pattern", f"{pattern!r} is not a regular expression ({error})", "Correct it."
        ) from None
    matches = {stem: expression.search(stem) for stem in stems}
    units = {s: (m[1] if m.re.groups and m[1] else m[0]) if m else s for s, m in matches.items()}
    missed = tuple(stem for stem, match in matches.items() if match is None)
    if len(missed) == len(stems):
        raise InputError("--unit-pattern", f"{pattern!r} matches no name, e.g. not {stems[0]!r}", "Correct it.")
    cause = f"the pattern tells {len(set(units.values()))} subjects in {len(stems)} images"
    if not missed:
        return Units(units, Finding("hint", "subjects", cause, "Nothing to do."))
    remedy = "Correct --unit-pattern if these have a subject that others share."
    return Units(units, Finding("warning", "subjects", f"{cause}; it misses {len(missed)} names", remedy, missed))


def _bids_subjects(stems: Sequence[str]) -> dict[str, str]:
    """ "sub-01_ses-2_T1w" -> "sub-01" where every name is of this kind, else {}."""
    matches = {stem: _BIDS.match(stem) for stem in stems}
    return {stem: match[1] for stem, match in matches.items() if match} if all(matches.values()) else {}


def _strip_parts(stems: Sequence[str]) -> dict[str, str]:
    """Strip trailing parts from all names in step, as long as enough units remain."""
    units = {stem: stem for stem in stems}
    numbers = 0
    while True:
        tagged = {stem: _strip(unit, _TAGGED) for stem, unit in units.items()}
        is_tagged = tagged != units
        shorter = tagged if is_tagged else {stem: _strip(unit, _NUMBER) for stem, unit in units.items()}
        numbers += not is_tagged
        # A second bare number may be a date or a site: taking it for a slice needs many subjects to remain.
        fewest = _FEWEST_AFTER_TWO_NUMBERS if numbers > 1 else FEWEST_UNITS
        if shorter == units or len(set(shorter.values())) < fewest:
            break
        if not is_tagged and _are_running(units, shorter):
            break
        units = shorter
    return units if len(set(units.values())) < len(stems) else {stem: stem for stem in stems}


def _are_running(units: dict[str, str], shorter: dict[str, str]) -> bool:
    """Whether the stripped numbers run through the whole set, so that they are of images and the rest is a category.

    Slices are numbered anew in every subject, hence their numbers repeat.
    """
    ends = {(unit, unit[len(shorter[stem]) :]) for stem, unit in units.items() if shorter[stem] != unit}
    return len({end for _, end in ends}) == len(ends)


def _strip(name: str, part: re.Pattern[str]) -> str:
    """`name` without its trailing part, unless nothing that identifies (a digit) would remain."""
    rest = part.sub("", name)
    return rest if any(character.isdigit() for character in rest) else name
