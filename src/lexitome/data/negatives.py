"""Which concepts are surely absent from an image, so that a model can learn to say "not found".

A concept that a dataset does not annotate may still be in its pictures: a chest CT shows the liver dome, a fundus
photograph without vessel masks shows vessels. `MAY_SHOW` lists, for each training set, the concepts of *other* sets
that its pictures can show; they are never used as negatives there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lexitome.data.dataset import UNKNOWN_FAMILY, Dataset, Target

_ABDOMEN = {"spleen", "right kidney", "left kidney", "kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
            "inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland", "left adrenal gland",
            "adrenal gland"}  # fmt: skip
_CHEST = {"lungs", "right lung", "left lung", "heart", "right clavicle", "left clavicle", "clavicles", "trachea"}
_HEART = {"right ventricle cavity", "left ventricular myocardium", "left ventricle cavity", "ventricle cavity",
          "left atrium", "heart"}  # fmt: skip
_FUNDUS = {"optic disc", "optic cup", "retinal vessel", "retinal fluid"}
_MICROSCOPY = {"nuclei", "cell membrane", "white blood cell", "white blood cell nucleus", "white blood cell cytoplasm",
               "mitochondria", "glia or extracellular space", "synapse"}  # fmt: skip
_LIMB_SKIN = {"skin lesion", "foot ulcer", "soft tissue sarcoma"}
_NECK = {"brainstem", "spinal cord", "right parotid gland", "left parotid gland", "parotid gland", "larynx",
         "mandible", "carotid artery", "teeth", "esophagus"}  # fmt: skip

GENERIC = {"blood vessel", "peripheral nerve", "soft tissue sarcoma"}
"""Names so general that no other set's picture surely lacks them; negatives only in other modalities."""

MAY_SHOW: dict[str, set[str]] = {
    "acdc_cardiac_mr2d": _HEART | _ABDOMEN | _CHEST | {"spinal cord"},
    "bccd_wbc": _MICROSCOPY,
    "btcv_abdomen_ct2d": _CHEST | _HEART | {"spinal cord"},
    "busi_breast_us": set(),
    "carotid_us": {"larynx"},
    "chaos_liver_kidney_spleen_mr2d": _ABDOMEN | _CHEST | _HEART | {"spinal cord"},
    "cheng_brain_tumor_mr2d": {
        "anterior hippocampus",
        "posterior hippocampus",
        "hippocampus",
        "brainstem",
        "spinal cord",
    },
    "drishti_gs": _FUNDUS,
    "drive": _FUNDUS,
    "drosophila_vnc_sstem": _MICROSCOPY,
    "dsb2018_brightfield_nuclei": _MICROSCOPY,
    "dsb2018_fluorescence_nuclei": _MICROSCOPY,
    "dsb2018_histology_nuclei": _MICROSCOPY,
    "duke_dme_fluid": _FUNDUS,
    "fuseg_foot_ulcer": _LIMB_SKIN,
    "gbm40_nuclei": _MICROSCOPY | {"brain tumor"},
    "hc18_fetal_head_us": set(),
    "hippocampus_msd_mr3d": {"brainstem", "brain tumor"},
    "imlab_lung_ct2d": _ABDOMEN | _CHEST | _HEART | {"spinal cord", "larynx"},
    "isic2017": _LIMB_SKIN,
    "isic2018_task1": _LIMB_SKIN,
    "jsrt_scr": _CHEST | _HEART | _ABDOMEN,
    "kvasir_seg": set(),
    "la_atrium_mr3d": _HEART | _ABDOMEN | _CHEST | {"spinal cord"},
    "openkbp_hn_ct3d": _NECK | _CHEST | {"aorta"},
    "shenzhen_cxr_lungs": _CHEST | _HEART | _ABDOMEN,
    "sts_sarcoma_pet3d": set(),
    "ufba425_teeth": _NECK,
    "usgra_nerve_vessel_us": {"carotid artery", "larynx"},
    "wbc_tecom": _MICROSCOPY,
}


def surely_absent(dataset: Dataset, others: Sequence[Dataset], *, same_family: bool) -> list[Target]:
    """Targets of `others` that no picture of `dataset` shows, of the same or of other modality families."""
    if dataset.name not in MAY_SHOW:
        return []
    blocked = MAY_SHOW[dataset.name] | {t.name for t in dataset.targets}
    if same_family:
        blocked = blocked | GENERIC
    return [
        target
        for other in others
        if (other.family == dataset.family) == same_family
        for target in other.targets
        if target.name not in blocked and not ({target.name, *target.synonyms} & {t.name for t in dataset.targets})
    ]


@dataclass(frozen=True)
class Stranger:
    """A concept that a model was taught, and the modality families in which it is seen."""

    target: Target
    families: tuple[str, ...]


def foreign(dataset: Dataset, strangers: Sequence[Stranger]) -> list[Target]:
    """What a set of unknown content surely lacks: things that only other modalities show; nothing if its own modality
    is not known."""
    if dataset.family == UNKNOWN_FAMILY:
        return []
    own = {word for target in dataset.targets for word in (target.name, *target.synonyms)}
    return [s.target for s in strangers if dataset.family not in s.families and s.target.name not in own]
