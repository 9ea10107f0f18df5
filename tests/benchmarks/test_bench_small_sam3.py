"""A small SAM3 before and after its training: one tiny run through the whole script, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
small_sam3 = pytest.importorskip("small_sam3")

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "data"))
from small_sam3_text import AFTER, BEFORE, EXTERNAL, GOAL, OWN, SHOWN, VOLUMES, findings  # noqa: E402
from tiny_sets import disc, painted, save_set  # noqa: E402

from lexitome.cli import main  # noqa: E402
from lexitome.errors import InputError  # noqa: E402
from lexitome.evaluation.rows import ResultRow  # noqa: E402
from lexitome.models.sam3.settings import POLICIES  # noqa: E402

NUCLEI, BRAIN, OTHER_NUCLEI, POLYPS = (
    "dsb2018_fluorescence_nuclei", "hippocampus_msd_mr3d", "monuseg_test_nuclei", "cvc_clinicdb",
)  # fmt: skip
TINY = (
    "vocabulary=700", "sampling.side=64", "sampling.images=2", "queries=2", "validated=1", "run.precision=fp32",
    "run.threads=1", "run.steps=2", "run.log_every=1",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sam3") / "run"
    settings = [word for setting in TINY for word in ("--set", setting)]
    typed = ["train", "small-sam3", "--start", "random:tiny", "--data", str(annotated), "-o", str(out), *settings]
    assert main(typed) == 0
    return out


@pytest.fixture(scope="module")
def external(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets that were not trained on, of a concept that was taught and of one that was not."""
    root = tmp_path_factory.mktemp("data") / "external"
    rng = np.random.default_rng(1)
    for name, concept in ((OTHER_NUCLEI, "nuclei"), (POLYPS, "polyp")):
        masks = [disc(64, y, x, 9).astype(np.uint8) for y, x in rng.integers(14, 50, (4, 2))]
        save_set(root / name, {f"case{i}": (painted(mask, i), mask) for i, mask in enumerate(masks)}, {1: concept})
    return root


def options(run: Path, external: Path, work: Path, **changes: object) -> small_sam3.Options:
    asked = small_sam3.Options(
        run, data=(), external=(external,), work=work, pictures=2, limit=2, volumes=False, jobs=1, seed=0
    )
    return replace(asked, **changes)


def stamps(work: Path) -> dict[str, int]:
    """When each ledger of answers was last written."""
    return {str(path.relative_to(work)): path.stat().st_mtime_ns for path in work.rglob("*.jsonl")}


