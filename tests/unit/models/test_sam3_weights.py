"""Weights of SAM3 in every layout they come in, tiny: loaded whole, compared with transformers, refused when broken."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import Sam3Config, Sam3Model, Sam3VideoModel  # noqa: E402

from lexitome.errors import InputError  # noqa: E402
from lexitome.models.reading import is_finite  # noqa: E402
from lexitome.models.sam3.conversion import in_full, left_out, to_official, to_ours  # noqa: E402
from lexitome.models.sam3.network import Sam3Net  # noqa: E402
from lexitome.models.sam3.presets import build, config_of  # noqa: E402
from lexitome.models.sam3.tracker import Sam3Tracker, tracker_config  # noqa: E402
from lexitome.models.sam3.weights import Loaded, load_sam3, save_folder, save_official  # noqa: E402


@dataclass(frozen=True)
class Tiny:
    """A tiny SAM3 with random weights, and the same as an official state (all of it random, also what is left out)."""

    model: Sam3Model
    tracker: Sam3Tracker
    official: dict[str, Tensor]

    @property
    def detector(self) -> dict[str, Tensor]:
        return {n: v for n, v in self.official.items() if n.startswith("detector.") and "sam2_convs" not in n}


def shuffled(module: torch.nn.Module, seed: int) -> None:
    """No two tensors alike: a norm of ones and zeros could stand in any place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05 + 0.02)


def config() -> Sam3Config:
    """Tiny, but as wide as transformers' `Sam3VideoModel` needs it, whose tracker has the detector's width."""
    made = config_of("tiny")
    made.vision_config.fpn_hidden_size = 64
    for part in (made.geometry_encoder_config, made.detr_encoder_config, made.detr_decoder_config):
        part.hidden_size = 64
    made.mask_decoder_config.hidden_size = 64
    return made


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    model = build(config(), seed=0).model.eval()
    tracker = Sam3Tracker(tracker_config(model.config.vision_config))
    shuffled(model, 1)
    shuffled(tracker, 2)
    # the two places of one official tensor
    inner = tracker.tracker_model
    inner.shared_image_embedding.positional_embedding.data.copy_(
        inner.prompt_encoder.shared_embedding.positional_embedding.data
    )
    generator = torch.Generator().manual_seed(3)
    kept = {
        name: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in left_out(model).items()
    }
    kept["detector.backbone.vision_backbone.trunk.pos_embed"] = torch.randn(1, 1, 32, generator=generator)
    official = to_official(in_full(model.state_dict(), tracker.state_dict()), kept)
    return Tiny(model, tracker, official)


def answers(model: Sam3Model) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    side = model.config.image_size
    with torch.inference_mode():
        return dict(
            model(
                pixel_values=torch.randn(1, 3, side, side, generator=generator).to(model.dtype),
                input_ids=torch.randint(0, 500, (1, 32), generator=generator),
                attention_mask=torch.ones(1, 32, dtype=torch.long),
            )
        )


def config_beside(model: Sam3Model, folder: Path) -> None:
    (folder / "config.json").write_text(model.config.to_json_string(use_diff=False))


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def fits(loaded: Loaded, tiny: Tiny) -> None:
    same(loaded.net.state_dict(), tiny.model.state_dict())
    same(dict(loaded.net.named_buffers()), dict(tiny.model.named_buffers()))
    assert not loaded.net.training and all(each.requires_grad for each in loaded.net.parameters())


@pytest.mark.parametrize("wrapped", ["plain", "trainer", "module", "no prefix", "state_dict", "medical"])
def test_official_files_in_every_wrapping(tiny: Tiny, tmp_path: Path, wrapped: str) -> None:
    bare = {name.removeprefix("detector."): value for name, value in tiny.detector.items()}
    state = {
        "plain": tiny.official,
        "trainer": {"model": tiny.official, "optimizer": {"state": {0: {"step": 3}}}, "epoch": np.float64(2.5)},
        "module": {"module." + name: value for name, value in tiny.official.items()},
        "no prefix": bare,
        "state_dict": {"state_dict": tiny.official},
        "medical": {"model": {"module." + n: v for n, v in bare.items()}, "loss": {"all": 1.0}, "steps": {"train": 9}},
    }[wrapped]
    torch.save(state, tmp_path / "checkpoint.pt")
    config_beside(tiny.model, tmp_path)
    loaded = load_sam3(tmp_path / "checkpoint.pt", tracker=True)
    fits(loaded, tiny)
    assert (loaded.tracker is None) == (wrapped in ("no prefix", "medical"))
    same(answers(loaded.net), answers(tiny.model))


