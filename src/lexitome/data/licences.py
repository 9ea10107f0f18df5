"""Which training sets permit commercial use of what is learned from them, and what that asks of whoever does it.

Permissive means CC0, public domain, CC BY, CC BY-SA, MIT, BSD, Apache-2.0, or a public release for free use. Not
permissive: non-commercial and research-only terms, GPL, anything to be asked for, and statements that are missing, that
contradict each other or that nobody could check. This is a reading of what the sets say, not legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Verdict = Literal["permissive", "restricted", "unclear"]


class Licensed(Protocol):
    """A dataset, or the entry of one in a model's card."""

    @property
    def name(self) -> str: ...

    @property
    def licence(self) -> str: ...


@dataclass(frozen=True)
class Judgement:
    """``restricted``: the terms forbid it; ``unclear``: nothing that could be checked permits it."""

    verdict: Verdict
    why: str


def _open(why: str) -> Judgement:
    return Judgement("permissive", why)


def _closed(why: str) -> Judgement:
    return Judgement("restricted", why)


def _unclear(why: str) -> Judgement:
    return Judgement("unclear", why)


JUDGED: dict[str, Judgement] = {
    "acdc_cardiac_mr2d": _closed("CC BY-NC-SA 4.0"),
    "bccd_wbc": _open("MIT, for the images and the masks"),
    "btcv_abdomen_ct2d": _closed("registered access under Synapse terms, no licence to redistribute"),
    "busi_breast_us": _unclear("contradictory: unstated in the repository, CC0 on a mirror, CC BY 4.0 for the article"),
    "carotid_us": _open("CC BY 4.0"),
    "chaos_liver_kidney_spleen_mr2d": _closed("CC BY-NC-SA 4.0"),
    "cheng_brain_tumor_mr2d": _open("CC BY 4.0 (figshare record); repository MIT"),
    "drishti_gs": _closed("research use with citation"),
    "drive": _unclear("contradictory: research use, and CC BY 4.0 as remembered of the present page"),
    "drosophila_vnc_sstem": _closed("CC BY-NC-SA 3.0"),
    "dsb2018_brightfield_nuclei": _open("CC0 1.0"),
    "dsb2018_fluorescence_nuclei": _open("CC0 1.0"),
    "dsb2018_histology_nuclei": _open("CC0 1.0"),
    "duke_dme_fluid": _unclear("unstated; free download for research"),
    "fuseg_foot_ulcer": _unclear("unstated; public challenge data"),
    "gbm40_nuclei": _unclear("unstated"),
    "hc18_fetal_head_us": _open("CC BY 4.0 (Zenodo record)"),
    "hippocampus_msd_mr3d": _open("CC BY-SA 4.0"),
    "imlab_lung_ct2d": _unclear("unstated"),
    "isic2017": _open("CC0 as remembered of the challenge page; not stated in the repository"),
    "isic2018_task1": _closed("CC BY-NC 4.0"),
    "jsrt_scr": _closed("free for research only; the masks are non-commercial"),
    "kvasir_seg": _closed("research and education only; other use needs written permission"),
    "la_atrium_mr3d": _unclear("unstated; challenge data"),
    "openkbp_hn_ct3d": _open("MIT, the licence of the repository that holds the data; none of its own"),
    "shenzhen_cxr_lungs": _open("free use with citation, a public release of the US National Library of Medicine"),
    "sts_sarcoma_pet3d": _open("CC BY 3.0"),
    "ufba425_teeth": _unclear("contradictory: repository Apache-2.0, record not checked, parent images on request"),
    "usgra_nerve_vessel_us": _open("CC BY 4.0"),
    "wbc_tecom": _closed("GPL-3.0, which asks that what is made of it be GPL too"),
}
"""The training sets of the built-in models, judged by the texts in their dataset.json."""

_FORBIDS = re.compile(
    r"\bnc(?:sa|nd)?(?![a-z])|non-?\s?commercial|\bresearch\b|\beducational\b|\bacademic\b|\bgpl|"
    r"\bnd(?![a-z])|no ?derivatives|forbid|prohibit|permission|\brequest|\bregist"
)
_DOUBT = re.compile(
    r"unstated|unknown|not (?:stated|checked|restated|repeated)|from memory|remembered|no (?:formal )?li[cs]en[cs]e|"
    r"contradict|unclear"
)
_GRANTS = re.compile(r"\bcc-?0\b|public domain|\bcc[- ]by\b|\bmit\b|\bapache\b|\bbsd\b|\bpddl\b|\bodc-by\b")
_ATTRIBUTION = re.compile(r"\bcc[- ]by\b|\bmit\b|\bapache\b|\bbsd\b|citation|\bodc-by\b")
_SHARE_ALIKE = re.compile(r"\bcc[- ]by-sa\b|\bgpl|share-?alike")


def judge(name: str, licence: str) -> Judgement:
    """The judgement of a set: looked up for the sets of the built-in models, else read off its licence text.

    Args:
        name: of the set, e.g. "isic2017".
        licence: what its dataset.json says, in any words; "" or "unstated" permits nothing.
    """
    listed, read = JUDGED.get(name), judge_text(licence)
    if listed is None or (listed.verdict == "permissive" and read.verdict == "restricted"):
        return read  # a set of the same name with stricter terms is another set
    return listed


def judge_text(licence: str) -> Judgement:
    """Permissive only if a permissive licence is named and nothing casts doubt on it."""
    words = " ".join(licence.lower().replace("_", "-").split())
    shown = licence.strip() or "unstated"
    if _FORBIDS.search(words):
        return _closed(shown)
    return _unclear(shown) if _DOUBT.search(words) or not _GRANTS.search(words) else _open(shown)


def permits_commercial_use(dataset: Licensed) -> bool:
    return judge(dataset.name, dataset.licence).verdict == "permissive"


@dataclass(frozen=True)
class WeightsLicence:
    """What the weights of a model may be used for: `text` in a line, and the `duties` that the sets impose. ``judged``:
    name of each training set to its judgement."""

    research_only: bool
    text: str
    duties: str
    judged: dict[str, Judgement]


def licence_of_weights(datasets: Sequence[Licensed]) -> WeightsLicence:
    """Research only as soon as one set is not permissive."""
    judged = {dataset.name: judge(dataset.name, dataset.licence) for dataset in datasets}
    barring = sorted(name for name, judgement in judged.items() if judgement.verdict != "permissive")
    duties = _duties(datasets, judged)
    if barring:
        text = f"research use only: {len(barring)} of {len(judged)} training sets do not permit commercial use"
        return WeightsLicence(True, text, f"no commercial use by {', '.join(barring)}; {duties}".strip("; "), judged)
    return WeightsLicence(False, "commercial use permitted by every training set", duties, judged)


def _duties(datasets: Sequence[Licensed], judged: dict[str, Judgement]) -> str:
    texts = {d.name: f"{d.licence} {judged[d.name].why}".lower() for d in datasets}
    shared = sorted(name for name, text in texts.items() if _SHARE_ALIKE.search(text))
    cited = sorted(name for name, text in texts.items() if _ATTRIBUTION.search(text) and name not in shared)
    parts = [f"name as sources {', '.join(cited)}"] if cited else []
    parts += [f"name and share alike {', '.join(shared)}"] if shared else []
    return "; ".join(parts)
