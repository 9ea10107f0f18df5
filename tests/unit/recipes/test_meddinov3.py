"""MedDINOv3's segmenter learns, is stored, answers in the geometry of the image, and refuses what it does not know."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("monai")

from lexitome.data.cases import read_case
from lexitome.data.dataset import Dataset
from lexitome.data.patches import PLAIN
from lexitome.data.sources import load_any
from lexitome.errors import InputError
from lexitome.evaluation.answering import About
from lexitome.evaluation.leakage import check
from lexitome.inference.dinov3_card import Card
from lexitome.inference.loading import load_segmenter
from lexitome.io import from_array
from lexitome.prompts import Box, Point, Query, Text
from lexitome.recipes.meddinov3 import LVD_RATE, RECIPES, MedDinov3Recipe, mini, started, with_steps
from lexitome.recipes.meddinov3_answers import meddinov3_answerer
from lexitome.recipes.meddinov3_run import (
    MODEL,
    MedDinov3Job,
    begin,
    export,
    open_shelf,
    planned,
    task_of,
    the_one,
    train,
)
from lexitome.training.engine import RunConfig
from lexitome.training.optim import OptimConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, painted, save_set

SHORT = MedDinov3Recipe(
    "discs", start="random:tiny", side=64, patches=4, drop_path=0.0, augmentation=PLAIN, validated=8,
    optim=OptimConfig(5e-3, betas=(0.9, 0.98), schedule="constant", cooldown=10**9),
    run=RunConfig(steps=160, precision="fp32", ema=0.9, clip=12.0, threads=1, validate_every=80, checkpoint_every=160),
)  # fmt: skip


def quiet(line: str) -> None:
    pass


def run_of(dataset: Dataset, recipe: MedDinov3Recipe, folder: Path) -> dict[str, float]:
    job = planned(MedDinov3Job(recipe, (str(dataset.root),)), dataset)
    task = task_of(job, open_shelf(job, dataset, folder / "cache", quiet))
    job, net = begin(job, task)
    job.save(folder)
    train(job, task, net, folder, resume=False)
    return export(job, task, folder)


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    """Bright and dim discs, which do not overlap, in pictures that are wider than high."""
    root, rng, cases = tmp_path_factory.mktemp("meddinov3"), np.random.default_rng(0), {}
    for i in range(16):
        mask = np.zeros((48, 64), np.uint8)
        mask[:, :48][disc(48, *rng.integers(14, 34, 2), 9)] = 1 + i % 2
        cases[f"p{i:02d}"] = (painted(mask, i), mask)
    names = {1: "left kidney", 2: "right kidney"}
    dataset = load_any(save_set(root / "discs", cases, names, modality="dermoscopy"))
    run_of(dataset, SHORT, root / "run")
    return dataset, root / "run" / MODEL


def test_it_overfits_discs_and_answers_alike_wherever_it_is_asked(pictures: tuple[Dataset, Path]) -> None:
    dataset, model = pictures
    segmenter, answerer = load_segmenter(model), meddinov3_answerer(model)
    scores = []
    for case in dataset.cases:
        volume, codes = read_case(case)
        found = segmenter.decode(segmenter.encode(volume), [Query(Text("left kidney")), Query(Text("kidneys"))])
        asked = answerer.begin(volume, About("discs", case.stem)).answer([Query(Text("left kidney"))])[0]
        assert (asked.mask == found.findings[0].mask).all() and asked.taught and asked.mask.shape == volume.grid
        assert asked.probability is not None and asked.probability.shape == volume.grid
        if case.split == "train":
            scores.append(dice(found.findings[1].mask, codes > 0))
            if (codes == 1).any():
                scores.append(dice(found.findings[0].mask, codes == 1))
    assert np.mean(scores) > 0.8
    card = Card.load(model)
    assert card.exclusive and card.about["datasets"] == ["discs"] and card.about["metrics"]["validation"]["dice"] > 0.6
    said = answerer.provenance()
    json.dumps(said)
    assert said["weights_sha256"] == card.sha256 and said["trained_on"] == ["discs"] and said["taps"] == [0, 1, 2, 3]
    assert check(answerer.training(), [dataset]).sets[0].taught


def test_words_boxes_and_refusals(pictures: tuple[Dataset, Path]) -> None:
    dataset, model = pictures
    segmenter, answerer = load_segmenter(model), meddinov3_answerer(model)
    case = next(case for case in dataset.cases if case.split == "train")
    volume, codes = read_case(case)
    name = "left kidney" if (codes == 1).any() else "right kidney"
    said, meant = (
        segmenter.decode(segmenter.encode(volume), [Query(Text(words))]).findings[0]
        for words in (name, f"{name.split()[0]} renal parenchyma")
    )
    assert said.found and (said.mask == meant.mask).all() and 0.5 < said.score <= 1
    rows, columns = np.nonzero(said.mask[0])
    corner = Box(float(columns.min()), float(rows.min()), float(columns.mean()), float(rows.mean()))
    half = segmenter.decode(segmenter.encode(volume), [Query(Text(name), (corner,))]).findings[0]
    assert half.found and half.mask.sum() < said.mask.sum() and not (half.mask & ~said.mask).any()
    with pytest.raises(InputError, match=r"not taught 'polyp'.*It knows: left kidney, right kidney, kidney"):
        segmenter.encode(volume, [Query(Text("polyp"))])
    with pytest.raises(InputError, match="no other prompt"):
        segmenter.encode(volume, [Query(Text(name), (Point(1, 1),))])
    with pytest.raises(InputError, match="--policy"):
        load_segmenter(model, policy="best")
    about = About("discs", "x", labels={"blob": (1,), "both": (1, 2), "polyp": ()})
    queries = [Query(Text(word)) for word in ("blob", "polyp", "both", "left kidney", "right kidney")]
    blob, polyp, both, left, right = answerer.begin(volume, about).answer(queries)
    assert (blob.mask == left.mask).all() and (both.mask == (left.mask | right.mask)).all()
    assert polyp.status == "missing" and not polyp.mask.any() and "was not taught" in polyp.notes[0]
    strange = answerer.begin(volume, replace(about, dataset="other")).answer(queries[:1])[0]
    assert strange.status == "missing"  # labels of other sets mean other things


def nnunet_set(root: Path) -> Path:
    """Bright balls in CT, nnU-Net's raw form; thick slices, cut along x, so that the view has to turn them."""
    import nibabel

    rng, affine = np.random.default_rng(0), np.diag([3.0, 0.8, 0.8, 1.0])
    for i in range(5):
        x, y, z = np.mgrid[:6, :40, :40]
        ball = (x - 3) ** 2 * 9 + (y - rng.integers(14, 27)) ** 2 + (z - rng.integers(14, 27)) ** 2 < 81
        image = np.where(ball, 120.0, -80.0) + rng.normal(0, 10, ball.shape)
        image[:, :3] = -1000
        for part, values in (("imagesTr", image.astype(np.int16)), ("labelsTr", ball.astype(np.uint8))):
            (root / part).mkdir(parents=True, exist_ok=True)
            ending = "_0000" if part == "imagesTr" else ""
            nibabel.save(nibabel.Nifti1Image(values, affine), root / part / f"case{i}{ending}.nii.gz")
    meta = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 5,
            "file_ending": ".nii.gz"}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(meta))
    return root


