"""A picture or a volume, queries, SAM3, masks on the grid of the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bright_sam3 import TOKENS, Bright, segmenter
from numpy.typing import NDArray

from lexitome.data.feature_cache import FeatureCache
from lexitome.inference import sam3_segmenter
from lexitome.inference.sam3_asking import LOOSE_MASK, LOOSE_POINTS
from lexitome.inference.sam3_segmenter import Sam3Segmenter
from lexitome.models.sam3.presets import build, config_of
from lexitome.prompts import Box, Exemplar, MaskPrompt, Point, Query, Text
from lexitome.segmentation import Finding
from lexitome.volume import PIXEL_AFFINE, Volume

HEIGHT, WIDTH = 48, 96


def photograph(*spots: tuple[int, int, int, int]) -> Volume:
    """Black but for bright rectangles (first row, end row, first column, end column)."""
    array = np.zeros((3, 1, HEIGHT, WIDTH), np.uint8)
    for top, bottom, left, right in spots:
        array[:, 0, top:bottom, left:right] = 255
    return Volume(array, PIXEL_AFFINE, spacing_known=False)


LEFT, RIGHT = (12, 36, 12, 36), (12, 36, 60, 84)
BOTH = photograph(LEFT, RIGHT)


def one(model: Sam3Segmenter, volume: Volume, *spatial: object, text: str | None = "polyp") -> Finding:
    query = Query(None if text is None else Text(text), spatial)  # type: ignore[arg-type]
    return model.decode(model.encode(volume), [query]).findings[0]


def share(finding: Finding, spot: tuple[int, int, int, int]) -> float:
    top, bottom, left, right = spot
    return float(finding.mask[0, top:bottom, left:right].mean())


def test_bright_things_are_found_where_they_are() -> None:
    finding = one(segmenter(), BOTH)
    truth = BOTH.array[0] > 0
    assert finding.mask.shape == (1, HEIGHT, WIDTH)
    assert 2 * (finding.mask & truth).sum() / (finding.mask.sum() + truth.sum()) > 0.97
    assert finding.presence > 0.5 and finding.score > 0.9 and finding.objects == 2
    assert finding.instances is not None and ((finding.instances > 0) == finding.mask).all()
    assert finding.concept is not None and finding.concept.name == "polyp" and finding.probability is None


def test_nothing_is_found_where_nothing_is() -> None:
    for policy in ("best", "union", "semantic", "semantic-presence"):
        finding = one(segmenter(policy=policy), photograph())
        assert not finding.found and finding.presence < 0.5 and finding.objects == 0 and finding.score == 0


def test_policies() -> None:
    assert share(one(segmenter(policy="best"), BOTH), RIGHT) == 0
    assert share(one(segmenter(policy="union"), BOTH), RIGHT) > 0.9
    assert one(segmenter(policy="best"), BOTH).objects == 1


def test_exemplars() -> None:
    """A negative one takes an object away, a positive one stands for words."""
    right = Box(60, 12, 83, 35)
    finding = one(segmenter(policy="union"), BOTH, Exemplar(right, positive=False))
    assert share(finding, LEFT) > 0.9 and share(finding, RIGHT) == 0
    both = one(segmenter(policy="union"), BOTH, Exemplar(right), text=None)
    assert share(both, LEFT) > 0.9 and share(both, RIGHT) > 0.9


@pytest.mark.parametrize("text", ["polyp", None])
@pytest.mark.parametrize("policy", ["best", "union", "semantic-presence"])
def test_a_box_bounds_the_answer(text: str | None, policy: str) -> None:
    finding = one(segmenter(policy=policy), BOTH, Box(60, 12, 83, 35), text=text)
    assert share(finding, RIGHT) > 0.9 and share(finding, LEFT) == 0 and finding.presence == 1


@pytest.mark.parametrize("text", ["polyp", None])
def test_a_point_chooses_and_says_when_it_is_loose(text: str | None) -> None:
    finding = one(segmenter(), BOTH, Point(70, 20), text=text)
    assert share(finding, RIGHT) > 0.9 and share(finding, LEFT) == 0
    assert (LOOSE_POINTS in finding.notes) is (text is None)


def test_a_mask_stands_for_its_box() -> None:
    mask = np.zeros((1, HEIGHT, WIDTH), np.bool_)
    mask[0, 14:34, 62:80] = True
    finding = one(segmenter(policy="union"), BOTH, MaskPrompt(mask), text=None)
    assert share(finding, RIGHT) > 0.9 and share(finding, LEFT) == 0 and LOOSE_MASK in finding.notes


def test_the_surest_wording_answers() -> None:
    """`Bright` doubts long texts."""
    short, long = one(segmenter(), BOTH), one(segmenter(), BOTH, text="polyp of the bowel of the patient")
    merged = one(segmenter(), BOTH, text="polyp of the bowel of the patient | polyp")
    assert long.presence < merged.presence == pytest.approx(short.presence)
    assert merged.name == "polyp of the bowel of the patient | polyp"


def test_one_picture_is_encoded_once_for_all_queries() -> None:
    model = segmenter()
    encoded = model.encode(BOTH)
    queries = [Query(Text(words)) for words in ("polyp", "liver", "nerve", "lesion", "cup", "disc")]
    together = model.decode(encoded, [*queries, Query(None, (Box(60, 12, 83, 35),))])
    alone = [model.decode(encoded, [query]).findings[0] for query in queries]
    assert isinstance(model.net, Bright) and model.net.encoded == 1
    assert [f.name for f in together.findings] == [*(q.name for q in queries), "box"]
    for a, b in zip(together.findings, alone, strict=False):
        assert (a.mask == b.mask).all() and a.presence == pytest.approx(b.presence)


def test_probabilities_and_provenance() -> None:
    model = segmenter(policy="union", keep=0.1)
    result = model.decode(model.encode(BOTH), [Query(Text("polyp"))], probabilities=True, flips=True)
    (finding,) = result.findings
    assert finding.probability is not None and finding.probability.dtype == np.float16
    assert ((finding.probability >= 0.5) == finding.mask).mean() > 0.999
    assert any("mirrored" in note for note in finding.notes)
    settings = result.provenance["settings"]
    assert isinstance(settings, dict) and settings["policy"] == "union" and settings["keep"] == 0.1
    assert result.provenance["weights_sha256"] == "0" * 64 and result.provenance["flips"] is False


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (700, 3)])
def test_odd_pictures(size: tuple[int, int]) -> None:
    volume = Volume(np.full((1, 1, *size), 9, np.uint8), PIXEL_AFFINE, spacing_known=False)
    assert one(segmenter(), volume).mask.shape == (1, *size)


def test_places_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        one(segmenter(), BOTH, Point(WIDTH + 5, 2))


def test_windows_of_ct() -> None:
    """Each concept in its own window: what is bright in one is black in the other. Two windows, two encodings."""
    values = np.full((1, 1, HEIGHT, WIDTH), -1000, np.int16)
    values[..., 12:36, 12:36] = -400
    volume = Volume(values, PIXEL_AFFINE, modality="CT", spacing_known=False)
    model = segmenter(windows={"lungs": (-1000.0, -400.0)})
    lungs, liver = model.decode(model.encode(volume), [Query(Text("lungs")), Query(Text("liver"))]).findings
    assert share(lungs, LEFT) > 0.9 and not liver.found
    assert isinstance(model.net, Bright) and model.net.encoded == 2


def test_held_features_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam3_segmenter, "HELD_BYTES", 1)
    volume = Volume(np.zeros((1, 1, 20, 20), np.int16), PIXEL_AFFINE, modality="CT", spacing_known=False)
    model = segmenter(windows={"lungs": (-1000.0, -400.0)})
    encoded = model.encode(volume)
    for text in ("lungs", "liver", "lungs"):
        model.decode(encoded, [Query(Text(text))])
    assert isinstance(model.net, Bright) and model.net.encoded == 4


# --- volumes --------------------------------------------------------------------------------------------------------


def scan(*, flip: bool = False) -> tuple[Volume, NDArray[np.bool_]]:
    """12 slices 5 mm apart: a bright block on slices 3 to 8, to the patient's right."""
    truth = np.zeros((12, HEIGHT, WIDTH), np.bool_)
    truth[3:9, 12:36, 12:36] = True
    affine = np.diag([-2.0, -2.0, 5.0, 1.0])
    values = np.where(truth, 200, -200).astype(np.int16)[None]
    volume = Volume(values, affine, modality="MR")
    if flip:
        turn = np.array([[-1.0, 0, 0, WIDTH - 1], [0, 1, 0, 0], [0, 0, -1, 11], [0, 0, 0, 1]])
        volume, truth = Volume(values[:, ::-1, :, ::-1].copy(), affine @ turn, modality="MR"), truth[::-1, :, ::-1]
    return volume, truth