def test_answers_equal_those_of_transformers_filled_directly(tiny: Tiny, tmp_path: Path) -> None:
    """By transformers' own way: its classes, `load_state_dict`, and the conversion written out for the specials."""
    torch.save(tiny.official, tmp_path / "sam3.pt")
    config_beside(tiny.model, tmp_path)
    loaded = load_sam3(tmp_path / "sam3.pt", tracker=True)
    direct = Sam3Model(config()).eval()
    direct.load_state_dict(tiny.model.state_dict())
    same(answers(loaded.net), answers(direct))
    assert loaded.tracker is not None
    same(loaded.tracker.state_dict(), tiny.tracker.state_dict())
    same(dict(loaded.tracker.named_buffers()), dict(tiny.tracker.named_buffers()))


def test_weights_stay_in_the_file_they_lie_in(tiny: Tiny, tmp_path: Path) -> None:
    """A mapped tensor that is written to would not change the file; a copy would cost its memory."""
    torch.save(tiny.official, tmp_path / "sam3.pt")
    config_beside(tiny.model, tmp_path)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the system does not list mappings")
    net = load_sam3(tmp_path / "sam3.pt").net
    ranges = [
        tuple(int(edge, 16) for edge in line.split()[0].split("-"))
        for line in maps.read_text().splitlines() if line.endswith("sam3.pt")
    ]  # fmt: skip
    outside = [
        name for name, value in net.named_parameters()
        if not any(low <= value.data_ptr() < high for low, high in ranges)
    ]  # fmt: skip
    assert outside == ["text_encoder.text_projection.weight"]  # transposed, hence copied
    before = (tmp_path / "sam3.pt").read_bytes()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert (tmp_path / "sam3.pt").read_bytes() == before


def test_what_is_seldom_needed_stays_in_the_file(tiny: Tiny, tmp_path: Path) -> None:
    torch.save(tiny.official, tmp_path / "sam3.pt")
    config_beside(tiny.model, tmp_path)
    words = ("text_encoder.", "text_projection.")
    loaded = load_sam3(tmp_path / "sam3.pt", dtype=torch.bfloat16, mapped=words)
    dtypes = {name: value.dtype for name, value in loaded.net.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if name.startswith(words)} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if not name.startswith(words)} == {torch.bfloat16}
    net = Sam3Net(loaded.net)
    said = net.text(torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool))
    assert said.dtype == net.dtype == torch.bfloat16


@pytest.mark.parametrize("video", [False, True])
def test_folders_of_transformers(tiny: Tiny, tmp_path: Path, video: bool) -> None:
    save_folder(tiny.model, tmp_path / "a", {"keep": 0.2}, tracker=tiny.tracker if video else None)
    theirs, said = (Sam3VideoModel if video else Sam3Model).from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    theirs.save_pretrained(tmp_path / "b")
    for folder in ("a", "b"):
        loaded = load_sam3(tmp_path / folder, tracker=True)
        fits(loaded, tiny)
        same(answers(loaded.net), answers(theirs.detector_model if video else theirs))
        assert (loaded.tracker is not None) == video
    assert load_sam3(tmp_path / "a").settings == {"keep": 0.2}


