"""What a run of `lexitome probe` does, and that it can be stopped: frozen features of several encoders at several
sizes, and what simple probes find in them.

Features lie in the cache, whoever computed them; every finished probe of a run is a file in `parts/`, named by all it
depends on. The same command therefore continues what was stopped, and does again what has changed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.cases import read_case
from lexitome.data.dataset import Case, Dataset
from lexitome.data.encoder_input import cached_square, check_intensity, said, squares
from lexitome.data.features import Encoded, FeatureKey, Features, Item, extract
from lexitome.data.hashing import stamp
from lexitome.data.sources.classes import ClassifiedSet, is_classified, load_classified
from lexitome.data.sources.find import find_sets
from lexitome.data.splits import read_splits, resume_splits, write_splits
from lexitome.errors import InputError
from lexitome.evaluation.probing import dense, registration
from lexitome.evaluation.probing.dense import DenseConfig
from lexitome.evaluation.probing.linear import CS, check_sklearn
from lexitome.evaluation.probing.neighbours import KS, TEMPERATURE
from lexitome.evaluation.probing.registration import RegistrationConfig, check_skimage
from lexitome.evaluation.probing.tables import OUTLINES, percent, write_report
from lexitome.evaluation.probing.volumes import AttentionConfig, Pooling
from lexitome.evaluation.runner import progress
from lexitome.evaluation.statistics import DRAWS
from lexitome.io.atomic import replacing
from lexitome.io.locks import Held, holding
from lexitome.models.encoders import Encoder, load_encoder

Task = Literal["knn", "linear", "sgd", "abmil", "segment", "register", "explore"]
TASKS: tuple[Task, ...] = get_args(Task)
PARTS, SPLITS, RESULTS = "parts", "splits", "probe.json"
AUTO = "auto"

Entry = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class ProbeRecipe:
    """Everything that decides a run but where its files lie.

    Args:
        encoders: names, see `models.encoders`.
        sides: of the square pictures, in pixels.
        tasks: none for what the data permit: knn and linear for images with classes, abmil too where they are volumes,
            segment for annotated sets, and explore. sgd and register have to be asked for.
        intensity: a policy of `data.encoder_input`; "auto" takes the one each encoder was trained with.
        precision: of the encoder; "auto" is bfloat16 where the processor has instructions for it.
        ks, temperature: of k-NN.
        cs: of the logistic regression.
        pooling: of the slices of a volume, each on its own; abmil learns one.
        batch: pictures that the encoder sees at once.
        draws: of the bootstrap.
        seed: of splits, of random weights, of heads.
    """

    encoders: tuple[str, ...]
    sides: tuple[int, ...] = (224,)
    tasks: tuple[Task, ...] = ()
    intensity: str = AUTO
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    ks: tuple[int, ...] = KS
    temperature: float = TEMPERATURE
    cs: tuple[float, ...] = CS
    pooling: tuple[Pooling, ...] = ("mean", "max")
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    batch: int = 16
    draws: int = DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.encoders or not self.sides:
            raise InputError("lexitome probe", "names no encoder or no size", "Type --encoder NAME and --side PIXELS.")
        if wrong := next((task for task in self.tasks if task not in TASKS), None):
            raise InputError("--task", f"there is no {wrong!r}", f"Choose from {', '.join(TASKS)}.")
        if self.intensity != AUTO:
            check_intensity(self.intensity)
        for name in ("ks", "cs", "sides"):
            if any(value <= 0 for value in getattr(self, name)) or not getattr(self, name):
                raise InputError(name, "holds no number, or one that is not above 0", "Correct it.")

    @property
    def dtype(self) -> torch.dtype:
        from lexitome.inference.sam3_loading import chosen_dtype

        return torch.float32 if self.precision == "fp32" else chosen_dtype(
            "auto" if self.precision == AUTO else "bfloat16"
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Material:
    """The sets of a run, with the hash of who is in which part."""

    classified: tuple[ClassifiedSet, ...]
    annotated: tuple[Dataset, ...]
    splits: dict[str, str]


@dataclass(frozen=True, eq=False)
class Setting:
    """What a part of a run is about: an encoder that is ready for pictures of one side."""

    recipe: ProbeRecipe
    encoder: Encoder
    side: int
    grid: tuple[int, int]
    cache: Path
    out: Path

    @property
    def intensity(self) -> str:
        return self.encoder.intensity if self.recipe.intensity == AUTO else self.recipe.intensity

    def key(self, dataset: str, *, dense: bool) -> FeatureKey:
        encoder = self.encoder
        return FeatureKey(
            dataset, encoder.name, encoder.sha256, said(self.intensity), encoder.precision, self.side, encoder.kinds,
            encoder.dim, self.grid, dense,
        )  # fmt: skip

    def encode(self, pictures: Any) -> Encoded:
        vectors, patches = self.encoder.encode(torch.from_numpy(pictures))
        return Encoded(vectors.numpy(), patches.numpy())

    def features(self, items: Sequence[Item], dataset: str, *, dense: bool) -> Features:
        """Opened or computed, with a bar."""
        what = f"{self.encoder.name} {self.side}"
        with progress(what, len(items), 0, shown=True) as advance:
            return extract(
                items, self.encode, self.key(dataset, dense=dense), self.cache / "features", batch=self.recipe.batch,
                advance=lambda stem: advance(dataset),
            )  # fmt: skip


def open_data(paths: Sequence[Path], out: Path, *, concept: str = "", unit_pattern: str | None = None) -> Material:
    """The sets that folders are or hold; who is in which part is stored in `out`, or as it was stored there.

    Raises:
        InputError: a folder holds none, two have one name, or files have changed since the run began.
    """
    classified, annotated = [], []
    for path in paths:
        inside = sorted(each for each in path.iterdir() if each.is_dir()) if path.is_dir() else []
        places = [path] if is_classified(path) else [each for each in inside if is_classified(each)]
        classified += [load_classified(place, unit_pattern=unit_pattern) for place in places]
        if not places:
            annotated += find_sets([path], concept=concept, unit_pattern=unit_pattern)
    names = [dataset.name for dataset in (*(each.dataset for each in classified), *annotated)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError("--data", f"two sets are called {twice!r}", "Rename one of the folders.")
    splits = {}
    for dataset in (*(each.dataset for each in classified), *annotated):
        place = out / SPLITS / f"{dataset.name}.json"
        if place.is_file():
            resume_splits(dataset, place)
            splits[dataset.name] = read_splits(place).sha256
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            splits[dataset.name] = write_splits(dataset, place).sha256
    return Material(tuple(classified), tuple(annotated), splits)


def run(recipe: ProbeRecipe, material: Material, out: Path, cache: Path, say: Say) -> list[Entry]:
    """All probes of all encoders at all sides; writes `probe.json`, the tables, the plots and the pictures.

    Raises:
        InputError: an encoder or a package is missing, an encoder does not take a side, a task does not fit the data,
            or another process works in `out`.
    """
    _check_tasks(recipe, material)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with holding(out / ".lock"):
            entries: list[Entry] = []
            for name in recipe.encoders:
                encoder = load_encoder(name, dtype=recipe.dtype, seed=recipe.seed)
                say(f"encoder      {name}: {encoder.parameters:.1f} million weights, {encoder.dim} channels, "
                    f"licence: {encoder.licence}")  # fmt: skip
                for side in recipe.sides:
                    setting = Setting(recipe, encoder, side, encoder.at(side), cache, out)
                    check_intensity(setting.intensity)
                    entries += _probe(setting, material, say)
            with replacing(out / RESULTS) as temporary:
                about = {"recipe": asdict(recipe), "splits": material.splits, "results": entries}
                temporary.write_text(json.dumps(about, indent=1), encoding="utf-8")
            write_report(entries, out)
    except Held as error:
        remedy = "Wait for it or stop it, or choose another folder with -o."
        raise InputError(out, f"is being worked in by {error.holder}", remedy) from error
    return entries


def _check_tasks(recipe: ProbeRecipe, material: Material) -> None:
    if not recipe.tasks or {"linear", "explore"} & set(recipe.tasks):
        check_sklearn()
    if "register" in recipe.tasks:
        check_skimage()
    if (outlines := sorted(set(OUTLINES) & set(recipe.tasks))) and not material.annotated:
        raise InputError("--task", f"{outlines[0]} needs images with masks", "Name a folder of them with --data.")
    if {"knn", "linear", "sgd", "abmil"} & set(recipe.tasks) and not material.classified:
        raise InputError("--task", "needs images with classes", "Name a folder with one folder for each class.")
    if "abmil" in recipe.tasks and all(each.dataset.dims == 2 for each in material.classified):
        raise InputError("--task", "abmil needs volumes, and all images are flat", "Take knn or linear.")


def _probe(setting: Setting, material: Material, say: Say) -> list[Entry]:
    """What one encoder at one side is worth on every set."""
    from lexitome.recipes.probe_classes import classify
    from lexitome.recipes.probe_explore import explore_annotated, explore_classes

    entries: list[Entry] = []
    tasks = setting.recipe.tasks
    for data in material.classified:
        items = [_item(case, setting) for case in data.dataset.cases]
        found = setting.features(items, data.dataset.name, dense=False)
        volumes = len(found.stems) > len(items)
        usual: tuple[Task, ...] = ("knn", "linear", "abmil") if volumes else ("knn", "linear")
        for task in ("knn", "linear", "sgd", "abmil"):
            if task in (tasks or usual) and (task != "abmil" or volumes):
                begin = partial(classify, found, data, task, setting.recipe)
                entries += _kept(setting, material, data.dataset, task, begin, say)
        if "explore" in (tasks or TASKS):
            explore_classes(found, data, items, setting)
    for dataset in material.annotated:
        cached = open_cache(dataset, setting.cache / "decoded")
        for task, probe in (("segment", _segment), ("register", _register)):
            if task in (tasks or ("segment",)):
                begin = partial(probe, cached, setting)
                entries += _kept(setting, material, dataset, task, begin, say)
        if "explore" in (tasks or TASKS):
            explore_annotated(cached, setting)
    return entries


def _kept(
    setting: Setting, material: Material, dataset: Dataset, task: str, begin: Callable[[], list[Entry]], say: Say
) -> list[Entry]:
    """The results of a part: of an earlier run if nothing that they depend on has changed."""
    recipe = {name: value for name, value in asdict(setting.recipe).items() if name in _MATTERS[task]}
    depends = [setting.key(dataset.name, dense=task in OUTLINES).folder, task, recipe, material.splits[dataset.name]]
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    place = setting.out / PARTS / f"{digest}.json"
    if place.is_file():
        kept: list[Entry] = json.loads(place.read_text(encoding="utf-8"))
    else:
        began = time.perf_counter()
        encoder = setting.encoder
        about = {
            "dataset": dataset.name, "encoder": encoder.name, "side": setting.side, "task": task,
            "sha256": encoder.sha256, "intensity": said(setting.intensity), "parameters_millions": encoder.parameters,
            "split_sha256": material.splits[dataset.name],
        }  # fmt: skip
        kept = [{**about, **entry} for entry in begin()]
        kept = [{**entry, "seconds": round(time.perf_counter() - began, 1)} for entry in kept]
        with replacing(place) as temporary:
            temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    for entry in kept:
        say(_line(entry))
    return kept


_MATTERS = {
    "knn": ("ks", "temperature", "pooling", "draws", "seed"), "linear": ("cs", "pooling", "draws", "seed"),
    "sgd": ("pooling", "draws", "seed"), "abmil": ("attention", "draws", "seed"), "segment": ("dense", "draws", "seed"),
    "register": ("registration", "draws", "seed"),
}  # fmt: skip
"""Fields of the recipe that a task depends on."""


def _line(entry: Entry) -> str:
    """A result for the screen."""
    where = f"{entry['dataset']}, {entry['encoder']} at {entry['side']}"
    if entry["task"] in OUTLINES:
        before = f", {percent(entry['before'])} as they lie" if "before" in entry else ""
        return f"{entry['task']:<12} {where}: Dice {percent(entry['dice'])} of {entry['cases']} test cases{before}"
    scores = entry["scores"]
    how = entry["features"] + (f", {entry['pooling']} over slices" if entry["pooling"] else "")
    said_ = ", ".join(f"{name.replace('_', ' ')} {percent(value)}" for name, value in scores.items() if value)
    return f"{entry['task']:<12} {where} ({how}): {said_}"


def _item(case: Case, setting: Setting) -> Item:
    return Item(
        case.stem, _state(case), lambda: squares(read_case(case)[0], setting.intensity, setting.side)
    )  # fmt: skip


def cached_items(cached: CachedDataset, setting: Setting) -> list[Item]:
    """One for each row, so that rows of features are rows of the cache."""
    case_of = {case.stem: _state(case) for case in cached.dataset.cases}

    def item(row: int) -> Item:
        identity = cached.rows[row]
        return Item(
            f"{identity.stem}#{identity.axis}.{identity.slice}", case_of[identity.stem],
            lambda: iter([cached_square(cached, row, setting.intensity, setting.side)]),
        )  # fmt: skip

    return [item(row) for row in range(len(cached.rows))]


def _state(case: Case) -> str:
    """Changes when a file of the case does."""
    told = [found for path in case.files if (found := stamp(path)) is not None]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _maps(cached: CachedDataset, setting: Setting) -> Features:
    if not any(row.split == "test" for row in cached.rows):
        raise InputError(cached.dataset.root, "has no test part: there are fewer than three subjects", "Add subjects.")
    return setting.features(cached_items(cached, setting), cached.dataset.name, dense=True)


def _segment(cached: CachedDataset, setting: Setting) -> list[Entry]:
    recipe = setting.recipe
    found = _maps(cached, setting)
    with progress("segment", recipe.dense.steps, 0, shown=True) as advance:
        result = dense.probe(
            found, cached, recipe.dense, seed=recipe.seed, draws=recipe.draws,
            advance=lambda: advance(f"{setting.encoder.name} {setting.side} {cached.dataset.name}"),
        )  # fmt: skip
    return [{"decoder": recipe.dense.decoder, **result}]


def _register(cached: CachedDataset, setting: Setting) -> list[Entry]:
    recipe = setting.recipe
    found = _maps(cached, setting)
    pairs = registration.drawn_pairs(cached, recipe.registration, recipe.seed)
    with progress("register", len(pairs), 0, shown=True) as advance:
        result = registration.probe(
            found, cached, pairs, recipe.registration, seed=recipe.seed, draws=recipe.draws,
            advance=lambda: advance(f"{setting.encoder.name} {setting.side} {cached.dataset.name}"),
        )  # fmt: skip
    return [result]
