"""One test case: every question of every protocol asked, every answer measured. One row each, whatever happens."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lexitome.data.dataset import Case, Dataset
from lexitome.errors import InputError
from lexitome.evaluation.answering import About, Answer, Answerer, Session, is_told_names
from lexitome.evaluation.metrics import measure_calibration, measure_mask, measure_objects
from lexitome.evaluation.metrics.calibration import to_text
from lexitome.evaluation.protocols import ProtocolSpec, Wanted, draw, next_click, seeded
from lexitome.evaluation.reference import absent_concepts, is_tubular, read_reference
from lexitome.evaluation.rows import ResultRow
from lexitome.io.write import write
from lexitome.prompts import Query, Spatial
from lexitome.segmentation import Finding, Segmentation
from lexitome.volume import Volume


@dataclass(frozen=True)
class Tolerances:
    """Of normalised surface Dice and boundary IoU: in mm, and in pixels for images without spacing."""

    mm: float = 2.0
    px: float = 2.0


@dataclass(frozen=True, eq=False)
class Asked:
    """A concept that is asked about an image, and its reference: (Z, Y, X) mask and ids of objects, None where they
    are not told apart."""

    concept: str
    derived: bool
    mask: NDArray[np.bool_]
    ids: NDArray[np.uint16] | None = None

    @cached_property
    def present(self) -> bool:
        return bool(self.mask.any())


@dataclass(frozen=True, eq=False)
class Exam:
    """A case with its questions.

    Args:
        volume: the image.
        judged: (Z, Y, X) where somebody looked, None for everywhere.
        asked: the case's own targets, then concepts that it surely lacks.
    """

    dataset: Dataset
    case: Case
    volume: Volume
    judged: NDArray[np.bool_] | None
    asked: tuple[Asked, ...]
    seed: int

    @property
    def about(self) -> About:
        labels = {target.name: target.labels for target in self.dataset.targets}
        concepts = tuple(question.concept for question in self.asked)
        return About(self.dataset.name, self.case.stem, self.dataset.family, concepts, labels)

    def of(self, spec: ProtocolSpec) -> list[Asked]:
        """What the protocol asks: a place can be drawn only of what is there."""
        return [question for question in self.asked if question.present or not spec.oracle]

    def wanted(self, question: Asked) -> Wanted:
        x, y, z = self.volume.spacing
        return Wanted(question.mask, question.ids, (z, y, x))

    def places(self, spec: ProtocolSpec, question: Asked) -> tuple[Spatial, ...]:
        rng = seeded(self.seed, self.dataset.name, self.case.stem, question.concept, spec.name)
        return draw(spec, self.wanted(question), rng) if spec.oracle else ()


Keep = Callable[[Exam, ProtocolSpec, Sequence[Asked], Sequence[Answer]], None]
"""Told what was answered, e.g. to save the masks."""


def read_exam(dataset: Dataset, case: Case, *, absent: bool, seed: int) -> Exam:
    """
    Args:
        absent: also ask for as many surely absent concepts of the same modality as there are present ones, at least
            one.

    Raises:
        InputError: image or annotation cannot be read.
    """
    reference = read_reference(case, dataset.targets)
    asked = [
        Asked(target.name, target.derived, mask, ids)
        for target, mask, ids in zip(reference.targets, reference.masks, reference.objects, strict=True)
    ]
    if absent:
        count = max(1, sum(question.present for question in asked if not question.derived))
        empty = np.zeros(reference.volume.grid, dtype=bool)
        asked += [Asked(name, False, empty) for name in absent_concepts(dataset, case, count, seed)]
    return Exam(dataset, case, reference.volume, reference.judged, tuple(asked), seed)


def evaluate_case(
    answerer: Answerer, exam: Exam, protocols: Sequence[ProtocolSpec], tolerances: Tolerances, keep: Keep | None = None
) -> list[ResultRow]:
    """Rows of every question, in the order of protocols, then concepts. What the answerer raises becomes a failed row.

    `seconds` of a row are its share of its protocol's answers, and of making the image ready for all protocols.
    """
    total = sum(len(exam.of(spec)) for spec in protocols)
    if not total:
        return []
    began = time.perf_counter()
    try:
        session: Session | str = answerer.begin(exam.volume, exam.about)
    except Exception as error:
        session = explained(error)
    ready = (time.perf_counter() - began) / total
    tell_name = is_told_names(answerer)
    taught: dict[str, bool | None] = {}
    rows = []
    for spec in sorted(protocols, key=lambda spec: not spec.words):  # words say what was taught
        asked = exam.of(spec)
        if not asked:
            continue
        began = time.perf_counter()
        answers = answers_of(session, exam, spec, asked, tell_name=tell_name)
        seconds = ready + (time.perf_counter() - began) / len(asked)
        if keep is not None:
            keep(exam, spec, asked, answers)
        for question, answer in zip(asked, answers, strict=True):
            known = answer.taught if answer.taught is not None else taught.get(question.concept)
            taught[question.concept] = known
            row = measured(exam, question, replace(answer, taught=known), tolerances)
            rows.append(replace(row, model=answerer.name, protocol=spec.name, seconds=seconds))
    order = {spec.name: number for number, spec in enumerate(protocols)}
    return sorted(rows, key=lambda row: order[row.protocol])


def answers_of(
    session: Session | str, exam: Exam, spec: ProtocolSpec, asked: Sequence[Asked], *, tell_name: bool
) -> list[Answer]:
    """One usable answer for each question; a session that could not begin is the reason why."""
    if isinstance(session, str):
        return [_failed(exam, session) for _ in asked]
    told = replace(spec, words=spec.words or tell_name)
    places = [exam.places(spec, question) for question in asked]
    answers = _ask(session, exam, [told.query(q.concept, p) for q, p in zip(asked, places, strict=True)])
    for _ in range(spec.count - 1 if spec.place == "clicks" else 0):
        wrong: dict[int, Query] = {}
        for i, (question, answer) in enumerate(zip(asked, answers, strict=True)):
            spacing = exam.wanted(question).spacing
            click = next_click(answer.mask, question.mask, exam.judged, spacing) if answer.status == "ok" else None
            if click is not None:
                places[i] = (*places[i], click)
                wrong[i] = told.query(question.concept, places[i])
        if not wrong:
            break
        for i, answer in zip(wrong, _ask(session, exam, list(wrong.values())), strict=True):
            answers[i] = answer
    return answers


def _ask(session: Session, exam: Exam, queries: list[Query]) -> list[Answer]:
    """All at once; where that fails, one by one, so that one query does not spoil the others."""
    try:
        answers = session.answer(queries)
        if len(answers) != len(queries):
            raise ValueError(f"{len(answers)} answers to {len(queries)} queries")
    except Exception as error:
        if len(queries) == 1:
            return [_failed(exam, explained(error))]
        return [answer for query in queries for answer in _ask(session, exam, [query])]
    return [_checked(exam, answer) for answer in answers]


def _checked(exam: Exam, answer: Answer) -> Answer:
    """The answer with an empty mask where it is none; a failed one where it is not on the grid."""
    grid = exam.volume.grid
    if answer.status != "ok":
        return replace(_failed(exam, ""), status=answer.status, notes=answer.notes, taught=answer.taught)
    maps = {"mask": answer.mask, "probability": answer.probability, "instances": answer.instances}
    for name, values in maps.items():
        if values is not None and values.shape != grid:
            return _failed(exam, f"its {name} has the shape {values.shape}, the image {grid}")
    if answer.probability is not None and not np.isfinite(answer.probability).all():
        return _failed(exam, "its probability is not finite everywhere")
    if answer.probability is not None and not (answer.probability.min() >= 0 and answer.probability.max() <= 1):
        return _failed(exam, "its probability does not lie between 0 and 1")
    return answer if answer.mask.dtype == np.bool_ else replace(answer, mask=answer.mask != 0)


def _failed(exam: Exam, reason: str) -> Answer:
    return Answer(np.zeros(exam.volume.grid, dtype=bool), notes=(reason,), status="failed")


def explained(error: Exception) -> str:
    """In one line, without paths."""
    if isinstance(error, InputError):
        return error.cause
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def measured(exam: Exam, question: Asked, answer: Answer, tolerances: Tolerances) -> ResultRow:
    """The row of an answer; model, protocol and seconds are left open."""
    volume, judged = exam.volume, exam.judged
    mm = volume.spacing_known
    metrics = measure_mask(
        answer.mask, question.mask, volume.affine if mm else None, judged,
        tolerance=tolerances.mm if mm else tolerances.px,
        tubular=is_tubular(question.concept, exam.dataset) and measures_centre_lines(),
    )  # fmt: skip
    bins = None
    if answer.probability is not None:
        calibrated, bins = measure_calibration(answer.probability, question.mask, judged)
        metrics |= calibrated
    if question.ids is not None and question.present:
        metrics |= measure_objects(_objects(answer, judged), _judged(question.ids, judged))
    seen = answer.mask if judged is None else answer.mask & judged
    return ResultRow(
        dataset=exam.dataset.name, split=exam.case.split, case=exam.case.stem, unit=exam.case.unit,
        modality=exam.dataset.family, dims=2 if volume.is_2d else 3, concept=question.concept,
        derived=question.derived, model="", protocol="", present=question.present, status=answer.status,
        note="; ".join(answer.notes), presence=None if answer.presence is None else float(answer.presence),
        found=bool(seen.any()), taught=answer.taught, length="mm" if mm else "px", metrics=metrics,
        bins="" if bins is None else to_text(bins),
    )  # fmt: skip


@lru_cache(maxsize=1)
def measures_centre_lines() -> bool:
    """clDice needs scikit-image, which the base install has not."""
    return importlib.util.find_spec("skimage") is not None


def _objects(answer: Answer, judged: NDArray[np.bool_] | None) -> NDArray[np.integer]:
    """Ids as answered; of a model that does not tell objects apart, connected parts (26 neighbours)."""
    ids = answer.instances
    if ids is None:
        ids = np.asarray(ndimage.label(answer.mask, structure=np.ones((3, 3, 3)))[0])
    return _judged(ids, judged)


def _judged(ids: NDArray[np.integer], judged: NDArray[np.bool_] | None) -> NDArray[np.integer]:
    return ids if judged is None else np.where(judged, ids, 0)


def save_masks(folder: Path, exam: Exam, asked: Sequence[Asked], answers: Sequence[Answer]) -> None:
    """FOLDER/DATASET/CASE/CONCEPT.png or .nii.gz, as `predictions` reads them; of what was answered only.

    Raises:
        InputError: the disk refuses.
    """
    findings = tuple(
        Finding(question.concept, answer.mask, 1.0, 1.0, instances=_as_ids(answer))
        for question, answer in zip(asked, answers, strict=True)
        if answer.status == "ok"
    )
    if findings:
        place = folder / exam.dataset.name / case_folder(exam.case.stem)
        flat = exam.volume.is_2d and not exam.volume.spacing_known
        told_apart = any(finding.instances is not None for finding in findings)
        write(Segmentation(exam.volume, findings), place, format="png" if flat else "nifti", instances=told_apart)


def _as_ids(answer: Answer) -> NDArray[np.uint16] | None:
    return None if answer.instances is None else answer.instances.astype(np.uint16)


def case_folder(stem: str) -> Path:
    """COCO's names of images may hold folders; none may lead outside."""
    return Path(*(part for part in Path(stem).parts if part not in ("..", "/"))) if stem else Path("case")
