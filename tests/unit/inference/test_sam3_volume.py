"""Volumes with SAM3: a real tracker with random weights whose belief that the object is there is set, real files, real
detections; what is made of them slice by slice."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as hnp  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor  # noqa: E402

from lexitome.data.intensity import View  # noqa: E402
from lexitome.inference.sam3_follow import Body, Detection, Followed, Follower, Plan, Sights  # noqa: E402
from lexitome.inference.sam3_policies import Plane, Said, settle  # noqa: E402
from lexitome.inference.sam3_volume import consistent, objects_of, on_grid, propagate, stride  # noqa: E402
from lexitome.models.sam3.network import Features, Prompts, Sam3Net  # noqa: E402
from lexitome.models.sam3.presets import build, config_of  # noqa: E402
from lexitome.models.sam3.settings import Settings  # noqa: E402
from lexitome.models.sam3.tracker import Sam3Tracker, tracker_config  # noqa: E402

CELLS = 32
"""Of the tiny network's masks, in either direction."""


class Pictures:
    """Noise, the same for the same index; counts how often it is asked."""

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, [0] * count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Tensor:
        self.asked[index] += 1
        return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(index)) * 2 - 1


@pytest.fixture(scope="module")
def net() -> Sam3Net:
    return build(config_of("tiny"), 0).eval().requires_grad_(False)


def tracker_that(sees: bool) -> Sam3Tracker:
    torch.manual_seed(0)
    tracker = Sam3Tracker(tracker_config(config_of("tiny").vision_config))
    with torch.no_grad():
        for parameter in tracker.parameters():  # as transformers makes it, all logits would be near 0
            parameter.add_(torch.randn_like(parameter) * 0.15)
        for layers in tracker.tracker_model.mask_decoder.output_hypernetworks_mlps:
            layers.proj_out.bias.add_(0.3)  # half of the picture and more
        tracker.tracker_model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(1000.0 if sees else -1000.0)
    return tracker.requires_grad_(False)


@pytest.fixture(scope="module")
def sees() -> Sam3Tracker:
    return tracker_that(True)


@pytest.fixture(scope="module")
def blind() -> Sam3Tracker:
    return tracker_that(False)


def block(index: int, score: float, rows: tuple[int, int], columns: tuple[int, int]) -> Detection:
    plane = np.zeros((CELLS, CELLS), np.float32)
    plane[slice(*rows), slice(*columns)] = 0.9
    return Detection.of(index, score, plane)


def whole(index: int, score: float = 0.9) -> Detection:
    """Covers the picture, so that whatever is followed overlaps it."""
    return block(index, score, (0, CELLS), (0, CELLS))


def follow(
    net: Sam3Net, tracker: Sam3Tracker, detections: Sequence[Detection], slices: int, asked: Sequence[int], plan: Plan
) -> Followed:
    result = Followed((slices, CELLS, CELLS))
    with Sights(net, tracker, Pictures(slices)) as sights, torch.inference_mode():
        Follower(tracker, sights, detections, asked, plan).run(result, Body(result.grid))
    return result


def extent(result: Followed) -> list[int]:
    return np.flatnonzero(result.probability.any(axis=(1, 2))).tolist()


# --- what is found on few slices stays ------------------------------------------------------------------------------


def test_a_detection_on_one_slice_survives_a_tracker_that_sees_nothing(net: Sam3Net, blind: Sam3Tracker) -> None:
    seen = block(4, 0.6, (3, 9), (20, 30))
    result = follow(net, blind, [seen], 9, range(9), Plan())
    assert extent(result) == [4]
    np.testing.assert_allclose(result.probability[4], seen.plane(), atol=1e-3)
    assert (result.objects, result.best) == (1, 4)
    assert result.presence == pytest.approx(0.6)


