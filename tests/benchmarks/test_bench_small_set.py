"""The small-set comparison: who gets which images, that a known set is refused, and the statistics."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("monai")
small_set = pytest.importorskip("small_set")

from lexitome.data.sources import load_any  # noqa: E402
from lexitome.data.sources.folder import load_dataset  # noqa: E402
from lexitome.errors import InputError  # noqa: E402
from lexitome.evaluation.rows import ResultRow  # noqa: E402

NUCLEI = "dsb2018_fluorescence_nuclei"


def test_the_user_gets_no_test_subject(annotated: Path, tmp_path: Path) -> None:
    dataset = load_dataset(annotated / NUCLEI)
    cases = tuple(replace(case, unit=f"pair{i // 2}", split="train" if i < 14 else "test") for i, case in
                  enumerate(dataset.cases))  # fmt: skip
    paired = replace(dataset, cases=cases)
    own, test = small_set.choose_cases(paired, 8, 5, seed=0)
    assert len(own) == 8 and len(test) == 5
    assert not {c.unit for c in own} & {c.unit for c in test}
    assert {c.split for c in own} == {"train"} and {c.split for c in test} == {"test"}
    assert small_set.choose_cases(paired, 8, 5, seed=0) == (own, test) != small_set.choose_cases(paired, 8, 5, seed=1)
    with pytest.raises(InputError, match="Ask for fewer"):
        small_set.choose_cases(paired, 15, 5, seed=0)
    small_set.lay_out(paired, own, tmp_path / small_set.FOLDER)
    found = load_any(tmp_path / small_set.FOLDER)
    assert found.name == small_set.FOLDER and len(found.cases) == 8
    assert len({c.unit for c in found.cases}) == len({c.unit for c in own})
    pictures = {c.image.read_bytes() for c in found.cases}
    assert pictures == {c.image.read_bytes() for c in own}


def test_what_the_model_knows_is_refused(annotated: Path, tmp_path: Path) -> None:
    tiny = pytest.importorskip("tiny_model")
    dataset = load_dataset(annotated / NUCLEI)
    folder = tiny.write_model(tmp_path / "knows", tiny.tiny_net())  # its card lists "nuclei"
    with pytest.raises(InputError, match="nuclei"):
        small_set.refuse_known(dataset, str(folder))
    card = json.loads((folder / "card.json").read_text())
    card["trained_concepts"] = [c for c in card["trained_concepts"] if c["words"] != "nuclei"]
    (folder / "card.json").write_text(json.dumps(card))
    small_set.refuse_known(dataset, str(folder))


def row(case: int, protocol: str, dice: float | None, **other: object) -> ResultRow:
    entry = ResultRow(
        dataset="own_set", split="test", case=f"i{case}", unit=f"s{case // 2}", modality="", dims=2, concept="polyp",
        derived=False, model="m", protocol=protocol, present=True, metrics={"dice": dice},
    )  # fmt: skip
    return replace(entry, **other)  # type: ignore[arg-type]


def test_differences_are_paired_and_resample_subjects() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.6, 40)
    before = [row(i, "text", 0.1) for i in range(40)] + [row(i, small_set.BOX.name, base[i]) for i in range(40)]
    adapted = [row(i, "text", base[i]) for i in range(40)] + [row(i, small_set.BOX.name, base[i]) for i in range(40)]
    unet = [row(i, "text", base[i] - 0.1 + rng.normal(0, 0.02)) for i in reversed(range(40))]
    found = small_set.compared({"before": before, "adapted": adapted, "unet": unet}, 0)
    means = {(e["who"], e["protocol"]): e for e in found["dice"]}
    assert len(means) == 5 and means["before", "text"]["mean"] == pytest.approx(10)
    assert means["adapted", "text"]["mean"] == pytest.approx(100 * base.mean())
    assert means["adapted", "text"]["units"] == 20 and means["adapted", "text"]["cases"] == 40
    first, _, boxes, _, words = found["differences"]
    assert (first["of"], first["against"]) == ("adapted text", "unet text")
    assert 8 < first["low"] < first["difference"] < first["high"] < 12 and first["p"] < 0.01
    assert boxes["difference"] == words["difference"] == 0
    assert words["of"] == "adapted text" and words["against"] == "adapted oracle-jittered-box"
    without = small_set.compared({"adapted": adapted, "unet": unet}, 0)
    assert [e["of"] for e in without["differences"]] == ["adapted text", "adapted text"]
    told = small_set.lines(found)
    assert len(told) == 10 and "oracle" in told[1] and "adapted text - unet text: +" in told[5]


def test_what_is_missed_counts_zero_and_what_is_not_asked_does_not_count() -> None:
    rows = [row(0, "text", 0.0, status="failed"), row(1, "text", 0.5), row(2, "text", None, present=False),
            row(3, "text", 1.0, derived=True), row(4, small_set.BOX.name, 1.0)]  # fmt: skip
    assert small_set.scores({"adapted": rows}, "adapted", small_set.TEXT) == {"s0": [0.0, 50.0]}


def test_the_plan_is_told_without_places() -> None:
    output = """data         own_set: 60 images (42 to train, 6 to validate, 12 to test); 1 targets: polyp
