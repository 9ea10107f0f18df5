"""From weights to a `Sam3Segmenter` (needs torch and transformers)."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import torch

from lexitome.data.feature_cache import FeatureCache, kept_hash, user_cache
from lexitome.errors import InputError
from lexitome.inference.sam3_segmenter import Precision, Sam3Segmenter
from lexitome.inference.sam3_words import Words
from lexitome.models.foundation import FOUNDATION, SAM_LICENCE
from lexitome.models.sam3.eight import is_supported
from lexitome.models.sam3.network import Sam3Net
from lexitome.models.sam3.presets import set_side
from lexitome.models.sam3.quick import quickened
from lexitome.models.sam3.settings import POLICIES, Policy, Settings
from lexitome.models.sam3.tokens import GET, Tokens
from lexitome.models.sam3.weights import load_sam3

WORDS = ("text_encoder.", "text_projection.")
"""Stay mapped to their file: two fifths of the weights, needed only for words whose features are not stored yet."""
TRUNK = "vision_encoder.backbone.layers."
"""For 8-bit products: rounded from what is stored, not from what was rounded already."""


def load_sam3_segmenter(
    model: str | Path, *, threads: int | None = None, policy: Policy | None = None, precision: Precision = "auto",
    side: int | None = None, cache: Path | None = None,
) -> Sam3Segmenter:  # fmt: skip
    """
    Args:
        model: a name of `models.foundation`, a file or folder of weights, or a repository.
        threads: of torch, for the whole process; by default as they are.
        policy: what the mask is, by default as stored with the weights.
        side: of the square the network sees, by default as in the weights; smaller is quicker and coarser.
        precision: see `sam3_segmenter.Precision`.
        cache: folder for features of words and for hashes of weights, by default `feature_cache.user_cache`.

    Raises:
        InputError: there are no such weights, they are of another model, or there is no tokenizer; an unknown policy or
            a side that is no multiple of the patch.
    """
    began = time.perf_counter()
    if threads is not None:
        torch.set_num_threads(threads)
    eight_bit = precision == "int8"
    if eight_bit and not is_supported():
        cause = "int8 needs a processor that multiplies 8-bit numbers (VNNI), and torch with oneDNN"
        raise InputError("--precision", cause, "Leave it out.")
    mapped = (*WORDS, TRUNK) if eight_bit else WORDS
    loaded = load_sam3(model, dtype=chosen_dtype(precision), tracker=True, mapped=mapped)
    stored = loaded.settings if policy is None else {**loaded.settings, "policy": policy}
    try:
        settings = Settings.read(stored)
    except ValueError as error:
        raise InputError(model, str(error), f"Policies are {', '.join(POLICIES)}.") from error
    net = Sam3Net(loaded.net, geometry_cls=settings.geometry_cls).eval().requires_grad_(False)
    if side is not None:
        try:
            set_side(net, side)
            if loaded.tracker is not None:
                loaded.tracker.set_side(side)
        except ValueError as error:
            raise InputError(model, str(error), "Choose another side.") from error
    try:
        net = quickened(net, eight_bit=eight_bit)
    except ValueError as error:
        raise InputError("--precision", f"int8 is not possible here: {error}", "Leave it, or --side, out.") from error
    if loaded.tokens_folder is None:
        raise InputError(model, "comes without a tokenizer, so words cannot be asked", GET)
    tokens = Tokens.load(loaded.tokens_folder)
    known = net.model.text_encoder.text_model.embeddings.token_embedding.num_embeddings
    if tokens.size > known:
        cause = f"its tokenizer has {tokens.size} tokens, its text encoder {known}"
        raise InputError(model, cause, GET)
    place = cache or user_cache()
    hashed = functools.cache(lambda: kept_hash(loaded.files, lambda: loaded.sha256, place / "sha256"))
    words = Words(net, tokens, hashed, FeatureCache(place / "text"))
    return Sam3Segmenter(
        net, words, settings, str(model), loaded.source, hashed, loaded.licence, loaded.tracker,
        _duties(model, loaded.licence), time.perf_counter() - began,
    )  # fmt: skip


def _duties(model: str | Path, licence: str) -> str:
    """What a licence asks; of the user's own weights, what that of the SAM3 they are made of asks."""
    known = FOUNDATION.get(str(model))
    if known is not None:
        return known.duties
    return FOUNDATION["sam3"].duties if licence == SAM_LICENCE else ""


def chosen_dtype(precision: Precision) -> torch.dtype:
    """bfloat16 is slower than float32 where the processor has no instructions for it."""
    if precision in ("auto", "int8"):
        probes = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
        return torch.bfloat16 if any(probe is not None and probe() for probe in probes) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