def test_structures_apart_are_found_apart(net: Sam3Net, blind: Sam3Tracker) -> None:
    """On different slices and on one, the ids in the order of their scores."""
    seen = [block(2, 0.7, (0, 8), (0, 8)), block(2, 0.8, (16, 24), (16, 24)), block(11, 0.9, (4, 20), (4, 20))]
    result = follow(net, blind, seen, 12, range(12), Plan())
    assert result.objects == 3
    assert (extent(result), result.best) == ([2, 11], 11)
    assert (result.owners[11, 10, 10], result.owners[2, 20, 20], result.owners[2, 4, 4]) == (1, 2, 3)
    assert ((result.owners > 0) == (result.probability >= 0.5)).all()


def test_beyond_the_most_structures_detections_stay_on_their_slices(net: Sam3Net, sees: Sam3Tracker) -> None:
    seen = [block(3, 0.9, (0, 8), (0, 8)), block(3, 0.8, (16, 24), (16, 24))]
    result = follow(net, sees, seen, 7, (), Plan(most=0))
    assert (result.objects, extent(result)) == (2, [3])


def test_faint_detections_start_nothing(net: Sam3Net, sees: Sam3Tracker) -> None:
    result = follow(net, sees, [whole(3, 0.4)], 7, range(7), Plan())
    assert (result.objects, extent(result)) == (0, [])


# --- where a structure ends -----------------------------------------------------------------------------------------


def test_followed_in_both_directions_to_the_ends(net: Sam3Net, sees: Sam3Tracker) -> None:
    result = follow(net, sees, [whole(3)], 9, (), Plan())
    assert extent(result) == list(range(9))
    assert result.objects == 1


def test_ends_where_the_detector_does_not_see_it(net: Sam3Net, sees: Sam3Tracker) -> None:
    """Asked about every third slice: nothing on slices 6 and 12, or beyond."""
    result = follow(net, sees, [whole(9)], 24, range(0, 24, 3), Plan(unseen=2))
    assert extent(result) == list(range(7, 12))


def test_a_faint_detection_confirms(net: Sam3Net, sees: Sam3Tracker) -> None:
    """And bridges the slice before it, on which nothing was seen; two such slices are too many."""
    seen = [whole(9), whole(15, 0.3), whole(0, 0.3)]
    result = follow(net, sees, seen, 24, range(0, 24, 3), Plan(unseen=2))
    assert extent(result) == list(range(7, 18))
    assert result.objects == 1


def test_what_another_structure_has_explained_is_not_taken_again(net: Sam3Net, sees: Sam3Tracker) -> None:
    everything = np.ones((CELLS, CELLS), np.bool_)
    with Sights(net, sees, Pictures(9)) as sights:
        follower = Follower(sees, sights, [whole(2), block(6, 0.8, (0, 9), (0, 9)), whole(6, 0.7)], (), Plan())
        follower._take(Body((9, CELLS, CELLS)), [2], name=7)
    assert follower._matches(6, everything, name=7) == [1, 2]
    assert follower._matches(6, everything, name=3) is None  # has run into structure 7, and ends there
    beside = np.zeros_like(everything)
    beside[:8, :8] = True
    assert follower._matches(6, beside, name=3) == [1]
    assert follower._matches(5, everything, name=3) == []


# --- fusion ---------------------------------------------------------------------------------------------------------


def test_detector_and_both_directions_are_averaged(net: Sam3Net, sees: Sam3Tracker) -> None:
    """Between two slices on which it was detected: the mean of the way from the one and the way from the other."""
    slices, first, last = 6, 1, 4
    result = follow(net, sees, [whole(first, 0.9), whole(last, 0.8)], slices, (), Plan())
    with Sights(net, sees, Pictures(slices)) as sights, torch.inference_mode():
        bank = sees.bank(slices)
        bank.mark(first, sees.start(sights[first], torch.full((CELLS, CELLS), 0.9)))
        there, back = {}, {}
        for index in range(first + 1, last + 1):
            said = sees.step(sights[index], bank, index)
            bank.add(index, said.memory)
            there[index] = said.logits.sigmoid().numpy()
        body = Body((slices, CELLS, CELLS))
        body.add(last, there[last], 1.0)  # the tracker's certainty
        body.add(last, whole(last).plane(), 0.8)  # the detection's score
        joined = body.mean(last)
        np.testing.assert_allclose(joined, (there[last] + 0.8 * 0.9) / 1.8, atol=2e-3)
        bank = sees.bank(slices)
        bank.mark(last, sees.start(sights[last], torch.from_numpy(joined)))
        for index in range(last - 1, first, -1):
            said = sees.step(sights[index], bank, index)
            bank.add(index, said.memory)
            back[index] = said.logits.sigmoid().numpy()
    assert result.objects == 1
    np.testing.assert_allclose(result.probability[first], 0.9, atol=2e-3)
    np.testing.assert_allclose(result.probability[last], joined, atol=2e-3)
    for index in (2, 3):
        np.testing.assert_allclose(result.probability[index], (there[index] + back[index]) / 2, atol=2e-3)
        assert np.abs(there[index] - back[index]).max() > 0.1  # or the average would show nothing


