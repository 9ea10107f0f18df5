"""The segmenter of a model, whatever its family: what the command line and the Python function ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from lexitome.errors import InputError
from lexitome.inference.segmenter import Segmenter
from lexitome.models.foundation import FOUNDATION, NEEDS, Kind, kind_of, locate
from lexitome.prompts import Query
from lexitome.segmentation import Segmentation
from lexitome.volume import Volume


class AnySegmenter(Protocol):
    """The two steps of `inference.segmenter.Segmenter`. What `encode` returns is for the `decode` of the same one."""

    def encode(self, volume: Volume, queries: Sequence[Query] = (), /) -> Any: ...

    def decode(
        self,
        encoded: Any,
        queries: Sequence[Query],
        /,
        *,
        flips: bool | None = None,
        probabilities: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Segmentation: ...


def check_model(model: str | Path) -> Kind:
    """The family of a model; refuses what `load_segmenter` would refuse, as far as that can be told without loading or
    downloading.

    Raises:
        InputError: there is no such model, or its weights are not on this machine.
    """
    if (kind := kind_of(model)) == "dinov3":
        remedy = f"Teach it your own targets: lexitome train meddinov3 --start {model} --data DIR"
        raise InputError(f"model {str(model)!r}", "is an encoder, which finds nothing by itself", remedy)
    baselines = {"sam": "SAM takes boxes alone, and", "specialist": "a U-Net of one set"}
    if kind in baselines:
        remedy = f"Choose another model, or type: lexitome evaluate --model {model}"
        raise InputError(f"model {str(model)!r}", f"{baselines[kind]} serves as a baseline only", remedy)
    if str(model) in FOUNDATION:
        locate(model)
    return kind


def refuse_sam3_options(model: str | Path, policy: str | None, side: int | None, precision: str | None = None) -> None:
    """
    Raises:
        InputError: one is given, and the model is not SAM3.
    """
    for option, value in (("--policy", policy), ("--side", side), ("--precision", precision)):
        if value is not None:
            raise InputError(option, f"is an option of SAM3, which {str(model)!r} is not", "Leave it out.")


def load_segmenter(
    model: str | Path = "compact", *, threads: int | None = None, policy: str | None = None, side: int | None = None,
    precision: str | None = None,
) -> AnySegmenter:  # fmt: skip
    """
    Args:
        model: a name of the catalog or of `models.foundation`, a folder or file of weights, `hf:OWNER/NAME`, or the
            folder of a segmenter that `lexitome train meddinov3` wrote.
        threads: CPU threads; by default every core.
        policy: which of SAM3's answers is the mask, see `models.sam3.settings.Policy`; by default as its weights say.
        side: of the square picture SAM3 sees, in pixels; by default as it was trained.
        precision: SAM3's, see `sam3_segmenter.Precision`; by default "auto".

    Raises:
        InputError: no such model, or its weights are not here; packages are missing; an option it does not have.
        ValueError: the weights on disk are not the ones the card describes.
    """
    kind = check_model(model)
    if kind != "sam3":
        refuse_sam3_options(model, policy, side, precision)
    if kind == "compact":
        return Segmenter.load(model, threads=threads)
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise InputError(f"model {str(model)!r}", f"needs {error.name}, which is not installed", NEEDS) from error
    if kind == "segmenter":
        from lexitome.inference.dinov3_segmenter import DinoVolumeSegmenter

        return DinoVolumeSegmenter.load(model, threads=threads)
    from lexitome.inference.sam3_segmenter import Sam3Segmenter

    chosen: Any = {"policy": policy, "side": side, "precision": precision or "auto"}  # it checks
    return Sam3Segmenter.load(model, threads=threads, **chosen)
