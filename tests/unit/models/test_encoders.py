"""One protocol for encoders of five families: shapes, frozen, batches, sides, hashes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lexitome.errors import InputError
from lexitome.models.dinov3.presets import build
from lexitome.models.dinov3.weights import save_folder, save_teacher
from lexitome.models.encoders import Encoder, hash_of, load_encoder

NAMES = ("random:tiny", "compact", "random:sam3-tiny", "random:timm/vit_tiny_patch16_224", "random:timm/resnet18",
         "random:timm/vit_small_patch16_dinov3")  # fmt: skip


@pytest.fixture(scope="module")
def encoders() -> dict[str, Encoder]:
    return {name: load_encoder(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_that_a_picture_does_not_know_its_batch(name: str, encoders: dict[str, Encoder]) -> None:
    encoder = encoders[name]
    grid = encoder.at(64)
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vectors, patches = encoder.encode(pictures)
    assert vectors.shape == (2, len(encoder.kinds), encoder.dim) and patches.shape == (2, *grid, encoder.dim)
    assert not vectors.requires_grad and vectors.dtype == torch.float32
    alone = encoder.encode(pictures[1:])
    torch.testing.assert_close(alone[0], vectors[1:], atol=1e-4, rtol=1e-3)
    again = encoder.encode(pictures)
    assert torch.equal(again[0], vectors)
    torch.testing.assert_close(vectors[:, encoder.kinds.index("mean")], patches.mean((1, 2)))
    assert encoder.has_cls == ("vit" in name or name == "random:tiny")


def test_positions_in_the_map_are_those_of_the_picture(encoders: dict[str, Encoder]) -> None:
    """A change in the lower left corner changes the map there more than elsewhere."""
    for name in ("random:tiny", "random:sam3-tiny", "random:timm/resnet18", "compact"):
        encoder = encoders[name]
        encoder.at(128)
        plain = torch.zeros(1, 3, 128, 128)
        changed = plain.clone()
        changed[..., 96:, :32] = 200 if encoder.intensity == "rgb255" else 2.0
        moved = (encoder.encode(changed)[1] - encoder.encode(plain)[1]).norm(dim=-1)[0]
        h, w = moved.shape
        assert moved[h // 2 :, : w // 2].mean() > 1.5 * moved[: h // 2, w // 2 :].mean(), name


def test_seeds_and_hashes() -> None:
    one, same, other = (load_encoder("random:tiny", seed=seed) for seed in (0, 0, 1))
    assert one.sha256 == same.sha256 != other.sha256
    assert hash_of({"a": torch.zeros(2)}) != hash_of({"b": torch.zeros(2)}) != hash_of({"a": torch.zeros(1, 2)})


def test_half_precision_says_nearly_the_same() -> None:
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole, half = (load_encoder("random:tiny", dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    a, b = whole.encode(pictures)[1], half.encode(pictures)[1]
    assert torch.nn.functional.cosine_similarity(a, b, dim=-1).min() > 0.99


def test_stored_weights_are_found_by_their_kind(tmp_path: Path) -> None:
    net = build("tiny", 3).eval()
    save_folder(net, tmp_path / "folder", intensity="hu_meddino", about={"licence": "CC0"})
    save_teacher(net, tmp_path / "model.pth", intensity="zscore")
    pictures = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        wanted = net.features(pictures)
    for place, intensity in ((tmp_path / "folder", "hu_meddino"), (tmp_path / "model.pth", "zscore")):
        encoder = load_encoder(str(place))
        assert encoder.intensity == intensity and encoder.at(32) == (2, 2)
        vectors, patches = encoder.encode(pictures)
        torch.testing.assert_close(vectors[:, 0], wanted.cls, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(patches, wanted.patches, atol=1e-5, rtol=1e-4)


def test_weights_of_timm_from_a_file(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=10).eval()
    torch.save(net.state_dict(), tmp_path / "resnet.pth")
    encoder = load_encoder(f"timm/resnet18@{tmp_path / 'resnet.pth'}")
    pictures = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = net.forward_features(pictures).permute(0, 2, 3, 1)
    torch.testing.assert_close(encoder.encode(pictures)[1], wanted, atol=1e-5, rtol=1e-4)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "wrong.pth")
    with pytest.raises(InputError, match=r"cannot be loaded|of another model"):
        load_encoder(f"timm/resnet18@{tmp_path / 'wrong.pth'}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("random:huge", "no such architecture"),
        ("random:sam3-large", "no such architecture"),
        ("timm/no_such_net", "timm knows no such model"),
        ("nothing", "there is no such model"),
    ],
)
def test_wrong_names_say_what_there_is(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_encoder(name)


def test_missing_weights_say_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("LEXITOME_WEIGHTS", raising=False)
    with pytest.raises(InputError, match="hf download"):
        load_encoder("timm/vit_tiny_patch16_224")
    with pytest.raises(InputError, match="hf download"):
        load_encoder("dinov3-l")


def test_sides(encoders: dict[str, Encoder]) -> None:
    with pytest.raises(InputError, match=r"multiples of 32 pixels.*--side 224"):
        encoders["compact"].at(225)
    with pytest.raises(InputError, match="--side 16"):
        encoders["random:tiny"].at(8)
    assert encoders["random:tiny"].at(96) == (6, 6)
    vectors, _ = encoders["compact"].encode(torch.from_numpy(np.full((1, 3, 64, 64), 100, np.float32)))
    assert torch.isfinite(vectors).all()