@pytest.mark.parametrize("decoder", ["multiscale", "stacked3d"])
def test_volumes_of_nnunet_are_learned_and_answered_on_their_grid(tmp_path: Path, decoder: str) -> None:
    dataset = load_any(nnunet_set(tmp_path / "Dataset001_Balls"))
    run = replace(SHORT.run, steps=60, validate_every=60, checkpoint_every=60)
    recipe = replace(SHORT, run=run, decoder=decoder, depth=3, patches=4, validated=3, foreground=0.5)  # type: ignore[arg-type]
    run_of(dataset, recipe, tmp_path / "run")
    card = Card.load(tmp_path / "run" / MODEL)
    assert card.normalisation.policy == "nnunet_ct" and card.depth == (3 if decoder == "stacked3d" else 1)
    assert card.spacing == pytest.approx((40 * 0.8 / 64,) * 2)
    segmenter, scores, told = load_segmenter(tmp_path / "run" / MODEL), [], []
    for case in dataset.cases:
        volume, codes = read_case(case)
        encoded = segmenter.encode(volume)
        found = segmenter.decode(
            encoded, [Query(Text("liver"))], probabilities=True, progress=lambda *step: told.append(step)
        ).findings[0]
        assert found.mask.shape == volume.grid == (40, 40, 6)
        assert found.probability is not None and found.probability.shape == volume.grid
        scores.append(dice(found.mask, codes == 1))
    assert np.mean(scores) > 0.7 and told[-1] == (6, 6)
    with pytest.raises(InputError, match="no Hounsfield units"):
        picture = from_array(np.zeros((8, 8), np.uint8))
        segmenter.decode(segmenter.encode(picture), [Query(Text("liver"))])


