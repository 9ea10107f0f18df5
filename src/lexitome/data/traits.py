"""What is known about a training set beyond its files: may its pictures be mirrored, how large must they be seen, how
often should it have its turn. Sets that are not listed get what their modality and their labels allow."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from lexitome.data.dataset import Dataset

Size = Literal["small", "medium", "fine"]
SIZES: tuple[Size, ...] = ("small", "medium", "fine")
CACHE_SIDE: dict[Size, int] = {"small": 224, "medium": 448, "fine": 512}
"""Side of the cached pictures: coarse volumes gain nothing from more, vessels and membranes need all there is."""

_NO_WAY_UP = frozenset({"dermoscopy", "endoscopy", "photo", "blood-smear", "brightfield", "fluorescence", "histology",
                        "electron-microscopy"})  # fmt: skip
_SIDED = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class SetTraits:
    """Args:
    rotate: pictures have no fixed way up: any rotation and flip shows the same kind of thing.
    mirror: left and right of the patient cannot be told, or are not named.
    turns: a set is drawn with probability ~ sqrt(pictures) x turns.
    size: "small" coarse volumes, "medium" most, "fine" thin or tiny structures that need high resolution.
    countable: its targets are separate objects (connected parts, or the ids of `instances/`).
    slice_step: neighbouring slices are near-duplicates; training takes every n-th.
    neighbours: the slices of a volume are shown with the slices before and after them as channels.
    """

    rotate: bool = False
    mirror: bool = False
    turns: float = 1.0
    size: Size = "medium"
    countable: bool = False
    slice_step: int = 1
    neighbours: bool = True


def _free(turns: float = 1.0, size: Size = "medium") -> SetTraits:
    return SetTraits(rotate=True, mirror=True, turns=turns, size=size, countable=True)


TRAITS: dict[str, SetTraits] = {
    "acdc_cardiac_mr2d": SetTraits(),
    "bccd_wbc": _free(),
    "btcv_abdomen_ct2d": SetTraits(turns=5.5),
    "busi_breast_us": SetTraits(mirror=True, countable=True),
    "carotid_us": SetTraits(mirror=True),
    "chaos_liver_kidney_spleen_mr2d": SetTraits(turns=1.5),
    "cheng_brain_tumor_mr2d": SetTraits(mirror=True, turns=1.5, countable=True),
    "drishti_gs": SetTraits(mirror=True),
    "drive": SetTraits(mirror=True, turns=3.5, size="fine"),
    "drosophila_vnc_sstem": SetTraits(rotate=True, mirror=True, turns=2.0, size="fine"),
    "dsb2018_brightfield_nuclei": _free(size="fine"),
    "dsb2018_fluorescence_nuclei": _free(size="fine"),
    "dsb2018_histology_nuclei": _free(1.5, size="fine"),
    "duke_dme_fluid": SetTraits(mirror=True),
    "fuseg_foot_ulcer": _free(),
    "gbm40_nuclei": _free(1.5, size="fine"),
    "hc18_fetal_head_us": SetTraits(mirror=True),
    "hippocampus_msd_mr3d": SetTraits(turns=1.0, size="small", slice_step=2),
    "imlab_lung_ct2d": SetTraits(turns=1.5),
    "isic2017": _free(4.5),
    "isic2018_task1": _free(4.5),
    "jsrt_scr": SetTraits(),
    "kvasir_seg": _free(7.0),
    "la_atrium_mr3d": SetTraits(size="small", slice_step=2),
    "openkbp_hn_ct3d": SetTraits(turns=2.5, size="small"),
    "shenzhen_cxr_lungs": SetTraits(turns=0.7),
    "sts_sarcoma_pet3d": SetTraits(mirror=True, turns=0.6, size="small", countable=True),
    "ufba425_teeth": SetTraits(mirror=True, size="fine", countable=True),
    "usgra_nerve_vessel_us": SetTraits(mirror=True, turns=1.5),
    "wbc_tecom": _free(0.7),
}


def traits_of(dataset: Dataset) -> SetTraits:
    """The listed traits, or cautious ones: turned where the modality has no way up, mirrored also where no label names
    a side. A lateralised label and a mirrored picture exclude each other, whatever the list says."""
    listed = TRAITS.get(dataset.name)
    sided = any(_SIDED.search(word) for target in dataset.targets for word in (target.name, *target.synonyms))
    if listed is not None:
        return replace(listed, rotate=False, mirror=False) if sided else listed
    free = dataset.family in _NO_WAY_UP and not sided
    return SetTraits(rotate=free, mirror=free, size="medium", countable=False)
