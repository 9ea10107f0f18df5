"""How findings are named and coded in DICOM objects."""

from __future__ import annotations

import hashlib
import re
from importlib.metadata import version

from lexitome.concepts import Code
from lexitome.segmentation import Finding

MANUFACTURER = "Lexitome"
SOFTWARE_VERSION = version("lexitome")
PRIVATE_SCHEME = "99LEXITOME"
"""Coding scheme of findings without a standard code; DICOM reserves the prefix 99 for such schemes."""

ANATOMICAL = Code("123037004", "SCT", "Anatomical Structure")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")

PHYSICAL_OBJECT = Code("260787004", "SCT", "Physical Object")

# Words of the vocabulary and of clinicians; DICOM asks for a category and a concept has none of its own.
_ABNORMAL_WORDS = re.compile(
    r"\b(abnormal|abscess|aneurysm|ascites|atelectas|atrophy|bleed|burn|calcification|cancer|caries|consolidation|cyst"
    r"|defect|detachment|dissection|drusen|o?edema|effusion|embol|emphysema|exudate|fibroid|fracture|ha?emorrhage"
    r"|hernia|hyperintensity|infarct|infection|infiltrat|lesion|mass\b|metasta|microaneurysm|microbleed"
    r"|microcalcification|naev|nevus|necro|neoplasm|neovascular|nodule|opacity|plaque|pneumonia|pneumothorax|polyp"
    r"|rash|scar\b|stenosis|stone|stroke|gallstone|thromb|tubercul|tumou?r|ulcer|wound)|\w(?<!str)oma\b|\witis\b"
)
_OBJECT_WORDS = re.compile(
    r"\b(catheter|clip|crown|device|filling|forceps|gauze|implant|instrument|needle|pacemaker|prosthesis|scissors"
    r"|screw|snare|stent|sutur|(?<!fallopian )tube\b|tool)"
)


def type_code(finding: Finding) -> Code:
    """The concept's own code, else a private one: the same words always get the same value."""
    if finding.concept is not None and finding.concept.code is not None:
        code = finding.concept.code
        return Code(code.value, code.scheme, code.meaning[:64])
    words = finding.concept.name if finding.concept is not None else finding.name
    words = " ".join(words.lower().split()) or "finding"
    # A code value has at most 16 plain characters, so it is a digest; the words are its meaning.
    return Code("L" + hashlib.sha256(words.encode()).hexdigest()[:12].upper(), PRIVATE_SCHEME, label(words))


def category_code(finding: Finding) -> Code:
    """SNOMED CT category of the segmented property: a thing, an abnormality, or else anatomy."""
    words = f"{finding.concept.name if finding.concept is not None else ''} {finding.name}".lower()
    if _OBJECT_WORDS.search(words):
        return PHYSICAL_OBJECT
    return ABNORMAL if _ABNORMAL_WORDS.search(words) else ANATOMICAL


def label(name: str) -> str:
    """At most 64 characters (DICOM's LO), without the backslash, which separates values, and control characters."""
    text = "".join(char if char.isprintable() and char != "\\" else " " for char in name)
    return " ".join(text.split())[:64].strip() or "finding"
