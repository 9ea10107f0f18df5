"""Which encoder the compact model should look through: ImageNet's, or one that `lexitome pretrain` made. Equal time.

    python benchmarks/backbone.py RUN [--minutes 10] [--only ROW ...]

RUN is the folder of a finished run of `lexitome pretrain`. Each row is the compact model trained on the same sets for
the same minutes of training steps, and differs in what its encoder begins with:

    imagenet     EfficientNet-Lite0 with its ImageNet weights, the first blocks frozen, as `compact-open` is made
    pretrained   the vision transformer RUN/model. Its maps behind the four quarters of its blocks become the strides 4
                 to 32 by transposed convolution and pooling (as UNETR does, Hatamizadeh et al. 2022); a convolution of
                 the picture itself serves stride 2
    random       the same transformer before pretraining

All are asked about the same validation pictures (`ablation_measures`); differences are paired by picture, means over
concepts, intervals resample pictures within a concept. No test picture is looked at. The time of pretraining is not in
the minutes, neither ImageNet's nor ours. How many steps fit is measured before each row: nothing may run beside it.

Rows are kept in benchmarks/results/backbone.json as they are finished, runs in `--work`: a second start goes on where
the first one stopped. docs/benchmarks/dinov3/backbone.md is written from the results. Needs lexitome[train].
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from ablation_measures import CONCEPT, SLICE_CONCEPT, Probe, scored
from ablations import base_recipe
from backbone_text import MAIN, ROWS, as_markdown, line
from provenance import DATA, RESULTS, ROOT, Entry, claim, origin, read_json, rounded, write_json
from specialists import trained_seconds
from torch import Tensor, nn

from lexitome.data.batches import Batch, BatchSource, Draw
from lexitome.data.cache import CachedDataset, open_cache
from lexitome.data.normalisation import DEVIATION, MEAN
from lexitome.data.sources.folder import load_dataset
from lexitome.data.traits import SIZES
from lexitome.errors import InputError
from lexitome.evaluation.statistics import stratified_mean
from lexitome.io.atomic import replacing
from lexitome.models.compact import CompactConfig, CompactNet
from lexitome.models.dinov3.backbone import Dinov3
from lexitome.models.dinov3.decoders import usual_taps
from lexitome.models.dinov3.presets import build as new_trunk
from lexitome.models.dinov3.weights import load_dinov3
from lexitome.recipes.compact import CompactRecipe
from lexitome.recipes.machine import usable_cores
from lexitome.recipes.pretrain_run import PretrainJob
from lexitome.recipes.run import MODEL, claimed
from lexitome.training import checkpoint
from lexitome.training.compact import CompactTask, Sampling, build_compact
from lexitome.training.engine import fit
from lexitome.training.pace import time_step
from lexitome.training.progress import LOG, read_log

PACKAGES = ("torch", "transformers", "numpy", "scipy", "accelerate")
DOCUMENT = ROOT / "docs" / "benchmarks" / "dinov3" / "backbone.md"
IMAGENET, PRETRAINED, RANDOM = ROWS
PAIRS = (MAIN, (PRETRAINED, RANDOM))
"""(later, earlier) of each comparison."""
SAME = ("settings", "seed", "data")
"""What the rows of one file share."""
FEWEST_STEPS = 2


@dataclass(frozen=True)
class Options:
    """`pictures`: validation pictures of each set. `model`, `sampling`: the compact model around the encoder, and
    the sizes of its pictures."""

    run: Path
    minutes: float
    pictures: int
    threads: int
    seed: int
    work: Path
    model: CompactConfig = field(default_factory=CompactConfig)
    sampling: Sampling = field(default_factory=Sampling)


class TransformerPyramid(nn.Module):
    """A vision transformer in the place of `EfficientNetLite`: (N, 3, H, W) in -1..1, sides multiples of 32, to five
    maps (N, C_i, H / 2^(i+1), W / 2^(i+1))."""

    mean: Tensor
    deviation: Tensor
    channels = (16, 32, 64, 128, 256)

    def __init__(self, trunk: Dinov3) -> None:
        super().__init__()
        if trunk.patch != 16:
            raise ValueError(f"maps of patches of {trunk.patch} pixels are not at stride 16")
        c2, c4, c8, c16, c32 = self.channels
        self.trunk, self.taps = trunk, usual_taps(trunk.depth)
        self.stem = nn.Sequential(nn.Conv2d(3, c2, 3, 2, 1), nn.GELU(), nn.Conv2d(c2, c2, 3, padding=1), nn.GELU())
        self.to4 = nn.Sequential(_up(trunk.dim, c8), _up(c8, c4))
        self.to8 = _up(trunk.dim, c8)
        self.to16 = nn.Conv2d(trunk.dim, c16, 1)
        self.to32 = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(trunk.dim, c32, 1))
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        normalised = (pictures * 0.5 + 0.5 - self.mean) / self.deviation
        maps = [each.permute(0, 3, 1, 2) for each in self.trunk.taps(normalised, self.taps)]
        return [self.stem(pictures), self.to4(maps[0]), self.to8(maps[1]), self.to16(maps[2]), self.to32(maps[3])]


def _up(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(c_in, c_out, 2, 2), nn.GroupNorm(8, c_out), nn.GELU())


def build(row: str, options: Options, phrases: Tensor) -> CompactNet:
    """The compact model around the encoder of the row.

    Raises:
        InputError: RUN is not finished, or did not begin with random weights of ours.
    """
    if row == IMAGENET:
        return build_compact(options.model, phrases, options.seed)
    recipe = PretrainJob.load(options.run).recipe
    if recipe.preset is None:
        raise InputError(options.run, f"began with weights of {recipe.start}", "Name a run of lexitome pretrain mini.")
    trunk = load_dinov3(options.run / MODEL).net if row == PRETRAINED else new_trunk(recipe.preset, options.seed)
    torch.manual_seed(options.seed)
    model = CompactNet(options.model, TransformerPyramid(trunk))  # type: ignore[arg-type]
    model.decoder.text.fit(phrases)
    return model.to(memory_format=torch.channels_last)


def recipe_of(row: str, options: Options, steps: int) -> CompactRecipe:
    """What is pretrained learns at a quarter of the rate, as compact's backbone always does."""
    recipe = base_recipe(steps, options.seed)
    pretrained = {IMAGENET: "encoder.backbone.*", PRETRAINED: "encoder.backbone.trunk.*"}
    groups = ((pretrained[row], recipe.optim.lr / 4),) if row in pretrained else ()
    return replace(
        recipe, name=row, model=options.model, sampling=options.sampling, optim=replace(recipe.optim, groups=groups),
        run=replace(recipe.run, threads=options.threads),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Judged(CompactTask):
    """A run that ends with being asked; what it said of each picture is kept in `place`."""

    probe: Probe
    place: Path

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, CompactNet)
        scores = scored(model, self.source, self.probe)
        by_concept = {
            f"{name}: {target}": values
            for measure in (CONCEPT, SLICE_CONCEPT) for (name, target), values in scores.dice[measure].items()
        }  # fmt: skip
        write_json(self.place, by_concept)
        return scores.summary(self.probe.reading)


