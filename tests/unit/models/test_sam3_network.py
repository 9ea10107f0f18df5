"""`Sam3Net` against transformers' `Sam3Model`, and what it adds."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from lexitome.models.sam3.network import PADDING, Outputs, Prompts, Sam3Net
from lexitome.models.sam3.presets import build, config_of

SIDE = 64


@pytest.fixture(scope="module")
def net() -> Sam3Net:
    """Random weights with random biases, so that nothing is hidden by a zero."""
    net = build(config_of("tiny"), seed=0, geometry_cls=False).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return net


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1


def ask(*rows: int, boxes: Tensor | None = None, labels: Tensor | None = None) -> Prompts:
    """Different words of different lengths about the pictures `rows`."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 500, (len(rows), 7), generator=generator)
    lengths = torch.tensor([7 - row % 3 for row in range(len(rows))])
    mask = torch.arange(7) < lengths[:, None]
    none = torch.zeros(len(rows), 0)
    return Prompts(
        tokens * mask, mask, torch.tensor(rows), none[..., None].expand(-1, -1, 4) if boxes is None else boxes,
        none.long() if labels is None else labels,
    )  # fmt: skip


def assert_equals_theirs(said: Outputs, theirs: object, tolerance: float = 1e-5) -> None:
    centre, size = said.boxes[-1].split(2, -1)
    pairs = {
        "pred_logits": said.logits[-1],
        "pred_boxes": torch.cat([centre - size / 2, centre + size / 2], -1),
        "presence_logits": said.presence[-1][:, None],
        "pred_masks": said.masks,
        "semantic_seg": said.semantic[:, None],
    }
    for name, ours in pairs.items():
        torch.testing.assert_close(ours, getattr(theirs, name), atol=tolerance, rtol=tolerance, msg=name)


@torch.no_grad()
def test_words_equal_transformers(net: Sam3Net, pictures: Tensor) -> None:
    prompts = ask(0, 1)
    theirs = net.model(pixel_values=pictures, input_ids=prompts.tokens, attention_mask=prompts.token_mask.long())
    assert_equals_theirs(net(pictures, prompts), theirs)


@torch.no_grad()
def test_boxes_equal_transformers(net: Sam3Net, pictures: Tensor) -> None:
    """Positive, negative and missing boxes; transformers needs torchvision for them."""
    pytest.importorskip("torchvision")
    boxes = torch.tensor([[[0.5, 0.5, 0.3, 0.4], [0.2, 0.8, 0.1, 0.1]], [[0.4, 0.3, 0.8, 0.5], [0.0, 0.0, 0.0, 0.0]]])
    labels = torch.tensor([[1, 0], [1, PADDING]])
    prompts = ask(0, 1, boxes=boxes, labels=labels)
    theirs = net.model(
        pixel_values=pictures, input_ids=prompts.tokens, attention_mask=prompts.token_mask.long(),
        input_boxes=boxes, input_boxes_labels=labels,
    )  # fmt: skip
    assert_equals_theirs(net(pictures, prompts), theirs)