def test_from_start_to_end_and_again_without_asking(run: Path, external: Path, tmp_path: Path) -> None:
    asked = options(run, external, tmp_path / "work")
    out, document = tmp_path / "result.json", tmp_path / "docs" / "small-sam3.md"
    result = small_sam3.measure(asked, out, document)
    assert result == json.loads(out.read_text()) and str(tmp_path) not in out.read_text()
    about = result["trained"]
    assert (about["side"], about["steps"], about["pictures"], about["prompts"]) == (64, 2, 4, "mixed")
    assert about["minutes"] > 0 and set(about["sets"]) == {NUCLEI, BRAIN} and about["parameters"] > 10_000
    tried = {entry["policy"]: entry for entry in result["policies"]["tried"]}
    assert tuple(tried) == POLICIES and result["policies"]["cases"] == 2
    assert tried[result["policies"]["chosen"]]["mean"] == max(entry["mean"] for entry in tried.values())
    rows = {row["name"] or (row["kind"], row["subset"]): row for row in result["rows"]}
    parts = {(OWN, "all"), (EXTERNAL, "all"), (EXTERNAL, "taught"), (EXTERNAL, "untaught")}
    assert set(rows) == {NUCLEI, OTHER_NUCLEI, POLYPS, *parts}
    text = document.read_text()
    for row in rows.values():
        assert set(row["protocols"]) == set(SHOWN)
        for entry in row["protocols"].values():
            assert 0 <= entry[BEFORE] <= 100 and 0 <= entry[AFTER] <= 100 and entry["subjects"] == 2 * row["sets"]
            assert entry["difference"] == pytest.approx(entry[AFTER] - entry[BEFORE], abs=2e-4)
            assert entry["low"] <= entry["difference"] <= entry["high"]
            assert f"| {entry[BEFORE]:.1f} → {entry[AFTER]:.1f} | {entry['difference']:+.1f} [" in text
    assert [rows[name]["taught"] for name in (NUCLEI, OTHER_NUCLEI, POLYPS)] == [1, 1, 0]
    for protocol in SHOWN:
        both = [rows[name]["protocols"][protocol][AFTER] for name in (OTHER_NUCLEI, POLYPS)]
        assert rows[EXTERNAL, "all"]["protocols"][protocol][AFTER] == pytest.approx(np.mean(both), abs=1e-3)
        assert rows[EXTERNAL, "untaught"]["protocols"][protocol] == rows[POLYPS]["protocols"][protocol]
    assert "words 0.0 → 87.9, box 93.6 → 91.5" in text and "54.0 → 77.0" in text and "11.9 → 73.9" in text
    assert "random weights" in text and "At most 2 test pictures" in text and "so far" not in text
    assert "Sets of volumes among these: 1, not asked here" in text and "missed by" in text
    answered = stamps(asked.work)
    again = small_sam3.measure(asked, out, document)
    assert stamps(asked.work) == answered and len(answered) == len(POLICIES) + 2 * 3
    assert {**again, "created": ""} == {**result, "created": ""}
    small_sam3.measure(replace(asked, volumes=True, external=()), out, document)
    rows = {row["name"] or row["kind"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {NUCLEI, BRAIN, OWN, VOLUMES} and set(rows[VOLUMES]["protocols"]) == set(SHOWN)
    assert all(0 <= value <= 100 for value in rows[BRAIN]["presence"].values())
    assert rows[NUCLEI]["presence"] == {BEFORE: None, AFTER: None}, "nothing is surely absent there"
    assert {key: value for key, value in stamps(asked.work).items() if key in answered} == answered
    with pytest.raises(InputError, match=r"other settings \(limit, validation pictures\)"):
        small_sam3.measure(replace(asked, limit=3, pictures=1), out, document)


def unfinished(run: Path, copy: Path) -> None:
    (copy / "start").mkdir(parents=True)
    (copy / "start" / "lexitome.json").write_text("{}")
    (copy / "recipe.json").write_bytes((run / "recipe.json").read_bytes())


def fine_tuned(run: Path, copy: Path) -> None:
    unfinished(run, copy)
    entry = json.loads((run / "recipe.json").read_text())
    entry["recipe"]["start"] = "sam3"
    (copy / "recipe.json").write_text(json.dumps(entry))


def of_another_kind(run: Path, copy: Path) -> None:
    copy.mkdir()
    (copy / "recipe.json").write_text('{"recipe": {}}')


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unfinished, "is not finished: it holds no model; Type: lexitome train --resume"),
        (fine_tuned, "began with weights of sam3"),
        (of_another_kind, "holds no run of SAM3; Make one: lexitome train small-sam3"),
        (lambda run, copy: None, "holds no run of SAM3"),
    ],
)
def test_other_folders_are_refused_in_one_line(
    make: Callable[[Path, Path], None], message: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(run, tmp_path / "copy")
    monkeypatch.setattr(sys, "argv", ["small_sam3.py", str(tmp_path / "copy"), "--work", str(tmp_path / "work")])
    with pytest.raises(SystemExit) as stopped:
        small_sam3.main()
    said = str(stopped.value)
    assert message.split(";")[0] in said and message.split("; ")[-1] in said and len(said.splitlines()) == 1


def test_sets_that_do_not_fit_are_refused(run: Path, external: Path, annotated: Path, tmp_path: Path) -> None:
    asked, places = options(run, external, tmp_path / "work"), (tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match=f"does not hold {BRAIN}, which the run was trained on"):
        small_sam3.measure(replace(asked, data=(annotated / NUCLEI,)), *places)
    with pytest.raises(InputError, match=f"the run was trained on {NUCLEI}"):
        small_sam3.measure(replace(asked, external=(annotated / NUCLEI,)), *places)
    assert not (tmp_path / "work").exists()


def row(case: int, concept: str, dice: float | None, **other: object) -> ResultRow:
    entry = ResultRow(
        dataset="set", split="test", case=f"c{case}", unit=f"s{case}", modality="", dims=2, concept=concept,
        derived=False, model="m", protocol="text", present=dice is not None, found=bool(dice), metrics={"dice": dice},
    )  # fmt: skip
    return replace(entry, **other)  # type: ignore[arg-type]


def test_subsets_follow_what_the_trained_one_was_taught() -> None:
    def answers(known: dict[str, bool], nuclei: float, polyp: float) -> small_sam3.Run:
        rows = [row(i, name, dice, taught=known.get(name)) for i in range(4)
                for name, dice in (("nuclei", nuclei), ("polyp", polyp), ("liver", None))]  # fmt: skip
        return small_sam3.Run(Path("answers"), {}, rows)

    taught = {"nuclei": True, "polyp": False, "liver": True}
    sides = {BEFORE: answers({}, 0.1, 0.2), AFTER: answers(taught, 0.6, 0.3)}
    found = {
        subset: small_sam3.compared(small_sam3.gathered([sides], subset), 0) for subset in ("all", "taught", "untaught")
    }
    numbers = {subset: entry["protocols"]["text"] for subset, entry in found.items()}
    assert numbers["taught"][BEFORE] == pytest.approx(10) and numbers["taught"]["difference"] == pytest.approx(50)
    assert numbers["untaught"][AFTER] == pytest.approx(30) and numbers["all"]["difference"] == pytest.approx(30)
    assert [found[subset]["taught"] for subset in numbers] == [1, 1, 0] and found["all"]["concepts"] == 2
    assert found["taught"]["presence"] == {BEFORE: 100.0, AFTER: 100.0}
    assert found["untaught"]["presence"] == {BEFORE: None, AFTER: None}, "nothing absent was asked"


@pytest.mark.parametrize(("gain", "said"), [(GOAL + 1.5, "is reached"), (GOAL - 2.5, "missed by 2.5")])
def test_the_goal_is_judged_by_words_alone(gain: float, said: str) -> None:
    words = {BEFORE: 1.0, AFTER: 1.0 + gain, "difference": gain, "low": gain - 1, "high": gain + 1}
    box = {BEFORE: 30.0, AFTER: 55.0, "difference": 25.0, "low": None, "high": None}
    own = {"name": None, "kind": OWN, "subset": "all", "sets": 3, "protocols": {"text": words, "oracle-box": box}}
    first, boxed, _ = findings({"rows": [own], "trained": {"prompts": "text"}})
    assert said in first and f"{gain:+.1f} [{gain - 1:+.1f}, {gain + 1:+.1f}]" in first
    assert f"30.0 → 55.0, +25.0; against words: before +29.0, after {54 - gain:+.1f}." in boxed