def test_plans_decide_spacing_and_intensity(tmp_path: Path) -> None:
    dataset = load_any(nnunet_set(tmp_path / "Dataset002_Plans"))
    properties = {"mean": 50.0, "std": 20.0, "percentile_00_5": -10.0, "percentile_99_5": 200.0}
    plans = {
        "plans_name": "nnUNetPlans", "foreground_intensity_properties_per_channel": {"0": properties},
        "configurations": {"2d": {"spacing": [0.8, 0.8], "patch_size": [40, 48],
                                  "normalization_schemes": ["CTNormalization"]}},
    }  # fmt: skip
    (dataset.root / "nnUNetPlans.json").write_text(json.dumps(plans))
    job = planned(MedDinov3Job(SHORT, ("x",)), dataset)
    assert job.layout is not None and job.normalisation is not None
    assert job.layout.spacing == pytest.approx((0.5, 0.6)) and job.normalisation.numbers == (-10.0, 200.0, 50.0, 20.0)
    meddino = planned(MedDinov3Job(replace(SHORT, intensity="hu_meddino", spacing=(1.0, 2.0)), ("x",)), dataset)
    assert meddino.layout is not None and meddino.layout.spacing == (1.0, 2.0)
    assert meddino.normalisation is not None and meddino.normalisation.policy == "hu_meddino"
    job.save(tmp_path / "run")
    assert MedDinov3Job.load(tmp_path / "run") == job


def test_recipes_and_what_they_refuse(pictures: tuple[Dataset, Path]) -> None:
    published = RECIPES["meddinov3"]()
    assert (published.side, published.run.steps, published.run.clip, published.drop_path) == (896, 250_000, 12.0, 0.2)
    optim = published.applied
    assert (optim.lr, optim.betas, optim.groups, optim.weight_decay) == (3e-4, (0.9, 0.98), (("trunk.*", 3e-5),), 0.05)
    from lexitome.training.optim import lr_factor

    factors = [lr_factor(step, 250_000, optim) for step in (0, 125_000, 249_999)]
    assert factors == pytest.approx([1, 0.5, 1 / 250_000])
    assert started(published, "dinov3-b").optim.groups == (("trunk.*", LVD_RATE),)
    assert started(published, "random:mini").optim.groups == ()
    assert started(mini(), "run/model").optim.groups == (("trunk.*", mini().optim.lr / 3),)
    assert with_steps(mini(), 400, "fp32").applied.cooldown == 400
    shorter = with_steps(published, 400, "bf16")
    assert (shorter.run.ema, shorter.optim.warmup, shorter.run.precision) == (None, 0, "bf16")
    dataset, _ = pictures
    with pytest.raises(InputError, match="multiple of 16"):
        MedDinov3Recipe(side=40)
    for recipe, words in (
        (replace(SHORT, intensity="hu_meddino"), "needs Hounsfield units"),
        (replace(SHORT, decoder="stacked3d"), "needs volumes"),
        (replace(SHORT, taps=(4,)), "taps are blocks from 0 to 3"),
        (replace(SHORT, start="random:huge"), "there is no 'random:huge'"),
    ):
        with pytest.raises(InputError, match=words):
            run_of(dataset, recipe, dataset.root.parent / "refused")
    with pytest.raises(InputError, match="targets of one dataset"):
        the_one([dataset, dataset])
    tested = replace(dataset, cases=tuple(replace(case, split="test") for case in dataset.cases))
    with pytest.raises(InputError, match="no training part"):
        planned(MedDinov3Job(SHORT, ("x",)), tested)


def test_a_frozen_transformer_stays_as_it_is_and_damage_is_told(tmp_path: Path, pictures: tuple[Dataset, Path]) -> None:
    from safetensors.torch import load_file

    from lexitome.models.dinov3.presets import build

    dataset, model = pictures
    short = replace(SHORT, frozen=True, decoder="linear", taps=(-1,), classes="regions",
                    run=replace(SHORT.run, steps=2, validate_every=2))  # fmt: skip
    run_of(dataset, short, tmp_path / "run")
    card = Card.load(tmp_path / "run" / MODEL)
    assert not card.exclusive and card.taps == (3,) and card.decoder == "linear"
    stored = load_file(tmp_path / "run" / MODEL / "model.safetensors")
    before = build("tiny", 0).state_dict()
    assert all(torch.equal(stored[f"trunk.{name}"], value) for name, value in before.items())
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in model.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "model.safetensors").write_bytes((tmp_path / "run" / MODEL / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="cannot be used"):
        load_segmenter(damaged)
    (damaged / "segmenter.json").write_text("{}")
    with pytest.raises(InputError, match="not of this version"):
        load_segmenter(damaged)
