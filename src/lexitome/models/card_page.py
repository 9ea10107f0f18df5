"""`README.md` of a model folder: what `card.json` says, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_USE = """\
Research and annotation help: a first mask from words, boxes, points or a rough mask, to be checked by a person. **Not a
medical device**, not for diagnosis or treatment. The weights may be used as their training data permit: {licence}."""
_LIMITS = """\
- Trained on the {count} set{plural} below and measured on held-out subjects of the same set{plural} only: other
  hospitals, scanners and stains will do worse. Measure it on yours before you rely on it.
- Concepts that are not in the table are answered as a guess, and said to be one.
- A 2D network: it sees volumes slice by slice, with the neighbouring slices where it was trained on volumes.
- What the sets below do not show (children, implants, rare disease, artefacts) it has not learned."""


def page(card: Mapping[str, Any]) -> str:
    """Markdown of a card in the form that `training.export` writes."""
    sets, concepts = card["sets"], card["trained_concepts"]
    plural = "" if len(sets) == 1 else "s"
    parts = [
        f"# Model card: {card['name']}",
        f"Compact network of Lexitome, {card['size_mb']} MB, SHA-256 `{card['sha256'][:16]}`. "
        f'Use: `lexitome segment -i IMAGE -o OUT --model THIS_FOLDER -t "{concepts[0]["words"]}"`.',
        f"## Intended use\n\n{_USE.format(licence=card['weights_licence'])}",
        f"## Limits\n\n{_LIMITS.format(count=len(sets), plural=plural)}",
        f"## Measured\n\n{_metrics(card['metrics'])}",
        "## Concepts\n\n"
        + _table(
            ("concept", "words", "seen in", "picture side", "presence threshold"),
            [
                (c["concept"], c["words"], ", ".join(c["families"]), c["side"], f"{c['threshold']:.2f}")
                for c in concepts
            ],
        ),
        "## Training data and licences\n\n"
        + (f"Duties: {card['weights_duties']}.\n\n" if card.get("weights_duties") else "")
        + _table(
            ("set", "modality", "licence", "source"),
            [(s["name"], s["modality"], s["licence"], s["source"]) for s in sets],
        ),
        f"## Recipe\n\nStarted from {card['provenance'].get('start', 'unknown')}, "
        f"{card['provenance'].get('steps', 'an unknown number of')} steps; all settings are in `card.json`.",
    ]
    return "\n\n".join(parts) + "\n"


def _metrics(metrics: Mapping[str, Any]) -> str:
    """Dice and presence of the parts that were measured, in percent."""
    rows = [
        (part, *(f"{100 * found[metric]:.1f}" if metric in found else "-" for metric in ("dice", "presence")))
        for part in ("validation", "test")
        if (found := metrics.get(part))
    ]
    if not rows:
        return "Nothing was measured."
    about = "By words alone, slices of volumes one by one: mean Dice of what is shown, balanced accuracy of presence."
    return f"{about}\n\n" + _table(("part", "Dice %", "presence %"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") or "-" for cell in line) + " |" for line in lines)
