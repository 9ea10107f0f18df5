"""The tracker against transformers' inference session, and its memory against all that a session keeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import Sam3TrackerVideoModel, Sam3VideoConfig, Sam3VideoModel  # noqa: E402
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession  # noqa: E402

from lexitome.models.sam3.presets import config_of  # noqa: E402
from lexitome.models.sam3.tracker import Bank, Memory, Sam3Tracker, tracker_config  # noqa: E402

SIDE, WIDTH, SLICES = 64, 128, 18
CONFIG = tracker_config(config_of("tiny").vision_config, width=WIDTH)  # transformers needs more than 64

Look = Callable[[int], object]


@pytest.fixture(scope="module")
def pair() -> tuple[Sam3TrackerVideoModel, Sam3Tracker]:
    """transformers' model and ours, the same random weights; large enough for the memory to matter."""
    torch.manual_seed(0)
    theirs = Sam3TrackerVideoModel(CONFIG).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if not name.startswith("vision_encoder.backbone"):
                parameter.add_(torch.randn_like(parameter) * 0.06)
        for layer in theirs.memory_attention.layers:
            layer.cross_attn_image.o_proj.weight.mul_(4)
        theirs.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(5)  # or a slice on which it is lost tells nothing
    ours = Sam3Tracker(CONFIG)
    missing, unexpected = ours.tracker_model.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing and all(name.startswith("vision_encoder.") for name in unexpected)
    ours.tracker_neck.load_state_dict(theirs.vision_encoder.neck.state_dict())
    return theirs, ours