def test_weights_in_several_parts(tiny: Tiny, tmp_path: Path) -> None:
    save_folder(tiny.model, tmp_path / "m", {})
    state = load_file(tmp_path / "m" / "model.safetensors")
    names = sorted(state)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: state[name] for name in held}, tmp_path / "m" / file)
    (tmp_path / "m" / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    fits(load_sam3(tmp_path / "m"), tiny)
    (tmp_path / "m" / "two.safetensors").unlink()
    with pytest.raises(InputError, match=r"two\.safetensors.*damaged or incomplete"):
        load_sam3(tmp_path / "m")


def test_saving_gives_back_the_official_file(tiny: Tiny, tmp_path: Path) -> None:
    torch.save(tiny.official, tmp_path / "sam3.pt")
    config_beside(tiny.model, tmp_path)
    loaded = load_sam3(tmp_path / "sam3.pt", tracker=True)
    notes = save_official(loaded.net, tmp_path / "again.pt", loaded.tracker, kept=loaded.kept)
    assert notes == ()
    same(torch.load(tmp_path / "again.pt", weights_only=True)["model"], tiny.official)


def test_rotations_as_newer_official_code_stores_them(tiny: Tiny, tmp_path: Path) -> None:
    newer = {}
    for name, value in tiny.detector.items():
        parts = {"_real": value.real, "_imag": value.imag} if value.is_complex() else {"": value}
        newer |= {name + ending: part.contiguous() for ending, part in parts.items()}
    path = broken(tiny, tmp_path, newer)
    loaded = load_sam3(path)
    fits(loaded, tiny)
    save_official(loaded.net, tmp_path / "again.pt", kept=loaded.kept)
    same(torch.load(tmp_path / "again.pt", weights_only=True)["model"], newer)


def test_a_folder_keeps_what_the_official_layout_needs(tiny: Tiny, tmp_path: Path) -> None:
    _, kept = to_ours(tiny.official)
    save_folder(tiny.model, tmp_path / "m", {}, kept=kept)
    loaded = load_sam3(tmp_path / "m")
    assert save_official(loaded.net, tmp_path / "o.pt", kept=loaded.kept) == ()
    written = torch.load(tmp_path / "o.pt", weights_only=True)["model"]
    rotations = {name for name in written if name.endswith("freqs_cis")}
    assert rotations and written.keys() == tiny.detector.keys()
    for name in written.keys() - rotations:
        assert torch.equal(written[name], tiny.official[name]), name


def test_what_was_never_there_is_made_and_said(tiny: Tiny, tmp_path: Path) -> None:
    notes = save_official(tiny.model, tmp_path / "new.pt")
    assert len(notes) == 2 and "points" in notes[0]
    fits(load_sam3(tmp_path / "new.pt"), tiny)  # the file says its configuration itself


def test_rotations_are_those_of_the_official_code(tiny: Tiny) -> None:
    """Its `compute_axial_cis`, written out: angles along x, then along y; the whole picture at the window's scale."""
    made = left_out(tiny.model)
    for block, (cells, scale) in enumerate(((4, 1.0), (8, 0.5))):  # windows of 4 cells, then all 8 x 8
        places = torch.arange(cells * cells)
        frequencies = 1.0 / (10000.0 ** (torch.arange(0, 16, 4)[:4].float() / 16))
        x = torch.outer((places % cells) * scale, frequencies)
        y = torch.outer((places // cells) * scale, frequencies)
        expected = torch.cat([torch.polar(torch.ones_like(x), x), torch.polar(torch.ones_like(y), y)], -1)
        name = f"detector.backbone.vision_backbone.trunk.blocks.{block}.attn.freqs_cis"
        torch.testing.assert_close(made[name], expected)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_official_to_ours_and_back_is_the_identity(tiny: Tiny, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(v.shape, generator=generator, dtype=v.dtype if v.is_complex() else torch.float32)
        for name, v in tiny.official.items()
    }
    state = {name: value if value.is_complex() else value.to(dtype) for name, value in state.items()}
    found, kept = to_ours(state)
    same(to_official(found, kept), state)


def test_bfloat16_rounds_the_weights_and_not_the_positions(tiny: Tiny, tmp_path: Path) -> None:
    save_folder(tiny.model, tmp_path / "m", {})
    net = load_sam3(tmp_path / "m", dtype=torch.bfloat16).net
    assert {value.dtype for value in net.parameters()} == {torch.bfloat16}
    same(dict(net.named_buffers()), dict(tiny.model.named_buffers()))
    same(net.state_dict(), {n: v.to(torch.bfloat16) for n, v in tiny.model.state_dict().items()})


def broken(tiny: Tiny, folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, folder / "bad.pt")
    config_beside(tiny.model, folder)
    return folder / "bad.pt"


def refused(path: Path, *words: str) -> str:
    with pytest.raises(InputError) as caught:
        load_sam3(path, tracker=True)
    said = str(caught.value)
    assert str(path) in said
    for word in words:
        assert word in said, said
    return said


def test_missing_tensors_are_named(tiny: Tiny, tmp_path: Path) -> None:
    gone = sorted(name for name in tiny.detector if "decoder.layers" in name and "norm" in name)
    state = {name: value for name, value in tiny.detector.items() if name not in gone}
    said = refused(
        broken(tiny, tmp_path, state), "16 tensors are missing", "layer_norm", "and 6 more", "huggingface.co"
    )
    assert said.count("_layer_norm") == 10


def test_tensors_without_a_place_are_named(tiny: Tiny, tmp_path: Path) -> None:
    extra = {"detector.something.new": torch.zeros(1)}
    refused(broken(tiny, tmp_path, tiny.official | extra), "detector.something.new", "SAM License")


def test_tensors_of_another_size_are_named(tiny: Tiny, tmp_path: Path) -> None:
    name = "detector.transformer.decoder.query_embed.weight"
    said = refused(broken(tiny, tmp_path, tiny.official | {name: torch.zeros(9, 64)}), "another size", "(9, 64)")
    assert "(8, 64)" in said


def test_a_checkpoint_of_another_model(tiny: Tiny, tmp_path: Path) -> None:
    other = {f"blocks.{i}.weight": torch.zeros(2) for i in range(20)}
    refused(broken(tiny, tmp_path, other), "another model than SAM3", "--model")


def test_the_tracker_must_be_whole_too(tiny: Tiny, tmp_path: Path) -> None:
    state = {name: value for name, value in tiny.official.items() if name != "tracker.no_mem_embed"}
    path = broken(tiny, tmp_path, state)
    refused(path, "no_memory_embedding")
    fits(load_sam3(path), tiny)  # the detector alone is


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tiny: Tiny, tmp_path: Path, value: float) -> None:
    name = "detector.geometry_encoder.final_proj.bias"
    spoiled = tiny.official[name].clone()
    spoiled[3] = value
    refused(broken(tiny, tmp_path, tiny.official | {name: spoiled}), "not finite", "geometry_encoder.final_proj.bias")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_truncated_files(tiny: Tiny, tmp_path: Path, share: float, ending: str) -> None:
    path = tmp_path / f"cut{ending}"
    (torch.save if ending == ".pt" else save_file)(dict(tiny.model.state_dict()), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    said = refused(path)
    assert "damaged or incomplete" in said or "cut short" in said


class Sly:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code has been run",))


def test_pickled_code_is_not_run(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": tiny.official, "extra": Sly()}, tmp_path / "sly.pt")
    refused(tmp_path / "sly.pt", "would run code", "print")
    assert "code has been run" not in capsys.readouterr().out


def test_folders_without_weights_and_with_too_many(tiny: Tiny, tmp_path: Path) -> None:
    refused(tmp_path, "holds no weights")
    for name in ("checkpoint_2D.pt", "checkpoint_3D.pt"):
        torch.save(tiny.detector, tmp_path / name)
    refused(tmp_path, "holds 2 files of weights", "checkpoint_2D.pt")


def test_a_folder_of_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    refused(tmp_path, "'bert', not SAM3")


def test_other_folders_are_not_replaced(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something other than a model"):
        save_folder(tiny.model, tmp_path, {})
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_saving_over_the_file_that_is_mapped(tiny: Tiny, tmp_path: Path) -> None:
    save_folder(tiny.model, tmp_path / "m", {"policy": "best"})
    loaded = load_sam3(tmp_path / "m")
    with torch.no_grad():
        loaded.net.text_projection.bias.add_(1)
    save_folder(loaded.net, tmp_path / "m", {"policy": "union"})
    again = load_sam3(tmp_path / "m")
    same(again.net.state_dict(), loaded.net.state_dict())
    assert again.settings == {"policy": "union"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]  # nothing temporary is left


def test_the_hash_is_that_of_the_file(tiny: Tiny, tmp_path: Path) -> None:
    import hashlib

    save_folder(tiny.model, tmp_path / "m", {})
    content = (tmp_path / "m" / "model.safetensors").read_bytes()
    assert load_sam3(tmp_path / "m").sha256 == hashlib.sha256(content).hexdigest()


def test_finite() -> None:
    assert is_finite(torch.zeros(0)) and is_finite(torch.tensor([1, 2])) and is_finite(torch.ones(2, dtype=torch.half))
    assert not is_finite(torch.tensor([1.0, float("nan")])) and not is_finite(torch.tensor([-float("inf")]))