def test_a_direction_that_has_lost_it_has_no_say(net: Sam3Net, blind: Sam3Tracker) -> None:
    result = follow(net, blind, [whole(1, 0.9), whole(2, 0.8)], 5, range(5), Plan())
    np.testing.assert_allclose(result.probability[1:3], 0.9, atol=1e-3)


# --- features -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 40_000, 1 << 30])
def test_each_slice_is_encoded_once_and_the_store_changes_nothing(net: Sam3Net, sees: Sam3Tracker, most: int) -> None:
    """With no room, room for three slices, and room for all."""
    pictures = Pictures(6)
    with Sights(net, sees, pictures, most=most) as sights, torch.inference_mode():
        for index in (0, 1, 2, 1, 0, 5, 5, 2):
            direct = sees.look(net.encode(Pictures(6)[index]).trunk)
            for stored, fresh in zip(sights[index], direct, strict=True):
                assert torch.equal(stored, fresh)
    if most > 1_000_000:
        assert pictures.asked == [1, 1, 1, 0, 0, 1]
    else:
        assert max(pictures.asked) <= 2


def answers_of(net: Sam3Net, queries: int) -> Callable[[Features, int], list[Plane]]:
    """Asks the network about words that nobody taught it."""
    tokens = torch.arange(3)[None] + 5 * torch.arange(queries)[:, None]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    nowhere = torch.zeros(queries, 0, dtype=torch.long)

    def ask(features: Features, index: int) -> list[Plane]:
        prompts = Prompts(tokens, mask, torch.zeros(queries, dtype=torch.long), torch.zeros(queries, 0, 4), nowhere)
        outputs = net.decode(features, prompts)
        return [settle(Said.of(outputs, row), Settings(policy="union", keep=0.2)) for row in range(queries)]

    return ask