@dataclass(frozen=True, eq=False)
class OfOneSize(CompactTask):
    """Steps that are all alike, to be timed."""

    draw: Draw

    def images(self, step: int) -> int:
        return self.draw.images

    def batch(self, step: int, indices: range) -> Batch:
        return self.source.batch(step, self.draw, indices)


def seconds_a_step(row: str, source: BatchSource, options: Options) -> float:
    """The mean over a run, from a few steps of each size class at low and at high resolution."""
    recipe, found = recipe_of(row, options, 1), 0.0
    sampling, phrases = recipe.sampling, source.phrase_vectors()
    shares = {size: getattr(sampling.share, size) for size in SIZES if source.set_chance[size].sum() > 0}
    for stage, part in ((sampling.low, sampling.high_from), (sampling.high, 1 - sampling.high_from)):
        for size, share in shares.items():
            shown = getattr(stage, size)
            task = OfOneSize(source, sampling, recipe.objective, 1, Draw(size, shown.side, shown.images))
            seconds = time_step(build(row, options, phrases), task, recipe.run.precision, recipe.run)
            found += part * share / sum(shares.values()) * seconds
    return found


def run(row: str, sets: Sequence[CachedDataset], options: Options) -> Entry:
    """Train (or go on) and ask; the row of the table."""
    folder = options.work / row
    base = base_recipe(1, options.seed)
    source = BatchSource(sets, seed=base.seed, queries=base.queries, negatives=base.negatives)
    planned = folder / "steps.json"
    if not planned.exists():
        torch.set_num_threads(options.threads)
        folder.mkdir(parents=True, exist_ok=True)
        steps = round(60 * options.minutes / seconds_a_step(row, source, options))
        write_json(planned, {"steps": max(FEWEST_STEPS, steps)})
    recipe = recipe_of(row, options, read_json(planned)["steps"])
    sides = {size: getattr(recipe.sampling.high, size).side for size in SIZES}
    probe = Probe(sides, options.pictures, stacked=True, reading="centres", new_words={})
    task = Judged(source, recipe.sampling, recipe.objective, recipe.run.steps, probe, folder / "scores.json")
    model = build(row, options, source.phrase_vectors())
    begun = checkpoint.locate(folder / "checkpoints", "last") is not None
    deciding = {"row": row, "sets": [s.dataset.name for s in sets], "queries": recipe.queries}
    print(f"{row}: {recipe.run.steps} steps, planned for {options.minutes:g} minutes", flush=True)
    result = fit(model, task, recipe.optim, recipe.run, folder, resume=begun, strategy="single", recipe=deciding)
    seconds = trained_seconds(read_log(folder / LOG))
    entry = {
        "name": row, "steps": result.step, "minutes": seconds / 60, "seconds_a_step": seconds / result.step,
        "parameters": {"all": _count(model), "encoder": _count(model.encoder.backbone)}, "metrics": result.metrics,
        "by_concept": read_json(task.place),
    }  # fmt: skip
    return rounded(entry)


