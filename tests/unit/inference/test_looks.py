"""How an image is looked at: which looks a concept has, and what the network then sees."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from tiny_model import CONCEPTS, SIDE

from lexitome.data.intensity import SOFT_TISSUE, to_pictures, with_neighbours
from lexitome.inference import looks as module
from lexitome.inference.looks import Features, Look, Memory, Pictures, Scene
from lexitome.inference.segmenter import Segmenter
from lexitome.models.catalog import TrainedConcept
from lexitome.volume import PIXEL_AFFINE, Volume


def ct(depth: int = 12, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    values = np.random.default_rng(0).integers(-1000, 400, (1, depth, 20, 30)).astype(np.int16)
    return Volume(values, np.diag([*spacing, 1.0]), modality="CT")


def looks(tiny: Segmenter, name: str | None, volume: Volume, *, placed: bool = False) -> tuple[Look, ...]:
    trained = {t.concept: t for t in tiny.card.trained_concepts}
    return Scene.of(volume).looks(None if name is None else trained[name], tiny.card, placed=placed)


def test_a_concept_is_shown_as_it_was_trained(tiny: Segmenter) -> None:
    (liver,) = looks(tiny, "liver", ct())
    assert (liver.window, liver.side, liver.stacked, liver.mirrored) == (SOFT_TISSUE, SIDE, True, False)
    assert looks(tiny, "lungs", ct())[0].window == (-1000.0, 400.0)
    assert looks(tiny, "retinal vessel", ct())[0].side == 96
    assert len(CONCEPTS) == len(tiny.card.trained_concepts)


def test_views_are_for_nearly_cubic_voxels_and_not_for_places(tiny: Segmenter) -> None:
    three = looks(tiny, "spleen", ct())
    assert len(three) == 3 and len({look.view.order[0] for look in three}) == 3
    assert len(looks(tiny, "spleen", ct(spacing=(1, 1, 3)))) == 1
    assert looks(tiny, "spleen", ct(), placed=True) == three[:1]
    assert len(looks(tiny, "liver", ct())) == 1


def test_what_was_not_trained_has_the_default_look(tiny: Segmenter) -> None:
    (look,) = looks(tiny, None, ct())
    assert (look.window, look.side, look.stacked) == (SOFT_TISSUE, tiny.card.side, False)


def test_pictures_are_neither_stacked_nor_windowed(tiny: Segmenter) -> None:
    colour = Volume(np.zeros((3, 1, 20, 30), np.uint8), PIXEL_AFFINE, spacing_known=False)
    (look,) = looks(tiny, "liver", colour)
    assert look.window is None and not look.stacked
    assert not looks(tiny, "liver", ct(depth=1))[0].stacked


@pytest.mark.parametrize("depth", [2, 3, 7])
def test_a_stack_is_cut_as_in_training(depth: int) -> None:
    volume = ct(depth)
    for view in Scene.of(volume).views:
        whole = with_neighbours(to_pictures(volume, SOFT_TISSUE, view))
        look = Look(view, SOFT_TISSUE, 32, stacked=True)
        pictures = Pictures(volume, view, SOFT_TISSUE)
        for index, slice_ in enumerate(whole):
            from PIL import Image

            resized = np.asarray(Image.fromarray(slice_).resize((32, 32), Image.Resampling.BILINEAR))
            assert np.array_equal(pictures.square(index, look)[0], resized.transpose(2, 0, 1))


def test_grey_and_colour_and_mirrored(tiny: Segmenter) -> None:
    values = np.random.default_rng(0).integers(0, 255, (3, 1, 64, 64)).astype(np.uint8)
    colour = Volume(values, PIXEL_AFFINE, spacing_known=False)
    view = Scene.of(colour).views[0]
    look = Look(view, None, 64)
    seen = Pictures(colour, view, None).square(0, look)
    assert seen.dtype == np.float32 and np.array_equal(seen[0], values[:, 0])
    grey = Volume(values[:1], PIXEL_AFFINE, spacing_known=False)
    assert np.array_equal(Pictures(grey, view, None).square(0, look)[0], values[[0, 0, 0], 0])
    mirrored = Pictures(colour, view, None).square(0, look.mirror())
    assert np.array_equal(mirrored, seen[..., ::-1]) and look.mirror().mirror() == look


def test_memory_computes_once_whoever_asks_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_LOOKS", 2)
    memory, calls, view = Memory(), [], Scene.of(ct()).views[0]

    def asks(side: int) -> tuple[Features, ...]:
        def compute() -> list[Features]:
            calls.append(side)
            return [Features(*[np.full(1, side, np.float32)] * 4)]

        return memory.get(Look(view, None, side), lambda: iter(compute()))

    threads = [threading.Thread(target=asks, args=(32,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [32]
    asks(64), asks(32), asks(96)
    assert calls == [32, 64, 96] and Look(view, None, 64) not in memory and Look(view, None, 32) in memory
    assert asks(64)[0].tokens[0] == 64 and calls[-1] == 64


def test_trained_concept_fields_are_those_of_the_card() -> None:
    assert {name for entry in CONCEPTS for name in entry} == set(TrainedConcept.__dataclass_fields__)
