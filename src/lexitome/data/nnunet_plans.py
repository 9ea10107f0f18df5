"""Plans of nnU-Net (`nnUNetPlans.json`): spacing, patch and normalisation of a configuration, and MedDINOv3's `2d_896`.

MedDINOv3 trains at 896 x 896 pixels: the patch of the plan seen with more of them, so that
``spacing = planned spacing x planned patch / 896``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lexitome.data.normalisation import Normalisation
from lexitome.errors import InputError

PLANS = "nnUNetPlans.json"
HIGH_RESOLUTION = 896


@dataclass(frozen=True)
class Plan:
    """Of a 2D configuration.

    Args:
        spacing: mm of a row and of a column.
        patch: rows and columns.
        normalisation: of the first channel.
    """

    spacing: tuple[float, float]
    patch: tuple[int, int]
    normalisation: Normalisation

    def at(self, side: int) -> Plan:
        """What the patch shows, in a square of that side."""
        rows, columns = (s * p / side for s, p in zip(self.spacing, self.patch, strict=True))
        return Plan((rows, columns), (side, side), self.normalisation)


def find_plans(root: Path) -> Path | None:
    """The plans of a raw dataset: beside it, or where nnU-Net puts them."""
    prepared = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112 - its name
    places = [root, *([Path(prepared) / root.name] if prepared else [])]
    return next((place / PLANS for place in places if (place / PLANS).is_file()), None)


def read_plans(path: Path, configuration: str = "2d") -> Plan:
    """
    Raises:
        InputError: no such plans or configuration, one in 3D, or a normalisation that is not known here.
    """
    stored = _read(path)
    try:
        found = _resolved(stored, configuration)
        spacing, patch = (tuple(found[name]) for name in ("spacing", "patch_size"))
        scheme = str(found["normalization_schemes"][0])
        properties = stored["foreground_intensity_properties_per_channel"]["0"]
    except (KeyError, TypeError, IndexError) as error:
        names = ", ".join(stored.get("configurations", {})) or "none"
        cause = f"holds no complete configuration {configuration!r} ({error!r})"
        raise InputError(path, cause, f"There are: {names}.") from error
    if len(spacing) != 2 or len(patch) != 2:
        raise InputError(path, f"the configuration {configuration!r} is not 2D", "Name one that is, such as 2d.")
    return Plan(
        (float(spacing[0]), float(spacing[1])), (int(patch[0]), int(patch[1])), _normalisation(path, scheme, properties)
    )


def with_high_resolution(plans: Mapping[str, Any], side: int = HIGH_RESOLUTION, base: str = "2d") -> dict[str, Any]:
    """The plans with a configuration `2d_<side>` more, for nnU-Net itself. It keeps the batch of its base, with more
    pixels: lower it where memory is short."""
    found = _resolved(plans, base)
    fresh = {
        "inherits_from": base,
        "data_identifier": f"{plans['plans_name']}_{base}_{side}",
        "patch_size": [side, side],
        "spacing": [s * p / side for s, p in zip(found["spacing"], found["patch_size"], strict=True)],
    }
    return {**plans, "configurations": {**plans["configurations"], f"{base}_{side}": fresh}}


def _resolved(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits."""
    own = plans["configurations"][name]
    base = own.get("inherits_from")
    return {**(_resolved(plans, base) if base else {}), **own}


def _normalisation(path: Path, scheme: str, properties: Mapping[str, float]) -> Normalisation:
    if scheme == "CTNormalization":
        names = ("percentile_00_5", "percentile_99_5", "mean", "std")
        low, high, mean, deviation = (float(properties[name]) for name in names)
        return Normalisation("nnunet_ct", (low, high, mean, deviation))
    if scheme == "ZScoreNormalization":
        return Normalisation("zscore")
    raise InputError(path, f"{scheme} is not known here", "Choose one with --set intensity=zscore.")


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read ({error})", f"Name a file {PLANS}.") from error
    if not isinstance(stored, dict):
        raise InputError(path, "holds no plans", f"Name a file {PLANS}.")
    return stored
