"""Which family a model belongs to and where its weights lie, without any weights and without the internet."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from lexitome.errors import InputError
from lexitome.models import hub
from lexitome.models.catalog import CATALOG
from lexitome.models.foundation import FOUNDATION, WEIGHTS_FOLDER, identity, is_here, kind_of, locate, weights_in


@pytest.fixture(autouse=True)
def nothing_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face's, and no way to fill it."""
    cache = tmp_path / "hub"
    monkeypatch.delenv(WEIGHTS_FOLDER, raising=False)
    try:
        from huggingface_hub import constants, file_download
    except ImportError:
        return cache
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(file_download.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def downloaded(cache: Path, repository: str, *files: str) -> Path:
    """What Hugging Face's tools leave of a download."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(snapshot.name)
    for file in files:
        (snapshot / file).write_bytes(b"weights")
    return snapshot


def folder_of(path: Path, model_type: str) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    return path


@pytest.mark.parametrize("name", CATALOG)
def test_names_of_the_catalog(name: str) -> None:
    assert kind_of(name) == "compact"


@pytest.mark.parametrize("name", FOUNDATION)
def test_names_of_foundation_models(name: str) -> None:
    model = FOUNDATION[name]
    assert kind_of(name) == kind_of(model.hub) == kind_of(f"hf:{model.hub}") == model.kind
    assert name not in CATALOG and model.name == name and model.page.endswith(model.hub)


@pytest.mark.parametrize(
    ("model_type", "kind"), [("sam3", "sam3"), ("sam3_video", "sam3"), ("sam", "sam"), ("dinov3_vit", "dinov3")]
)
def test_folders_of_transformers_by_their_configuration(tmp_path: Path, model_type: str, kind: str) -> None:
    assert kind_of(folder_of(tmp_path / "m", model_type)) == kind


@pytest.mark.parametrize("name", ["sam3.pt", "checkpoint_2D.PT", "model.safetensors", "x.pth"])
def test_files_of_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert kind_of(tmp_path / name) == "sam3"
    assert locate(tmp_path / name) == tmp_path / name


@pytest.mark.parametrize("marks", [("storage_tokens", "blocks.0.ls1.gamma"), ("reg_token", "blocks.0.gamma_1")])
def test_files_of_dinov3_by_the_names_in_them(tmp_path: Path, marks: tuple[str, ...]) -> None:
    """As safetensors and torch write them, the values left out."""
    header = json.dumps({name: {} for name in marks}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02X" + " ".join(marks).encode())
    with zipfile.ZipFile(tmp_path / "other.zip.pt", "w") as archive:
        archive.writestr("archive/data.pkl", marks[0])
    assert [kind_of(tmp_path / name) for name in ("a.safetensors", "a.pth", "other.zip.pt")] == ["dinov3"] * 2 + [
        "sam3"
    ]


def test_repositories_that_are_not_known(nothing_downloaded: Path) -> None:
    pytest.importorskip("huggingface_hub")
    assert kind_of("hf:someone/dinov3-of-mine") == "dinov3" and kind_of("hf:someone/else") == "sam3"
    snapshot = downloaded(nothing_downloaded, "me/encoder", "model.safetensors")
    (snapshot / "config.json").write_text('{"model_type": "dinov3_vit"}')
    assert kind_of("me/encoder") == kind_of("hf:me/encoder") == "dinov3"


@pytest.mark.parametrize("model_type", ["sam3", "dinov3_vit"])
def test_the_folder_of_a_training_run(tmp_path: Path, model_type: str) -> None:
    folder_of(tmp_path / "run" / "model", model_type)
    with pytest.raises(InputError, match=r"Did you mean .*model"):
        kind_of(tmp_path / "run")


def test_the_folder_of_a_segmenter_is_known_by_its_card(tmp_path: Path) -> None:
    """Its weights alone would be taken for SAM3's."""
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    for name in ("segmenter.json", "model.safetensors"):
        (model / name).touch()
    assert kind_of(model) == kind_of(str(model)) == "segmenter"
    known = identity(model)
    with pytest.raises(InputError, match=r"Did you mean .*model"):
        kind_of(tmp_path / "run")
    (model / "model.safetensors").write_bytes(b"others")
    assert identity(model) != known


@pytest.mark.parametrize("typed", ["sam4", "runs/modell", "no/such/folder", "hf:nonsense", "hf:a/b c"])
def test_what_is_no_model_is_not_asked_for_on_the_internet(typed: str) -> None:
    with pytest.raises(InputError) as caught:
        kind_of(typed)
    said = str(caught.value)
    assert "there is no such model" in said and "medical-sam3" in said and "compact" in said and "hf:OWNER/NAME" in said


@pytest.mark.parametrize("name", FOUNDATION)
def test_missing_weights_say_where_to_get_them_and_what_to_type(name: str) -> None:
    with pytest.raises(InputError) as caught:
        locate(name)
    said = str(caught.value)
    model = FOUNDATION[name]
    for words in (model.hub, model.licence, "hf download", "FOLDER|FILE", "not on this machine"):
        assert words in said
    assert "\n" not in said and not is_here(name)


def test_gated_weights_ask_for_the_licence_first() -> None:
    assert FOUNDATION["sam3"].get.index("Accept the licence") < FOUNDATION["sam3"].get.index("hf auth login")
    for name in ("sam3", "medical-sam3"):
        assert "military" in FOUNDATION[name].remedy and "SAM License" in FOUNDATION[name].remedy
    for name in ("dinov3-s", "dinov3-h-plus"):
        assert FOUNDATION[name].get.index("Accept the licence") < FOUNDATION[name].get.index("hf auth login")
        assert "publications acknowledge" in FOUNDATION[name].remedy and "DINOv3 License" in FOUNDATION[name].remedy
    assert "not resolved" in FOUNDATION["meddinov3-b"].duties  # whether Apache-2.0 can be its licence


@pytest.mark.parametrize("place", ["sam3", "sam3.pt", "sam3.safetensors"])
def test_the_folder_that_the_user_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv(WEIGHTS_FOLDER, str(tmp_path))
    (tmp_path / place).touch()
    assert locate("sam3") == tmp_path / place and is_here("sam3") and not is_here("medical-sam3")


def test_what_was_downloaded_earlier(nothing_downloaded: Path) -> None:
    pytest.importorskip("huggingface_hub")
    snapshot = downloaded(nothing_downloaded, "facebook/sam3", "model.safetensors", "config.json")
    medical = downloaded(nothing_downloaded, "ChongCong/Medical-SAM3", "checkpoint_2D.pt")
    own = downloaded(nothing_downloaded, "me/mine", "model.safetensors")
    assert locate("sam3") == locate("facebook/sam3") == locate("hf:facebook/sam3") == snapshot
    assert locate("medical-sam3") == locate("hf:ChongCong/Medical-SAM3") == medical / "checkpoint_2D.pt"
    assert kind_of("me/mine") == "sam3" and locate("me/mine") == own
    assert locate("hf:me/mine/model.safetensors") == own / "model.safetensors"


def test_offline_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(InputError) as caught:
        locate("hf:facebook/sam3")
    assert "cannot be downloaded" in str(caught.value) and "hf download facebook/sam3" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "words"), [("GatedRepoError", "licence has not been accepted"), ("RepositoryNotFoundError", "no such")]
)
def test_refusals_of_hugging_face(monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    """What its library raises, raised where it would be; the library itself is not ours to test."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    httpx = pytest.importorskip("httpx")

    def refuse(*_: object, **__: object) -> None:
        response = httpx.Response(403, request=httpx.Request("GET", "https://example.invalid"))
        raise getattr(huggingface_hub.errors, kind)("refused", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=words):
        locate("hf:facebook/sam3")


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("hf:a/b", ("a/b", "")),
        ("a/b", ("a/b", "")),
        ("hf:a/b/c.pt", ("a/b", "c.pt")),
        ("hf:a/b/c/d.pt", ("a/b", "c/d.pt")),
    ],
)
def test_repositories_and_files_in_them(typed: str, parts: tuple[str, str]) -> None:
    assert hub.parse(typed) == parts


def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "../../secret.safetensors"}}')
    assert weights_in(tmp_path) == [tmp_path / "secret.safetensors"]
    index.write_text("[]")
    with pytest.raises(InputError, match="no index of weights"):
        weights_in(tmp_path)


def test_identity_changes_with_the_weights(tmp_path: Path) -> None:
    model = folder_of(tmp_path / "m", "sam3")
    weights = model / "model.safetensors"
    seen = set()
    for content in (b"one", b"three"):
        weights.write_bytes(content)
        seen.add(identity(model))
        assert identity(model) in seen  # the same as long as nobody writes
    (model / "lexitome.json").write_text("{}")
    assert len(seen | {identity(model)}) == 3
    assert identity("compact") == CATALOG["compact"].measure_card()
