"""A model through its two steps: values, geometry, looks, memory of nothing. The models are made in `tiny_model`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_model import SIDE, tiny_net

from lexitome.data.intensity import SOFT_TISSUE, choose_view, to_pictures, with_neighbours
from lexitome.data.prompt_maps import no_place
from lexitome.errors import InputError
from lexitome.inference import looks
from lexitome.inference.answers import HOPELESS
from lexitome.inference.looks import Look
from lexitome.inference.segmenter import FAINT, UNMIRRORED, Segmenter
from lexitome.prompts import Box, MaskPrompt, Point, Query, Text
from lexitome.text import TextEncoder
from lexitome.volume import PIXEL_AFFINE, Volume


def photograph(modality: str = "") -> Volume:
    rng = np.random.default_rng(0)
    array = rng.integers(60, 90, (3, 1, 90, 120)).astype(np.uint8)
    array[0, 0, 30:60, 40:80] = 200
    return Volume(array, PIXEL_AFFINE, modality=modality, spacing_known=False)


def painted(
    green: NDArray[np.bool_], presence: int = 255, red: NDArray[np.bool_] | None = None, modality: str = ""
) -> Volume:
    """A picture whose answers `tiny_model.Bright` knows; masks (H, W)."""
    array = np.zeros((3, 1, *green.shape), np.uint8)
    array[1, 0] = np.where(green, 230, 20)
    array[0, 0] = 0 if red is None else np.where(red, 255, 0)
    array[2] = presence
    return Volume(array, PIXEL_AFFINE, modality=modality, spacing_known=False)


def scan(depth: int, spacing: tuple[float, float, float] = (-2.0, -2.0, 5.0)) -> Volume:
    rng = np.random.default_rng(1)
    array = rng.normal(-1000, 20, (1, depth, 40, 50))
    array[:, :, 8:32, 8:42] = rng.normal(50, 20, (1, depth, 24, 34))
    return Volume(array.astype(np.int16), np.diag([*spacing, 1.0]), modality="CT")


def sigmoid(x: torch.Tensor) -> NDArray[np.float32]:
    return x.sigmoid().numpy()


def test_answers_lie_on_the_grid_of_the_image(tiny: Segmenter) -> None:
    for volume in (photograph(), scan(5), scan(12, (-2, -2, 3))):
        names = ["skin lesion", "liver", "spleen", "nuclei", "retinal vessel", "zeppelin"]
        result = tiny.decode(tiny.encode(volume), [Query(Text(name)) for name in names])
        assert [f.name for f in result.findings] == names and result.volume is volume
        for finding in result.findings:
            assert finding.mask.shape == volume.grid and 0 <= finding.presence <= 1 and 0 <= finding.score <= 1
            assert finding.found == (finding.score > 0)
            assert (finding.instances is not None) == (finding.name == "nuclei")


def test_each_concept_is_asked_as_its_card_says(tiny: Segmenter) -> None:
    """The same numbers as torch, given the picture that the look describes."""
    volume, net = scan(4), tiny_net()
    cases = (("liver", SIDE, SOFT_TISSUE, True), ("lungs", SIDE, (-1000.0, 400.0), False),
             ("retinal vessel", 96, SOFT_TISSUE, False), ("zeppelin", SIDE, SOFT_TISSUE, False))  # fmt: skip
    queries = [Query(Text(name)) for name, *_ in cases]
    answers = tiny.probabilities(tiny.encode(volume), queries)
    from PIL import Image

    for (name, side, window, stacked), answer in zip(cases, answers, strict=True):
        pictures = to_pictures(volume, window, choose_view(volume))
        pictures = with_neighbours(pictures) if stacked else pictures
        text = torch.from_numpy(TextEncoder.load().embed([name]))
        for index, picture in enumerate(pictures):
            square = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR), np.float32)
            with torch.no_grad():
                decoded = net(
                    torch.from_numpy(square).permute(2, 0, 1)[None], text, torch.from_numpy(no_place(side))[None]
                )
            assert answer.presence[index] == pytest.approx(float(decoded.presence.sigmoid()), abs=1e-4)
            assert np.abs(answer.probability[index] - sigmoid(decoded.logits[0])).max() < 2e-3


def test_a_slice_is_encoded_once_for_all_queries_of_a_look(tiny: Segmenter) -> None:
    seen: list[tuple[int, ...]] = []

    def encode(outputs: list[str], inputs: dict[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        seen.append(inputs["pictures"].shape)
        return tiny.network.run_encoder(outputs, inputs)

    counting = dataclasses.replace(tiny, network=dataclasses.replace(tiny.network, run_encoder=encode))
    queries = [Query(Text(name)) for name in ("spleen", "left kidney", "zeppelin", "polyp", "retinal vessel")]
    volume = scan(10)  # anisotropic: one view
    counting.decode(counting.encode(volume), queries)
    assert sorted(seen) == [(1, 3, SIDE, SIDE)] * 10 + [(1, 3, 96, 96)] * 10
    seen.clear()
    encoded = counting.encode(photograph(), queries)
    assert len(seen) == 2
    counting.decode(encoded, queries)
    counting.decode(encoded, queries[:1])
    assert len(seen) == 2, "a picture keeps its features"
    seen.clear()
    counting.decode(counting.encode(scan(10)), [Query(spatial=(Point(25, 20, 2),))])
    assert len(seen) == 1, "slices that nobody asks about are not encoded"


def test_encoded_is_a_value(tiny: Segmenter) -> None:
    """Decoding twice, or in another order, or many at once, gives the same answers."""
    encoded = tiny.encode(photograph())
    queries = [
        Query(Text("polyp")),
        Query(spatial=(Box(40, 30, 79, 59),)),
        Query(Text("retinal vessel"), (Point(60, 45),)),
    ]
    first = tiny.probabilities(encoded, queries)
    again = tiny.probabilities(encoded, queries[::-1])[::-1]
    for one, other in zip(first, again, strict=True):
        assert np.abs(one.probability - other.probability).max() < 1e-3


def test_long_volumes_give_the_same_answer_without_holding_features(
    tiny: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = [Query(Text("liver")), Query(Text("lungs"))]
    held, look = tiny.encode(scan(6)), Look(choose_view(scan(6)), SOFT_TISSUE, SIDE)
    assert look in held.memory
    one = tiny.probabilities(held, queries)
    monkeypatch.setattr(looks, "HELD_SLICES", 3)
    streamed = tiny.encode(scan(6))
    assert look not in streamed.memory
    for a, b in zip(one, tiny.probabilities(streamed, queries), strict=True):
        assert np.abs(a.probability - b.probability).max() < 1e-3


def test_progress_counts_every_slice_of_every_look(tiny: Segmenter) -> None:
    told: list[tuple[int, int]] = []
    queries = [Query(Text("liver")), Query(Text("lungs"))]
    tiny.decode(tiny.encode(scan(10)), queries, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 20) for done in range(1, 21)]


def test_flipped_storage_gives_the_flipped_mask(tiny: Segmenter) -> None:
    """The same patient stored along other axes: the mask is the same in the world."""
    volume = scan(4)
    array = volume.array[:, :, ::-1, ::-1]
    affine = volume.affine @ np.array([[-1, 0, 0, 49], [0, -1, 0, 39], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    turned = Volume(np.ascontiguousarray(array), affine, modality="CT")
    queries = [Query(Text("liver")), Query(Text("left kidney"), (Box(10, 10, 30, 30),))]
    mirrored = [Query(Text("liver")), Query(Text("left kidney"), (Box(19, 9, 39, 29),))]
    one = tiny.probabilities(tiny.encode(volume), queries)
    other = tiny.probabilities(tiny.encode(turned), mirrored)
    for a, b in zip(one, other, strict=True):
        assert np.abs(a.probability - b.probability).max() < 2e-3  # both in the orientation of the view


def test_bright_things_are_found_where_they_are_in_one_view_and_in_three(bright: Segmenter) -> None:
    inside = np.zeros((30, 40, 50), bool)
    inside[8:22, 10:28, 20:44] = True
    array = np.where(inside, 400, -1000).astype(np.int16)[None]
    volume = Volume(array, np.diag([-2.0, -2.0, 2.0, 1.0]), modality="CT")
    found = bright.decode(bright.encode(volume), [Query(Text("left kidney")), Query(Text("spleen"))]).findings
    for finding in found:
        assert 2 * (finding.mask & inside).sum() / (finding.mask.sum() + inside.sum()) > 0.95
    many, one = (bright.probabilities(bright.encode(volume), [Query(Text(n))])[0] for n in ("spleen", "left kidney"))
    assert (many.shares, one.shares) == (3, 1)
    assert one.probability.shape == (30, SIDE, SIDE) and many.probability.shape == (30, 40, 50)


def test_views_outvote_one_that_is_wrong(bright: Segmenter) -> None:
    """A plate that fills one axial slice: seen on edge by the two other views."""
    array = np.full((1, 24, 24, 24), -1000, np.int16)
    array[0, 6:18, 6:18, 6:18] = 400
    volume = Volume(array, np.diag([-1.0, -1.0, 1.0, 1.0]), modality="CT")
    (answer,) = bright.probabilities(bright.encode(volume), [Query(Text("spleen"))])
    inside, edge = answer.probability[12, 12, 12], answer.probability[2]
    assert inside > 0.99 and edge.max() < 0.01, "each voxel has the mean of three answers"


def test_nothing_is_marked_outside_a_box(bright: Segmenter) -> None:
    picture = painted(disc(12), presence=255)
    whole, part = (
        bright.decode(bright.encode(picture), [Query(Text("polyp"), places)], probabilities=True).findings[0]
        for places in ((), (Box(40, 50, 69, 79),))
    )
    inside = np.zeros_like(whole.mask)
    inside[:, 48:82, 38:72] = True  # a twentieth of 30, in whole pixels
    assert (part.mask == (whole.mask & inside)).all() and 0 < part.mask.sum() < whole.mask.sum()
    assert part.probability is not None and not part.probability[~inside].any()


def test_in_a_volume_a_box_bounds_what_words_find_in_every_direction(bright: Segmenter) -> None:
    array = np.full((1, 30, 40, 50), -1000, np.int16)
    array[0, 8:22, 10:28, 20:44] = 400
    volume = Volume(array, np.diag([-2.0, -2.0, 2.0, 1.0]), modality="CT")
    box = Box(10, 0, 29, 39, 0, 29)
    for words in ("spleen", "left kidney"):  # three views and one
        asked = [Query(Text(words)), Query(Text(words), (box,))]
        whole, part = bright.decode(bright.encode(volume), asked).findings
        inside = np.zeros_like(whole.mask)
        inside[:, :, 9:31] = True
        assert whole.mask[~inside].any() and part.found
        assert (part.mask == (whole.mask & inside)).all() and part.presence == whole.presence


def test_a_box_where_words_find_nothing_is_drawn(tiny: Segmenter) -> None:
    """And so is one around what the model does not know, or that comes with a click."""
    volume = scan(4)
    encoded, box = tiny.encode(volume), Box(2, 2, 5, 5, 0, 0)
    liver, zeppelin = Query(Text("liver"), (box,)), Query(Text("zeppelin"), (box,))
    words = tiny.decode(encoded, [Query(Text("liver"))]).findings[0]
    assert not words.mask[0, 1:7, 1:7].any(), "else this test says nothing"
    for query in (liver, zeppelin, Query(Text("liver"), (box, Point(3, 3, 0)))):
        assert tiny.decode(encoded, [query]).findings[0].presence == 1.0  # as of all that is pointed at


def test_points_without_words_answer_on_their_slice_only(tiny: Segmenter) -> None:
    (finding,) = tiny.decode(tiny.encode(scan(5)), [Query(spatial=(Point(25, 20, 2),))]).findings
    assert finding.presence == 1.0
    assert set(np.flatnonzero(finding.mask.any(axis=(1, 2)))) <= {1, 2, 3}


@pytest.mark.parametrize("words", [None, Text("left kidney")])
def test_one_slice_pointed_at_is_enough_in_a_long_volume(bright: Segmenter, words: Text | None) -> None:
    volume = scan(60).with_array(np.full((1, 60, 40, 50), -1000, np.int16))
    rough = np.zeros(volume.grid, bool)
    rough[30, 10:30, 10:40] = True
    (finding,) = bright.decode(bright.encode(volume), [Query(words, (MaskPrompt(rough),))]).findings
    assert finding.presence == 1.0 and np.flatnonzero(finding.mask.any((1, 2))).tolist() == [30]
    assert 2 * (finding.mask & rough).sum() / (finding.mask.sum() + rough.sum()) > 0.9 and finding.score > 0.9


def test_a_point_beside_it_does_not_say_that_it_is_there(bright: Segmenter) -> None:
    volume, beside = painted(disc(20), presence=0), Point(5, 5, inside=False)
    (finding,) = bright.decode(bright.encode(volume), [Query(Text("zeppelin"), (beside,))]).findings
    assert finding.presence < 0.5 and not finding.found


def test_a_mask_prompt_reaches_the_network_where_it_was_drawn(bright: Segmenter) -> None:
    rough = np.zeros((1, 60, 100), bool)
    rough[0, 10:30, 50:90] = True
    dark = painted(np.zeros((60, 100), bool))
    (finding,) = bright.decode(bright.encode(dark), [Query(spatial=(MaskPrompt(rough),))]).findings
    assert 2 * (finding.mask & rough).sum() / (finding.mask.sum() + rough.sum()) > 0.9


def test_presence_is_one_half_at_the_threshold(tiny: Segmenter, tiny_folder: Path, tmp_path: Path) -> None:
    """Whatever threshold was chosen for a concept, users read 0.5 as "as likely as not"."""
    untrained = [Query(Text("zeppelin"))]
    raw = tiny.decode(tiny.encode(photograph()), untrained).findings[0].presence
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"default_threshold": raw}))
    other = Segmenter.load(folder, threads=1)
    assert raw != pytest.approx(0.5, abs=1e-3)
    assert other.decode(other.encode(photograph()), untrained).findings[0].presence == pytest.approx(0.5, abs=1e-3)


def disc(radius: float) -> NDArray[np.bool_]:
    y, x = np.mgrid[:128, :128]
    return np.hypot(y - 60, x - 70) < radius


@pytest.mark.parametrize(
    ("text", "modality", "radius", "rescued"),
    [
        ("skin lesion", "", 20, True),
        ("skin lesion", "XC", 20, True),
        ("skin lesion", "US", 20, False),  # not the kind of picture it was trained on
        ("skin lesion", "", 1.2, False),  # too small to speak for itself
        ("zeppelin", "", 20, False),
    ],
)
def test_a_certain_mask_outweighs_a_faint_presence(
    bright: Segmenter, text: str, modality: str, radius: float, rescued: bool
) -> None:
    volume = painted(disc(radius), presence=112, modality=modality)  # raw presence 0.31, below any threshold here
    (finding,) = bright.decode(bright.encode(volume), [Query(Text(text))]).findings
    assert finding.found is rescued and (FAINT in finding.notes) is rescued
    assert finding.presence == pytest.approx(0.5) if rescued else finding.presence < 0.5


def test_hounsfield_units_say_what_a_file_without_a_modality_shows(tiny: Segmenter) -> None:
    volume = dataclasses.replace(scan(4), modality="")
    polyp, liver = tiny.decode(tiny.encode(volume), [Query(Text("polyp")), Query(Text("liver"))]).findings
    assert any("this image is CT: result is a guess" in note for note in polyp.notes) and not liver.notes
    (other,) = tiny.decode(tiny.encode(photograph()), [Query(Text("polyp"))]).findings
    assert not any("guess" in note for note in other.notes)


def test_an_uncertain_mask_does_not(bright: Segmenter) -> None:
    volume = painted(disc(20), presence=112)
    volume = volume.with_array(np.where(volume.array == 230, 138, volume.array).astype(np.uint8))  # probability 0.73
    (finding,) = bright.decode(bright.encode(volume), [Query(Text("skin lesion"))]).findings
    assert not finding.found and FAINT not in finding.notes


def test_what_is_present_anyway_has_no_note(bright: Segmenter) -> None:
    (finding,) = bright.decode(bright.encode(painted(disc(20))), [Query(Text("skin lesion"))]).findings
    assert finding.found and finding.presence > 0.9 and FAINT not in finding.notes


def test_touching_objects_of_a_picture_are_counted(bright: Segmenter) -> None:
    y, x = np.mgrid[:SIDE, :SIDE]
    left, right = (np.hypot(y - 32, x - middle) < 10.5 for middle in (22, 42))
    peaks = np.zeros((SIDE, SIDE), bool)
    peaks[32:34, [22, 23, 42, 43]] = True
    array = painted(left | right, red=peaks).array.copy()
    way = np.where(x < 32, 22 - x, 42 - x) / 2  # pixels at half resolution
    array[2, 0] = np.clip(128 + 4 * way, 0, 255)
    volume = Volume(array, PIXEL_AFFINE, spacing_known=False)
    (finding,) = bright.decode(bright.encode(volume), [Query(Text("nuclei"))]).findings
    assert finding.found and finding.objects == 2 and finding.instances is not None
    assert np.array_equal(finding.instances > 0, finding.mask)
    ids = finding.instances[0]
    assert {*ids[left & finding.mask[0] & (x < 31)]} == {ids[32, 22]} != {ids[32, 42]}
    assert {*ids[right & finding.mask[0] & (x > 32)]} == {ids[32, 42]}


def test_objects_of_a_volume_are_its_parts(bright: Segmenter) -> None:
    array = np.full((1, 12, 40, 50), -1000, np.int16)
    array[0, 2:9, 5:15, 5:15] = array[0, 2:9, 25:35, 30:42] = 400
    volume = Volume(array, np.diag([-1.0, -1.0, 4.0, 1.0]), modality="CT")
    finding, other = bright.decode(bright.encode(volume), [Query(Text("nuclei")), Query(Text("lungs"))]).findings
    assert finding.objects == 2 and finding.instances is not None and finding.instances.dtype == np.uint16
    assert np.array_equal(finding.instances > 0, finding.mask)
    assert finding.instances[5, 10, 10] != finding.instances[5, 30, 35]
    assert other.found and other.instances is None and other.objects is None


def test_nothing_found_is_no_object(bright: Segmenter) -> None:
    (finding,) = bright.decode(bright.encode(painted(disc(0), presence=0)), [Query(Text("nuclei"))]).findings
    assert not finding.found and finding.objects == 0


def mirrored(volume: Volume) -> Volume:
    return volume.with_array(np.ascontiguousarray(volume.array[..., ::-1]))


def test_flips_average_with_the_mirrored_picture(tiny: Segmenter) -> None:
    volume = photograph()
    query, there, back = [Query(Text("nuclei"))], tiny.encode(volume), tiny.encode(mirrored(volume))
    plain, other = tiny.probabilities(there, query)[0], tiny.probabilities(back, query)[0]
    (both,) = tiny.probabilities(there, query, flips=True)
    expected = (plain.probability.astype(np.float32) + other.probability[..., ::-1].astype(np.float32)) / 2
    assert np.abs(both.probability - expected).max() < 2e-3
    assert both.presence == pytest.approx((plain.presence + other.presence) / 2, abs=1e-4)
    assert plain.centres is not None and other.centres is not None and both.centres is not None
    assert np.allclose(both.centres.heat, (plain.centres.heat + other.centres.heat[:, ::-1]) / 2, atol=1e-4)
    way = other.centres.offsets[..., ::-1] * np.array([1, -1], np.float32)[:, None, None]
    assert np.allclose(both.centres.offsets, (plain.centres.offsets + way) / 2, atol=1e-3)
    assert np.abs(plain.probability - expected).max() > 1e-2, "else this test says nothing"


def test_where_nothing_is_the_mirrored_picture_is_not_looked_at(bright: Segmenter) -> None:
    def looks(presence: int) -> tuple[list[bool], float]:
        encoded = bright.encode(painted(disc(12 if presence else 0), presence=presence))
        (answer,) = bright.probabilities(encoded, [Query(Text("nuclei"))], flips=True)
        seen = [Look(encoded.scene.views[0], None, SIDE, mirrored=mirrored) for mirrored in (False, True)]
        return [look in encoded.memory for look in seen], answer.presence.item()

    (there, sure), (gone, unsure) = looks(255), looks(0)
    assert sure > 0.5 and there == [True, True]
    assert unsure < HOPELESS and gone == [True, False]


def test_flips_take_places_along(tiny: Segmenter) -> None:
    volume = photograph()
    (both,) = tiny.probabilities(tiny.encode(volume), [Query(spatial=(Box(10, 30, 49, 59),))], flips=True)
    (other,) = tiny.probabilities(tiny.encode(mirrored(volume)), [Query(spatial=(Box(70, 30, 109, 59),))], flips=True)
    assert np.abs(both.probability - other.probability[..., ::-1]).max() < 2e-3


def test_the_card_says_what_is_mirrored_unless_the_user_does(tiny: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexitome.inference.answers.HOPELESS", 0.0)  # random weights are sure of nothing
    encoded = tiny.encode(photograph())

    def presence(words: str, flips: bool | None) -> float:
        return tiny.probabilities(encoded, [Query(Text(words))], flips=flips)[0].presence.item()

    assert presence("skin lesion", None) == presence("skin lesion", True) != presence("skin lesion", False)
    assert presence("polyp", None) == presence("polyp", False) != presence("polyp", True)
    stack = tiny.encode(scan(4))
    one, two = (tiny.decode(stack, [Query(Text("skin lesion"))], flips=flips) for flips in (None, False))
    assert one.findings[0].presence == two.findings[0].presence and one.provenance["flips"] is False


def test_what_names_a_side_is_not_mirrored(tiny: Segmenter) -> None:
    encoded, queries = tiny.encode(scan(4)), [Query(Text("left kidney")), Query(Text("liver"))]
    plain, flipped = tiny.decode(encoded, queries), tiny.decode(encoded, queries, flips=True)
    assert UNMIRRORED in flipped["left kidney"].notes and UNMIRRORED not in flipped["liver"].notes
    assert UNMIRRORED not in plain["left kidney"].notes
    assert flipped["left kidney"].presence == plain["left kidney"].presence
    assert flipped["liver"].presence != plain["liver"].presence
    assert flipped.provenance["flips"] is True


def test_provenance_names_the_weights(tiny: Segmenter) -> None:
    result = tiny.decode(tiny.encode(photograph()), [Query(Text("polyp"))])
    assert result.provenance["weights_sha256"] == tiny.card.sha256 == tiny.card.measure_sha256()
    assert (result.provenance["model"], result.provenance["research_only"]) == ("tiny", False)
    assert result.provenance["folder"] == str(tiny.card.files) and result.provenance["weights_duties"] == ""


def test_damaged_weights_and_unknown_models_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Choose from compact"):
        Segmenter.load("compct")
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "decoder.onnx").write_bytes((folder / "decoder.onnx").read_bytes() + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        Segmenter.load(folder)


@pytest.fixture(scope="module")
def compact() -> Segmenter:
    """The weights that ship."""
    return Segmenter.load("compact", threads=1)


def test_shipped_weights_follow_a_box(compact: Segmenter) -> None:
    volume = photograph()
    (answer,) = compact.decode(compact.encode(volume), [Query(spatial=(Box(40, 30, 79, 59),))]).findings
    inside = answer.mask[0, 30:60, 40:80].sum()
    assert answer.found and answer.presence == 1.0
    assert inside > 0.5 * 30 * 40 and inside > 0.6 * answer.mask.sum()