@pytest.fixture(scope="module")
def video() -> Tensor:
    return torch.rand(SLICES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def looking(pair: tuple[Sam3TrackerVideoModel, Sam3Tracker], video: Tensor) -> Look:
    theirs, ours = pair

    def look(index: int) -> object:
        seen = theirs.vision_encoder.backbone(video[index : index + 1]).last_hidden_state
        return ours.look(seen.unflatten(1, (-1, SIDE // 8)).permute(0, 3, 1, 2))

    return look


def disc(row: int, column: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return (((rows - row) ** 2 + (columns - column) ** 2) < 150).float()


def session_masks(theirs: Sam3TrackerVideoModel, video: Tensor, marks: dict[int, Tensor], *, back: bool) -> dict:
    """(masks, score) by slice of transformers' session, in which the marks are set as their slices come by."""
    session = Sam3TrackerVideoInferenceSession(
        video=video, video_height=SIDE, video_width=SIDE, dtype=torch.float32
    )  # fmt: skip
    one, found = session.obj_id_to_idx(1), {}
    order = range(len(video) - 1, -1, -1) if back else range(len(video))
    for index in order:
        if index in marks:
            session.add_mask_inputs(one, index, marks[index][None, None])
            session.obj_with_new_inputs = [1]
        said = theirs(session, frame_idx=index, reverse=back)
        found[index] = (said.pred_masks[0, 0], float(said.object_score_logits))
    return found


def our_masks(ours: Sam3Tracker, look: Look, slices: int, marks: dict[int, Tensor], *, back: bool) -> dict:
    bank, found = ours.bank(slices), {}
    for index in range(slices - 1, -1, -1) if back else range(slices):
        sight = look(index)
        if index in marks:
            bank.mark(index, ours.start(sight, marks[index]))
        else:
            said = ours.step(sight, bank, index)
            bank.add(index, said.memory)
            found[index] = (said.logits, said.presence)
    return found


@pytest.mark.parity
@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("slices", [6, SLICES])  # fewer and more than there are pointers
def test_same_masks_as_a_session(pair, video, back: bool, slices: int) -> None:
    theirs, ours = pair
    marks = {slices - 1 if back else 0: disc(30, 25)}
    expected = session_masks(theirs, video[:slices], marks, back=back)
    found = our_masks(ours, looking(pair, video), slices, marks, back=back)
    assert set(found) == set(expected) - set(marks)
    for index, (logits, presence) in found.items():
        torch.testing.assert_close(logits, expected[index][0], atol=1e-4, rtol=0)
        assert presence == pytest.approx(expected[index][1], abs=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("back", [False, True])
def test_same_masks_with_more_marks_than_are_kept(pair, video, back: bool) -> None:
    """Within the 15 slices that pointers reach; farther back transformers keeps those of all marked slices."""
    theirs, ours = pair
    slices = 15
    marks = {index: disc(20 + 2 * index, 40 - index) for index in (0, 2, 3, 5, 8, 11, 14)}
    expected = session_masks(theirs, video[:slices], marks, back=back)
    for index, (logits, _) in our_masks(ours, looking(pair, video), slices, marks, back=back).items():
        torch.testing.assert_close(logits, expected[index][0], atol=1e-4, rtol=0)


def test_memory_matters(pair, video) -> None:
    """Or the comparisons above, to 0.0001, would compare nothing: the mask, what passed before, how far away it is."""
    look, ours = looking(pair, video), pair[1]
    one = our_masks(ours, look, 9, {0: disc(30, 25)}, back=False)
    other = our_masks(ours, look, 9, {0: disc(15, 45)}, back=False)
    assert (one[1][0] - other[1][0]).abs().max() > 0.01
    assert (one[8][0] - other[8][0]).abs().max() > 0.001
    bank = ours.bank(9)
    bank.mark(0, ours.start(look(0), disc(30, 25)))
    assert (ours.step(look(8), bank, 8).logits - one[8][0]).abs().max() > 0.01
    near = ours.step(look(8), bank, 1).logits
    assert (ours.step(look(8), bank, 8).logits - near).abs().max() > 0.0003


def test_a_mask_of_any_size_is_the_same_start(pair, video) -> None:
    sight, ours = looking(pair, video)(0), pair[1]
    mask = torch.zeros(SIDE, SIDE)
    mask[16:48, 8:40] = 1
    large = mask.repeat_interleave(3, 0).repeat_interleave(3, 1)
    for one, two in zip(ours.start(sight, mask), ours.start(sight, large), strict=True):
        torch.testing.assert_close(one, two)


def test_without_an_object_there_is_no_mask(video, pair) -> None:
    look, ours = looking(pair, video), Sam3Tracker(CONFIG)
    ours.load_state_dict(pair[1].state_dict())
    with torch.no_grad():
        ours.tracker_model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-1000)
    bank = ours.bank(3)
    bank.mark(0, ours.start(look(0), disc(30, 30)))
    said = ours.step(look(1), bank, 1)
    assert said.presence < 0
    assert (said.logits == -1024).all()


def test_an_empty_bank_is_refused(pair, video) -> None:
    with pytest.raises(ValueError, match="mark a slice first"):
        pair[1].step(looking(pair, video)(0), pair[1].bank(3), 0)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), max_size=60), st.integers(1, 60), st.booleans())
def test_bank_is_bounded_and_holds_what_counts(marks: list[bool], slices: int, back: bool) -> None:
    """Against the whole history: the 4 last marks, of the rest the 6 maps and 15 pointers last passed."""
    bank = Bank(CONFIG, slices)
    way = [(-n if back else n, mark) for n, mark in enumerate([True, *marks])]
    for index, marked in way:
        memory = Memory(torch.tensor([float(index)]), torch.tensor([float(index)]))
        (bank.mark if marked else bank.add)(index, memory)
    here = (-1 if back else 1) * len(way)
    kept = [index for index, marked in way if marked][-4:]
    reach = min(slices, 16) - 1
    near = [index for index, _ in way if index not in kept and abs(here - index) <= min(6, reach)]
    expected = sorted([(0, index) for index in kept] + [(abs(here - index), index) for index in near])
    assert sorted((away, int(value)) for away, value in bank.maps(here)) == expected
    pointed = kept + [index for index, _ in way if index not in kept and abs(here - index) <= reach]
    assert sorted(int(pointer) for _, pointer in bank.pointers(here)) == sorted(pointed)
    assert len(bank.maps(here)) <= 10
    assert len(bank.pointers(here)) <= 19


def test_parameters_are_those_of_the_video_model() -> None:
    """Of the released configuration, name by name and shape by shape."""
    with torch.device("meta"):
        whole = Sam3VideoModel(Sam3VideoConfig())
        ours = Sam3Tracker(tracker_config(config_of("full").vision_config))
    shapes = {name: tensor.shape for name, tensor in whole.state_dict().items() if not name.startswith("detector")}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes


def test_other_side_as_if_built_for_it(pair) -> None:
    side = 2 * SIDE
    built = Sam3Tracker(tracker_config(config_of("tiny", side=side).vision_config, width=WIDTH))
    changed = Sam3Tracker(tracker_config(config_of("tiny").vision_config, width=WIDTH))
    for each in (built, changed):
        each.load_state_dict(pair[1].state_dict())
    changed.set_side(side)
    torch.manual_seed(2)
    trunks = torch.randn(2, 1, 32, side // 8, side // 8)
    answers = []
    for each in (built, changed):
        bank = each.bank(5)
        bank.mark(0, each.start(each.look(trunks[0]), disc(30, 30)))
        answers.append(each.step(each.look(trunks[1]), bank, 1).logits)
    assert changed.side == side
    assert answers[0].shape == (side // 2, side // 2)
    assert torch.equal(*answers)


def test_half_precision_is_close(pair, video) -> None:
    look, ours = looking(pair, video), pair[1]
    half = Sam3Tracker(CONFIG)
    half.load_state_dict(ours.state_dict())
    half.to(torch.bfloat16)
    seen = [pair[0].vision_encoder.backbone(video[n : n + 1]).last_hidden_state for n in range(4)]
    trunks = [each.unflatten(1, (-1, SIDE // 8)).permute(0, 3, 1, 2) for each in seen]
    exact = our_masks(ours, look, 4, {0: disc(30, 25)}, back=False)[3][0]
    rough = our_masks(half, lambda n: half.look(trunks[n]), 4, {0: disc(30, 25)}, back=False)[3][0]
    assert rough.dtype == torch.float32
    assert float((rough - exact).abs().mean()) < 0.1 * float(exact.abs().mean())