@torch.no_grad()
def test_a_query_does_not_depend_on_its_company(net: Sam3Net, pictures: Tensor) -> None:
    """Five concepts of two pictures at once, some with boxes: each as if it were asked alone."""
    boxes = torch.rand(5, 2, 4, generator=torch.Generator().manual_seed(4)) / 2 + 0.1
    labels = torch.tensor([[1, 1], [PADDING, PADDING], [0, 1], [PADDING, 1], [PADDING, PADDING]])
    prompts = ask(0, 1, 1, 0, 0, boxes=boxes, labels=labels)
    together = net(pictures, prompts)
    for row in range(5):
        given = labels[row] != PADDING
        length = int(prompts.token_mask[row].sum())
        alone = Prompts(
            prompts.tokens[row : row + 1, :length], prompts.token_mask[row : row + 1, :length], torch.tensor([0]),
            boxes[row : row + 1, given], labels[row : row + 1, given],
        )  # fmt: skip
        picture = int(prompts.image[row])
        said = net(pictures[picture : picture + 1], alone)
        for name in ("logits", "boxes", "presence"):
            ours = getattr(together, name)[:, row : row + 1]
            torch.testing.assert_close(ours, getattr(said, name), atol=2e-5, rtol=2e-5, msg=f"{row} {name}")
        torch.testing.assert_close(together.masks[row], said.masks[0], atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(together.semantic[row], said.semantic[0], atol=2e-5, rtol=2e-5)


@torch.no_grad()
def test_text_may_be_cached(net: Sam3Net, pictures: Tensor) -> None:
    prompts = ask(0, 0, 0)
    features = net.encode(pictures[:1])
    kept = net.text(prompts.tokens, prompts.token_mask)
    blank = prompts._replace(tokens=torch.zeros_like(prompts.tokens))
    torch.testing.assert_close(net.decode(features, blank, kept), net.decode(features, prompts))


@torch.no_grad()
def test_twins_leave_the_others_alone(net: Sam3Net, pictures: Tensor) -> None:
    """Copies of the object queries take nobody's place; as they skip self-attention they answer otherwise."""
    prompts = ask(0, 1)
    plain, twins = net(pictures, prompts), net(pictures, prompts, twins=True)
    assert plain.twin_logits is None and plain.twin_boxes is None and plain.twin_masks is None
    for name in ("logits", "boxes", "presence", "masks", "semantic"):
        torch.testing.assert_close(getattr(twins, name), getattr(plain, name), atol=1e-5, rtol=1e-5)
    assert twins.twin_logits is not None and twins.twin_boxes is not None and twins.twin_masks is not None
    assert twins.twin_logits.shape == plain.logits.shape and twins.twin_boxes.shape == plain.boxes.shape
    assert twins.twin_masks.shape == plain.masks.shape
    assert (twins.twin_logits - plain.logits).abs().max() > 1e-4


@torch.no_grad()
def test_twins_do_not_see_each_other(net: Sam3Net, pictures: Tensor) -> None:
    """A changed object query changes its own twin and no other."""
    decoder = net.model.detr_decoder
    before = net(pictures, ask(0), twins=True)
    kept = decoder.query_embed.weight.data[0].clone()
    decoder.query_embed.weight.data[0] *= -1  # a constant would vanish in the norm
    try:
        after = net(pictures, ask(0), twins=True)
    finally:
        decoder.query_embed.weight.data[0] = kept
    assert before.twin_logits is not None and after.twin_logits is not None
    changed = (before.twin_logits - after.twin_logits).abs().amax((0, 1)) > 1e-6
    assert changed[0] and not changed[1:].any()
    assert ((before.logits - after.logits).abs().amax((0, 1)) > 1e-6).all()


@torch.no_grad()
def test_geometry_cls(net: Sam3Net, pictures: Tensor) -> None:
    """The official code adds the token always; with a box both do, so nothing changes."""
    official = Sam3Net(net.model, geometry_cls=True)
    words = ask(0, 1)
    assert (official(pictures, words).logits - net(pictures, words).logits).abs().max() > 1e-4
    boxed = ask(0, 1, boxes=torch.full((2, 1, 4), 0.4), labels=torch.ones(2, 1, dtype=torch.long))
    torch.testing.assert_close(official(pictures, boxed).logits, net(pictures, boxed).logits)
    padded = ask(0, 1, boxes=torch.zeros(2, 1, 4), labels=torch.full((2, 1), PADDING))
    torch.testing.assert_close(official(pictures, padded).masks, official(pictures, words).masks, atol=1e-5, rtol=1e-5)


def test_recomputed_activations_give_the_same_gradients(pictures: Tensor) -> None:
    gradients = []
    for recompute in (False, True):
        net = build(config_of("tiny"), seed=0)
        net.train()
        net.recompute_activations(recompute)
        torch.manual_seed(0)  # dropout
        said = net(pictures, ask(0, 1, 1, boxes=torch.full((3, 1, 4), 0.4), labels=torch.ones(3, 1).long()), twins=True)
        assert said.twin_masks is not None
        sum(value.float().square().mean() for value in said if value is not None).backward()  # type: ignore[union-attr]
        gradients.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_everything_is_trained(pictures: Tensor) -> None:
    """Only what cannot matter has no gradient: CLIP's own projection, the neck's smallest level and the stage of the
    pixel decoder that would have come of it, tokens that do not occur, the bias of keys."""
    net = build(config_of("tiny"), seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    said = net(pictures, ask(0, 1, boxes=torch.full((2, 1, 4), 0.4), labels=torch.tensor([[1], [0]])), twins=True)
    sum(value.square().sum() for value in said if value is not None).backward()  # type: ignore[union-attr]
    idle = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    unread = ("text_encoder.text_projection", "neck.fpn_layers.3", "k_proj.bias", "token_embedding",
              "pixel_decoder.conv_layers.2", "pixel_decoder.norms.2")  # fmt: skip
    assert not {name for name in idle if not any(part in name for part in unread)}


@torch.no_grad()
def test_bfloat16_is_close(net: Sam3Net, pictures: Tensor) -> None:
    half = build(config_of("tiny"), seed=0, geometry_cls=False).eval()
    half.load_state_dict(net.state_dict())
    half = half.bfloat16()
    prompts = ask(0, 1, boxes=torch.full((2, 1, 4), 0.4), labels=torch.ones(2, 1).long())
    one, other = net(pictures, prompts), half(pictures, prompts)
    assert other.masks.dtype == torch.bfloat16 and other.boxes.dtype == torch.float32
    for name in ("logits", "boxes", "presence", "masks", "semantic"):
        exact = getattr(one, name)
        assert (getattr(other, name).float() - exact).abs().max() < 0.05 * exact.abs().max() + 0.02, name


def test_features_from_inference_may_be_followed_by_training(net: Sam3Net, pictures: Tensor) -> None:
    """transformers keeps position codes; those made in inference mode must not turn up in a graph."""
    with torch.inference_mode():
        net(pictures, ask(0))
    said = net(pictures, ask(0, boxes=torch.full((1, 1, 4), 0.4), labels=torch.ones(1, 1).long()))
    said.masks.sum().backward()
    net.zero_grad()


def test_without_torchvision() -> None:
    """Import, boxes, forward and backward where torchvision is not installed."""
    code = """
import sys
sys.modules["torchvision"] = None
import torch
from lexitome.models.sam3.network import Prompts
from lexitome.models.sam3.presets import build, config_of
net = build(config_of("tiny"), seed=0)
prompts = Prompts(torch.ones(1, 3).long(), torch.ones(1, 3).bool(), torch.zeros(1).long(),
                  torch.full((1, 1, 4), 0.4), torch.ones(1, 1).long())
net(torch.zeros(1, 3, 64, 64), prompts, twins=True).masks.sum().backward()
print("fine", sys.modules["torchvision"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "fine None", done.stderr
