"""Who is asked by `lexitome evaluate` and `lexitome benchmark`: the model of --model, by what its folder holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lexitome.cli.training_extra import need_packages
from lexitome.errors import InputError

if TYPE_CHECKING:
    from lexitome.evaluation.answering import Answerer
    from lexitome.evaluation.protocols import ProtocolSpec


def model_answerer(
    model: str,
    command: str,
    name: str = "",
    *,
    policy: str | None = None,
    side: int | None = None,
    precision: str | None = None,
) -> Answerer:
    """A U-Net specialist or several (what `lexitome train unet` wrote), a segmenter of `lexitome train meddinov3`, a
    SAM, a SAM3, or a compact model.

    Args:
        model: a folder, or else as `models.foundation.kind_of` takes it.
        command: that asks, for messages.
        name: what tables call a specialist, a segmenter or a SAM; the others are called as their cards or weights are.
        policy, side, precision: of SAM3, see `lexitome segment`.

    Raises:
        InputError: no such model, its weights are not here, the packages that it needs are not installed, or it does
            not have such an option.
    """
    from lexitome.inference.loading import check_model, refuse_sam3_options
    from lexitome.models.foundation import kind_of, locate

    folder, kind = Path(model), kind_of(model)
    if kind != "sam3":
        refuse_sam3_options(model, policy, side, precision)
    if kind == "specialist":
        need_packages(command)
        from lexitome.recipes.specialist_answers import specialist_answerer

        return specialist_answerer(folder, name or "specialist")
    if kind == "segmenter":
        need_packages(command)
        from lexitome.recipes.meddinov3_answers import meddinov3_answerer

        return meddinov3_answerer(folder, name)
    if kind == "dinov3":
        check_model(model)
    if kind == "compact":
        from lexitome.evaluation.answering import compact_answerer

        return compact_answerer(model)
    need_packages(command)
    if kind == "sam":
        from lexitome.recipes.sam_answers import sam_answerer

        return sam_answerer(locate(model), name or "sam")
    from lexitome.recipes.sam3_answers import sam3_answerer

    return sam3_answerer(model, policy=policy, side=side, precision=precision)  # type: ignore[arg-type] # it checks


def taken(specs: Sequence[ProtocolSpec], answerer: Answerer, say: Callable[[str], None]) -> list[ProtocolSpec]:
    """Those protocols that it takes; what nobody chose for it is left out with a note.

    Raises:
        InputError: it takes none.
    """
    from lexitome.evaluation.protocols import check_taken

    kept = []
    for spec in specs:
        try:
            check_taken(spec, answerer.name, answerer.takes)
            kept.append(spec)
        except InputError as error:
            say(f"note: {error.cause}: not asked")
    if not kept:
        check_taken(specs[0], answerer.name, answerer.takes)
    return kept