spacing      pixels of 0.5 mm, slices 5 mm apart: not nearly cubic
start        /home/me/models/mine: what it knows of edges is kept and taught on
device       cpu, 2 threads: no GPU was found; as OMP_NUM_THREADS says
memory       16 pictures of 320 pixels make a step, 16 at once: 3.1 GB at most
decoding     own_set (1 of 1)
precision    fp32: 2 s a step, in bf16 2 s, which is not clearly less
step 20/60 loss 0.5000 (bce 0.1  dice 0.4) lr 1.00e-04 3.0 images/s
step 60/60 validation dice 0.7000  presence 1.0000 (best so far)
test part    dice 70.0: from words alone, nothing else given
next         lexitome segment -i IMAGE -o OUT -t polyp --model /home/me/run/model
"""
    told = small_set.said(output, "/home/me/models/mine")
    topics = ["data", "spacing", "start", "device", "memory", "precision", "test part"]
    assert [line[:13].rstrip() for line in told] == topics and "/home" not in "".join(told)


def test_a_work_folder_is_of_one_comparison(tmp_path: Path) -> None:
    options = tiny_options(tmp_path, tmp_path)
    small_set.note(options, {"discs": "1"})
    small_set.note(options, {"discs": "1"})
    small_set.note(replace(options, data=tmp_path / "moved"), {"discs": "1"})
    with pytest.raises(InputError, match=r"other settings \(data, images\)"):
        small_set.note(replace(options, images=9), {"discs": "2"})


def tiny_options(data: Path, work: Path) -> Any:
    small = ("run.steps=2", "sampling.high.medium.side=64", "sampling.high.fine.side=64",
             "sampling.high.medium.images=2", "sampling.high.fine.images=2")  # fmt: skip
    return small_set.Options(
        data=data, images=6, test=2, minutes=0.5, tune_minutes=0.001, start="imagenet", work=work, threads=1, seed=0,
        same_parts=False, settings=small, candidates=(("BasicUNet", 1e-3),),
    )  # fmt: skip


@pytest.mark.slow
def test_from_start_to_end_and_again_without_training(annotated: Path, tmp_path: Path) -> None:
    options = tiny_options(annotated / NUCLEI, tmp_path / "work")
    result = small_set.measure(options)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {(e["who"], e["protocol"]) for e in result["dice"]} == {
        ("adapted", "text"), ("adapted", "oracle-jittered-box"), ("unet", "text")}  # fmt: skip
    assert result["failed"] == {"adapted": 0, "unet": 0} and len(result["differences"]) == 2
    ours, unet = result["lexitome"], result["unet"]
    assert {"data", "device", "memory", "precision"} <= {line.split()[0] for line in ours["said"]}
    assert ours["steps"] == 2 and str(tmp_path) not in json.dumps(result)
    assert unet["train_images"] + unet["validation_images"] == 6 and unet["choice"][0]["network"] == "BasicUNet"
    assert unet["seconds"] >= 0.9 * ours["seconds"] > 0 and unet["steps"] > 1
    written = {path: path.stat().st_mtime_ns for path in options.work.rglob("*.safetensors")}
    again = small_set.measure(options)
    assert {path: path.stat().st_mtime_ns for path in options.work.rglob("*.safetensors")} == written
    assert again | {"created": ""} == result | {"created": ""}