@pytest.mark.parametrize("tracked", [False, True])
def test_propagate_asks_the_plan_and_counts_slices(net: Sam3Net, sees: Sam3Tracker, tracked: bool) -> None:
    pictures, told = Pictures(11), []
    ask = answers_of(net, 2)
    asked = []

    def noted(features: Features, index: int) -> list[Plane]:
        asked.append(index)
        return ask(features, index)

    results = propagate(
        net, sees if tracked else None, pictures, noted, [(), ()], Plan(every=4, also=(2,)),
        lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert asked == ([1, 2, 5, 9] if tracked else list(range(11)))
    assert max(pictures.asked) == 1
    assert told[-1] == (11, 11)
    assert told == sorted(told)
    assert len(results) == 2
    for result in results:
        assert result.probability.shape == (11, CELLS, CELLS)
        assert 0 < result.presence < 1
        assert result.best in asked


@pytest.mark.parametrize("tracked", [False, True])
def test_what_is_given_needs_no_question(net: Sam3Net, blind: Sam3Tracker, tracked: bool) -> None:
    pictures = Pictures(5)
    mark = block(3, 1.0, (4, 12), (4, 12))
    (result,) = propagate(net, blind if tracked else None, pictures, None, [(mark,)], Plan())
    assert np.flatnonzero((result.probability >= 0.5).any(axis=(1, 2))).tolist() == [3]
    np.testing.assert_allclose(result.probability[3], mark.plane(), atol=1e-3)
    assert (result.presence, result.best, result.objects) == (1.0, 3, 1)
    assert max(pictures.asked) == tracked  # nothing is encoded that nobody asks about
    assert pictures.asked[0] == 0


def test_nothing_asked_and_one_slice(net: Sam3Net, sees: Sam3Tracker) -> None:
    assert propagate(net, sees, Pictures(3), None, [], Plan()) == []
    (result,) = propagate(net, sees, Pictures(1), answers_of(net, 1), [()], Plan(every=8))
    assert result.best == 0


def test_memory_does_not_grow_with_slices(net: Sam3Net, sees: Sam3Tracker) -> None:
    """Of Python, NumPy and all tensors, from the first third of a way to its end."""

    def held() -> int:
        gc.collect()
        tensors = [each for each in gc.get_objects() if issubclass(type(each), Tensor)]
        return tracemalloc.get_traced_memory()[0] + sum(tensor.nbytes for tensor in tensors)

    slices = 50
    with Sights(net, sees, Pictures(slices)) as sights, torch.inference_mode():
        bank = sees.bank(slices)
        bank.mark(0, sees.start(sights[0], torch.ones(CELLS, CELLS)))
        tracemalloc.start()
        for index in range(1, slices):
            bank.add(index, sees.step(sights[index], bank, index).memory)
            if index == 20:
                early = held()
        late = held()
        tracemalloc.stop()
    assert late - early < 50_000


@pytest.mark.slow
def test_500_slices_in_the_memory_of_100(net: Sam3Net, sees: Sam3Tracker) -> None:
    """The whole: asked on every eighth slice, followed through all in both directions, results and files included."""
    import os
    import resource

    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("resident memory is read as Linux tells it")
    seen: dict[int, int] = {}

    def watch(done: int, total: int) -> None:
        seen[done] = resident()

    given = [[whole(index) for index in range(0, 500, 50)]]
    (result,) = propagate(net, sees, Pictures(500), answers_of(net, 1), given, Plan(every=8, unseen=100), watch)
    assert extent(result) == list(range(500))
    assert seen[500] - seen[100] < 20 << 20


# --- detections -----------------------------------------------------------------------------------------------------


def plane_of(mask: NDArray[np.bool_], owners: NDArray[np.uint16] | None = None, presence: float = 0.7) -> Plane:
    return Plane(torch.from_numpy(np.where(mask, 3.0, -3.0)), presence, owners, presence)


def test_objects_are_the_parts_of_a_mask_or_as_told() -> None:
    mask = np.zeros((CELLS, CELLS), np.bool_)
    mask[2:10, 2:10] = mask[20:25, 20:25] = True
    mask[30, 30] = True  # a speck: with the largest
    parts = objects_of(plane_of(mask), 5, 0.25)
    assert [(part.index, part.score) for part in parts] == [(5, 0.7), (5, 0.7)]
    assert sorted(int((part.plane() >= 0.5).sum()) for part in parts) == [25, 65]
    owners = np.ones((CELLS, CELLS), np.uint16)
    owners[:, 6:] = 2
    assert sorted(int((part.plane() >= 0.5).sum()) for part in objects_of(plane_of(mask, owners), 5, 0.25)) == [32, 58]
    assert not objects_of(plane_of(mask, presence=0.2), 5, 0.25)
    assert not objects_of(plane_of(np.zeros_like(mask)), 5, 0.25)


@given(hnp.arrays(np.float32, (9, 7), elements=st.floats(0, 1, width=32)))
def test_a_detection_is_its_plane(plane: NDArray[np.float32]) -> None:
    kept = Detection.of(0, 1.0, plane)
    np.testing.assert_allclose(kept.plane(), plane, atol=0.02)
    assert (kept.plane() >= 0.5).sum() >= (plane >= 0.5).sum()  # float16 may round up to a half
    inside = np.roll(plane, 2, axis=0) >= 0.5
    own = kept.plane() >= 0.5
    iou, share = kept.overlap(inside)
    assert iou == pytest.approx((own & inside).sum() / max((own | inside).sum(), 1))
    assert share == pytest.approx((own & inside).sum() / max(own.sum(), 1))


@given(st.integers(1, 200), st.integers(1, 40))
def test_asked_slices_cover_the_volume(slices: int, every: int) -> None:
    asked = Plan(every=every).asked(slices)
    assert asked[0] >= 0
    assert asked[-1] < slices
    assert all(second - first == min(every, slices) for first, second in pairwise(asked))
    assert max(asked[0], slices - 1 - asked[-1]) <= every / 2


@pytest.mark.parametrize(("thickness", "expected"), [(5.0, 1), (8.0, 1), (1.5, 4), (1.0, 6), (None, 4)])
def test_stride_in_mm(thickness: float | None, expected: int) -> None:
    assert stride(thickness) == expected


# --- without a tracker, and back to the volume ----------------------------------------------------------------------


def test_neighbours_fill_gaps_and_single_slices_stay() -> None:
    likely = np.zeros((8, 12, 12), np.float16)
    likely[:4, 1:4, 1:4] = 0.9
    likely[1, 2, 2] = 0.2  # a hole that its neighbours fill
    likely[6, 8:11, 8:11] = 0.7  # on one slice alone
    likely[4:8, 8:11, 1:4] = 0.8  # nowhere sure
    sure = np.array([1, 1, 0, 0, 0, 0, 0, 0], np.bool_)
    found = consistent(likely, sure) >= 0.5
    assert found[:4, 1:4, 1:4].all()
    assert not found[4:].any()
    sure[6] = True
    found = consistent(likely, sure) >= 0.5
    assert found[6, 8:11, 8:11].all()
    assert found[4:8, 8:11, 1:4].all()


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float16, (5, 6, 6), elements=st.sampled_from([0.0, 0.3, 0.6, 0.9])))
def test_no_part_is_smoothed_away(likely: NDArray[np.float16]) -> None:
    from scipy import ndimage

    found = consistent(likely, np.ones(5, np.bool_)) >= 0.5
    parts, count = ndimage.label(likely >= 0.5, structure=np.ones((3, 3, 3)))
    assert set(np.unique(parts[found])) >= set(range(1, count + 1))


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.bool_, (4, 5, 6)), st.permutations([0, 1, 2]), st.sets(st.integers(0, 2)), st.booleans())
def test_masks_return_to_where_they_were(mask: NDArray[np.bool_], order: list[int], flips: set[int], ask: bool) -> None:
    """At the resolution of the volume nothing may change, however the slices were cut and turned."""
    view = View((order[0], order[1], order[2]), tuple(sorted(flips)))
    seen = view.apply(mask)
    followed = Followed((seen.shape[0], seen.shape[1], seen.shape[2]))
    followed.probability[:] = np.where(seen, 0.8, 0.1)
    followed.owners[:] = np.where(seen, 2 + 3 * (np.arange(len(seen)) % 2)[:, None, None], 0)
    back = on_grid(view, mask.shape, followed, probability=ask)
    assert (back.mask == mask).all()
    assert ((back.instances > 0) == mask).all()
    assert set(np.unique(back.instances)) - {0} == set(range(1, int(back.instances.max()) + 1))
    assert back.score == pytest.approx(0.8 if mask.any() else 0.0, abs=1e-3)
    assert (back.probability is not None) == ask
    if back.probability is not None:
        assert ((back.probability >= 0.5) == mask).all()


def test_enlarged_masks_keep_their_objects() -> None:
    followed = Followed((1, 8, 8))
    followed.probability[0, 1:3, 1:3] = followed.probability[0, 5:7, 5:7] = 0.9
    followed.owners[0, 1:3, 1:3], followed.owners[0, 5:7, 5:7] = 1, 2
    back = on_grid(View(), (1, 80, 40), followed)
    assert set(np.unique(back.instances[0, 10:30, 5:15])) == {0, 1}
    assert set(np.unique(back.instances[0, 50:70, 25:35])) == {0, 2}
    assert (back.instances > 0).mean() > 2 * 2 * 2 / 64 * 0.7
    assert ((back.instances > 0) == back.mask).all()