@pytest.mark.parametrize("flip", [False, True])
def test_volumes_slice_by_slice(flip: bool) -> None:
    """Without a tracker; on the grid of the volume, however it is stored."""
    volume, truth = scan(flip=flip)
    finding = one(segmenter(), volume, text="liver")
    overlap = 2 * (finding.mask & truth).sum() / (finding.mask.sum() + truth.sum())
    assert overlap > 0.95 and finding.presence > 0.5 and finding.objects == 1 and finding.score > 0.8


def test_progress_and_probabilities_of_volumes() -> None:
    volume, truth = scan()
    model, told = segmenter(), []
    result = model.decode(
        model.encode(volume), [Query(Text("liver"))], probabilities=True, progress=lambda *at: told.append(at)
    )
    assert told[-1] == (12, 12) and [done for done, _ in told] == sorted(done for done, _ in told)
    probability = result.findings[0].probability
    assert probability is not None and probability.shape == volume.grid
    assert isinstance(model.net, Bright) and model.net.encoded == 12
    assert probability[truth].mean() > 0.8 > 0.1 > probability[~truth].mean()


def test_boxes_bound_volumes() -> None:
    volume, truth = scan()
    for text in ("liver", None):
        finding = one(segmenter(), volume, Box(10, 10, 37, 37, 5, 6), text=text)
        assert finding.found and not finding.mask[:5].any() and not finding.mask[7:].any()
        assert (finding.mask & truth).sum() > 0.8 * truth[5:7].sum()
    elsewhere = one(segmenter(), volume, Box(60, 10, 90, 37, 4, 6), text="liver")
    assert not elsewhere.found