def _count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def differences(rows: Mapping[str, Entry], draws: int = 2000) -> list[Entry]:
    """Of Dice in percent, paired by picture, mean over concepts."""
    found = []
    for later, earlier in PAIRS:
        if later not in rows or earlier not in rows:
            continue
        mine, other = rows[later]["by_concept"], rows[earlier]["by_concept"]
        values = {
            concept: {str(i): [a - b] for i, (a, b) in enumerate(zip(dice, other[concept], strict=True))}
            for concept, dice in mine.items()
        }  # fmt: skip
        interval = stratified_mean(values, seed=0, draws=draws)
        ends = {key: 100 * getattr(interval, key) for key in ("mean", "low", "high")}
        wins = sum(sum(sum(each) for each in units.values()) > 0 for units in values.values())
        found.append({"later": later, "earlier": earlier, **ends, "concepts": len(values), "better": wins})
    return found


def measure(
    chosen: Sequence[str], sets: Sequence[CachedDataset], options: Options, head: Entry, out: Path, document: Path
) -> Entry:
    """Every chosen row that is not there yet, kept as soon as it is finished.

    Raises:
        InputError: the rows that are there were made with other settings or data, or RUN is not finished.
    """
    result: Entry = {**head, "rows": {}, "differences": []}
    if out.exists():
        before = read_json(out)
        differ = [key for key in SAME if before[key] != head[key]]
        if differ:
            raise InputError(out, f"was made with other {' and '.join(differ)}", "Name another file with --out.")
        result["rows"] = before["rows"]
    with claimed(options.work):
        claim(options.work, {key: head[key] for key in SAME})
        for row in chosen:
            if row not in result["rows"]:
                result["rows"][row] = run(row, sets, options)
                print(line(result["rows"][row]), flush=True)
            result["differences"] = rounded(differences(result["rows"]))
            write_json(out, result)
            document.parent.mkdir(parents=True, exist_ok=True)
            with replacing(document) as temporary:
                temporary.write_text(as_markdown(result), encoding="utf-8")
            shutil.rmtree(options.work / row / "checkpoints", ignore_errors=True)  # some hundred MB; the log stays
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run of lexitome pretrain")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training steps, for each row")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=ROWS, help="these rows")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of annotated sets")
    parser.add_argument("--sets", nargs="*", default=(), help="names of sets, by default all")
    parser.add_argument("--pictures", type=int, default=12, help="validation pictures of each set")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "decoded", help="decoded pictures")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "backbone")
    parser.add_argument("--out", type=Path, default=RESULTS / "backbone.json")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="written from the results")
    typed = parser.parse_args()
    roots = sorted(p.parent for p in typed.data.glob("*/dataset.json"))
    datasets = [load_dataset(root) for root in roots if not typed.sets or root.name in typed.sets]
    options = Options(typed.run, typed.minutes, typed.pictures, typed.threads, typed.seed, typed.work)
    weights = load_dinov3(typed.run / MODEL).sha256
    settings = {"minutes": typed.minutes, "pictures": typed.pictures, "sets": [d.name for d in datasets],
                "weights": weights}  # fmt: skip
    head = {**origin(PACKAGES, datasets, seed=typed.seed, threads=typed.threads), "settings": settings}
    try:
        sets = [open_cache(dataset, typed.cache) for dataset in datasets]
        measure(typed.only, sets, options, head, typed.out, typed.document)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"written: {typed.out}, {typed.document}")


if __name__ == "__main__":
    main()