def test_points_in_volumes_answer_on_their_slice_without_a_tracker() -> None:
    volume, truth = scan()
    finding = one(segmenter(), volume, Point(20, 20, 5), text=None)
    assert finding.found and finding.mask[5][truth[5]].mean() > 0.75 and finding.mask.sum() == finding.mask[5].sum()
    assert LOOSE_POINTS in finding.notes


def test_a_volume_of_one_slice() -> None:
    values = np.zeros((1, 1, HEIGHT, WIDTH), np.int16)
    values[..., 12:36, 12:36] = 100
    assert share(one(segmenter(), Volume(values, np.diag([2.0, 2, 5, 1]), modality="MR")), LEFT) > 0.9


# --- real layers with random weights --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_model() -> Sam3Segmenter:
    return segmenter(net=build(config_of("tiny", vocabulary=TOKENS.size), 3), tracker=True)


def test_every_kind_of_prompt_runs(random_model: Sam3Segmenter) -> None:
    mask = np.zeros((1, HEIGHT, WIDTH), np.bool_)
    mask[0, 20:30, 20:30] = True
    box = Box(10, 10, 30, 30)
    there, beside = Point(20, 20), Point(80, 2, inside=False)
    spatial: list[tuple[object, ...]] = [
        (), (box,), (box, there, beside), (there,), (there, Point(25, 22)), (MaskPrompt(mask),), (beside,),
        (Exemplar(box), Exemplar(Box(50, 5, 60, 20), positive=False)),
    ]  # fmt: skip
    queries = [Query(Text("polyp"), each) for each in spatial]  # type: ignore[arg-type]
    queries += [Query(None, each) for each in spatial[1:]]  # type: ignore[arg-type]
    result = random_model.decode(random_model.encode(BOTH), queries, probabilities=True)
    for finding in result.findings:
        assert finding.mask.shape == BOTH.grid and finding.probability is not None
        assert np.isfinite(finding.probability).all() and 0 <= finding.presence <= 1
    clicked = result.findings[len(spatial) + 2]  # a point alone, answered by the tracker's mask decoder
    assert clicked.presence == 1 and LOOSE_POINTS not in clicked.notes


def test_volumes_with_a_tracker_run(random_model: Sam3Segmenter) -> None:
    volume, _ = scan()
    queries = [Query(Text("liver")), Query(None, (Point(20, 20, 5),)), Query(Text("liver"), (Box(5, 5, 40, 40, 3, 8),))]
    result = random_model.decode(random_model.encode(volume), queries)
    assert all(finding.mask.shape == volume.grid for finding in result.findings)
    inside = result.findings[2].mask
    assert not inside[:3].any() and not inside[9:].any()


def test_words_are_remembered(tmp_path: Path) -> None:
    """On disk and in memory: the same features, the text encoder not asked again; other words, other features."""
    net = build(config_of("tiny", vocabulary=TOKENS.size), 3)
    asked: list[int] = []
    net.model.text_projection.register_forward_hook(lambda *_: asked.append(1))
    first = segmenter(net=net, cache=FeatureCache(tmp_path)).words.features(["polyp", "the left lung"])
    assert len(asked) == 2
    words = segmenter(net=net, cache=FeatureCache(tmp_path)).words
    for again in (words.features(["polyp", "the left lung"]), words.features(["polyp", "the left lung"])):
        torch.testing.assert_close(again, first)
    assert len(asked) == 2
    other, mask = words.features(["polyp", "liver"])
    assert len(asked) == 3 and not torch.equal(other[1, : int(mask[1].sum())], first[0][1, : int(mask[1].sum())])


def test_bfloat16_gives_nearly_the_same_mask() -> None:
    config = config_of("tiny", vocabulary=TOKENS.size)
    full, half = (
        segmenter(net=build(config, 3), policy="semantic"),
        segmenter(net=build(config, 3).bfloat16(), policy="semantic"),
    )
    one_mask, other = (one(model, BOTH).mask for model in (full, half))
    assert (one_mask == other).mean() > 0.95
