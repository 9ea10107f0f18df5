"""How long full-size SAM3 takes for a picture and for a further prompt on a CPU: ours beside plain transformers.

    python benchmarks/sam3_speed.py --out FOLDER [--dtype bfloat16 float32 int8 int8+float32] [--side 1008]
        [--repeats 3] [--model RUN]

FOLDER gets an official file of full size with random weights (3.4 GB), once. Every row is a process of its own: plain
`transformers.Sam3Model` and the network that `lexitome segment` uses, from the same file. "picture" is the vision
encoder, "prompt" all that a further prompt costs on a picture that is encoded, with the features of the words known;
"bound" is what transformers' products would take if all ran as fast as one of two 4096 x 4096 matrices.
"int8" is what --precision int8 does (8-bit products in the image trunk, bfloat16 else where the processor has it),
"int8+float32" what it does on a processor without bfloat16: beside transformers in bfloat16 and in float32.
"error" is the mean absolute difference from transformers in float32, in units of the mean absolute value.

Then the whole command, `lexitome segment` with one word on a 1008 x 1008 PNG, process start included, the file warm in
the system's cache and the features of the word stored by an earlier run.

With --model (a small SAM3 that `lexitome train small-sam3` made: RUN/model) masks are compared, too: those of each
precision with those of plain transformers in float32, on test pictures of --set, by intersection over union.

Times are medians. Results go to benchmarks/results/sam3_speed.json. Run nothing beside it. Needs lexitome[train].
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from provenance import DATA, RESULTS, Entry, origin, rounded, write_json
from sam3_load import FILE, write_official
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lexitome.data.dataset import Dataset
from lexitome.data.sources.folder import load_dataset
from lexitome.inference.sam3_loading import TRUNK, WORDS, chosen_dtype
from lexitome.inference.sam3_segmenter import Sam3Segmenter
from lexitome.models.sam3.network import Outputs, Prompts, Sam3Net
from lexitome.models.sam3.presets import Preset, set_side
from lexitome.models.sam3.quick import quickened
from lexitome.models.sam3.tokens import Tokens
from lexitome.models.sam3.weights import load_sam3
from lexitome.prompts import Query, Text

PACKAGES = ("torch", "transformers", "numpy")
WORD = "polyp"
SET = "kvasir_seg"
LENGTH = 8
"""Tokens of the prompt."""
MATRIX = 4096
PLAIN = {"bfloat16": "bfloat16", "float32": "float32"}
BESIDE = {**PLAIN, "int8": "bfloat16", "int8+float32": "float32"}
"""The precision of transformers that each of ours is compared with."""
Who = Literal["transformers", "lexitome"]
SAID = ("trunk", "semantic")


@dataclass(frozen=True)
class Options:
    folder: Path
    preset: Preset
    dtypes: tuple[str, ...]
    side: int
    repeats: int
    threads: int
    model: Path | None
    data: Path
    name: str
    pictures: int


def main() -> None:
    options, out = parse()
    path = options.folder / FILE
    if not path.is_file():
        write_official(options.folder, options.preset)
        Tokens.learn([WORD], 600).save(options.folder)
    rows: list[Entry] = []
    for dtype in options.dtypes:
        for who in ("transformers", "lexitome") if dtype in PLAIN else ("lexitome",):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, (who, dtype, path, options)))
            print(rows[-1], flush=True)
    exact = next((row for row in rows if row["who"] == "transformers" and row["dtype"] == "float32"), None)
    if exact is not None:
        for row in rows:
            row["error"] = {name: difference(row[name], exact[name]) for name in SAID}
    for row in rows:
        for name in SAID:
            del row[name]
    datasets = [load_dataset(options.data / options.name)] if options.model else []
    result: Entry = {
        **origin(PACKAGES, datasets, seed=0, threads=options.threads),
        "preset": options.preset, "side": options.side, "rows": rows, "ratios": ratios(rows), "bound": bounds(rows),
        "command_line": {each: whole_command(path, each, options) for each in ("auto", "int8")},
    }  # fmt: skip
    if options.model:
        result["masks"] = masks(options, datasets[0])
    write_json(out, rounded(result))
    print(f"written to {out}")


def measure(who: Who, dtype: str, path: Path, options: Options) -> Entry:
    """Seconds and memory of one network, in a fresh process; "trunk" and "semantic" are what it says."""
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    picture, prompts = question(options.side)
    encode, ask, text = (plain if who == "transformers" else ours)(path, dtype, options, prompts)
    loaded = time.perf_counter() - began
    encoding, asking = [], []
    with torch.inference_mode():
        known = text()
        with counted() as of_picture:
            features = encode(picture)
        with counted() as of_prompt:
            ask(features, known)
        for _ in range(options.repeats):
            clock = [time.perf_counter()]
            features = encode(picture)
            clock.append(time.perf_counter())
            trunk, semantic = ask(features, known)
            clock.append(time.perf_counter())
            encoding.append(clock[1] - clock[0])
            asking.append(clock[2] - clock[1])
        speed = products(getattr(torch, BESIDE[dtype]))
    return {
        "who": who, "dtype": dtype, "load_seconds": loaded,
        "picture_seconds": statistics.median(encoding), "prompt_seconds": statistics.median(asking),
        "picture_seconds_all": encoding, "prompt_seconds_all": asking, "product_gflops": speed,
        "picture_tflop": of_picture.get_total_flops() / 1e12, "prompt_tflop": of_prompt.get_total_flops() / 1e12,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "trunk": trunk.float().numpy(), "semantic": semantic.float().numpy(),
    }  # fmt: skip


Parts = tuple[Callable[[Tensor], Any], Callable[[Any, Any], tuple[Tensor, Tensor]], Callable[[], Any]]
"""Encode a picture; ask about it with the features of words, which gives trunk and semantic logits; those features."""


def plain(path: Path, precision: str, options: Options, prompts: Prompts) -> Parts:
    """transformers as its documentation says: vision features once, words for each prompt with known text features."""
    dtype = getattr(torch, precision)
    net = load_sam3(path, dtype=dtype).net.eval()
    if options.side != Sam3Net(net).side:
        set_side(Sam3Net(net), options.side)
    words = {"input_ids": prompts.tokens, "attention_mask": prompts.token_mask.long()}

    def ask(features: Any, known: Any) -> tuple[Tensor, Tensor]:
        said = net(vision_embeds=features, text_embeds=known, attention_mask=words["attention_mask"])
        return features.last_hidden_state, said.semantic_seg[:, 0]

    return (
        lambda picture: net.get_vision_features(pixel_values=picture.to(dtype)), ask,
        lambda: net.get_text_features(**words),
    )  # fmt: skip


def ours(path: Path, precision: str, options: Options, prompts: Prompts) -> Parts:
    """What `inference.sam3_loading` makes of the same file."""
    eight_bit = precision not in PLAIN
    dtype = chosen_dtype("int8") if precision == "int8" else getattr(torch, BESIDE[precision])
    mapped = (*WORDS, TRUNK) if eight_bit else WORDS
    net = Sam3Net(load_sam3(path, dtype=dtype, mapped=mapped).net, geometry_cls=False)
    if options.side != net.side:
        set_side(net, options.side)
    quick = quickened(net, eight_bit=eight_bit)

    def ask(features: Any, known: Any) -> tuple[Tensor, Tensor]:
        said: Outputs = quick.decode(features, prompts, known)
        return features.trunk.flatten(2).transpose(1, 2), said.semantic

    return quick.encode, ask, lambda: quick.text(prompts.tokens, prompts.token_mask)


def question(side: int) -> tuple[Tensor, Prompts]:
    """A picture (1, 3, S, S) of smooth blots in -1..1, and some words."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(1, 3, side // 28, side // 28, generator=generator) * 2 - 1
    picture = torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(-1, 1)
    none = torch.zeros(1, 0)
    tokens = torch.randint(1, 500, (1, LENGTH), generator=generator)
    mask, first = torch.ones(1, LENGTH, dtype=torch.bool), torch.zeros(1, dtype=torch.long)
    return picture, Prompts(tokens, mask, first, none[..., None].expand(1, 0, 4), none.long())


def counted() -> FlopCounterMode:
    """Counts what is computed in products, also in oneDNN's fused ones and in attention on a CPU."""
    attention: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(
        display=False, custom_mapping={attention: flash_flop, torch.ops.mkldnn._linear_pointwise: linear_flop}
    )


def linear_flop(x: Sequence[int], *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """Of x (..., in); the weight (out, in) is the first argument of two numbers after it, or the second with a
    residual."""
    weight = next(shape for shape in reversed(rest[:2]) if shape is not None and len(shape) == 2)
    return 2 * math.prod(x) * weight[0]


def products(dtype: torch.dtype) -> float:
    """GFLOP/s of a matrix product, the best of a few."""
    one = torch.rand(MATRIX, MATRIX).to(dtype)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        torch.mm(one, one)
        times.append(time.perf_counter() - began)
    return 2 * MATRIX**3 / min(times) / 1e9


def flash_flop(q: Sequence[int], k: Sequence[int], *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of attention of (B, heads, T, size) and (B, heads, U, size)."""
    return 4 * q[0] * q[1] * q[2] * k[2] * q[3]


def ratios(rows: Sequence[Entry]) -> dict[str, Entry]:
    """Of each precision: how many times quicker ours is than transformers in the one of `BESIDE`."""
    by = {(row["dtype"], row["who"]): row for row in rows}
    return {
        dtype: {
            part: by[BESIDE[dtype], "transformers"][part] / by[dtype, "lexitome"][part]
            for part in ("picture_seconds", "prompt_seconds", "peak_mb")
        }
        for dtype in dict.fromkeys(row["dtype"] for row in rows)
        if {(BESIDE[dtype], "transformers"), (dtype, "lexitome")} <= by.keys()
    }


def bounds(rows: Sequence[Entry]) -> dict[str, Entry]:
    """Of each precision: seconds of transformers' products at the speed of a large one, and ours in units of them."""
    by, found = {(row["dtype"], row["who"]): row for row in rows}, dict[str, Entry]()
    for dtype in dict.fromkeys(row["dtype"] for row in rows if row["dtype"] in PLAIN):
        them, us = by[dtype, "transformers"], by[dtype, "lexitome"]
        speed = max(them["product_gflops"], us["product_gflops"]) / 1e3
        for part in ("picture", "prompt"):
            least = them[f"{part}_tflop"] / speed
            found.setdefault(dtype, {})[part] = {"seconds": least, "ours": us[f"{part}_seconds"] / least}
    return found


def difference(one: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    return float(np.abs(one - exact).mean() / np.abs(exact).mean())


def whole_command(path: Path, precision: str, options: Options) -> Entry:
    """`lexitome segment`, twice: the second run finds the features of the word stored."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        values = np.random.default_rng(0).integers(0, 255, (options.side, options.side, 3), np.uint8)
        Image.fromarray(values).save(place / "picture.png")
        command = [
            sys.executable, "-m", "lexitome", "segment", "-i", str(place / "picture.png"), "-o", str(place / "out"),
            "-t", WORD, "-m", str(path), "--threads", str(options.threads),
            "--side", str(options.side), "--precision", precision,
        ]  # fmt: skip
        environment = {**os.environ, "XDG_CACHE_HOME": str(place / "cache")}
        runs = []
        for _ in range(2 + options.repeats):
            began = time.perf_counter()
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{' '.join(command[2:])} ended with status {status}")
            runs.append((time.perf_counter() - began, usage.ru_maxrss / 1024))
    return {
        "first_seconds": runs[0][0], "first_peak_mb": runs[0][1],
        "seconds": statistics.median(run[0] for run in runs[1:]),
        "peak_mb": statistics.median(run[1] for run in runs[1:]),
    }  # fmt: skip


def masks(options: Options, dataset: Dataset) -> list[Entry]:
    """How far masks of a trained small model change with the precision: IoU with those of plain transformers' network
    in float32, for pictures where either finds something."""
    cases = [case for case in dataset.cases if case.split == "test"][: options.pictures]
    word = Query(Text(dataset.targets[0].name))
    assert options.model is not None
    segmenter = Sam3Segmenter.load(options.model, precision="float32")
    geometry_cls = segmenter.settings.geometry_cls
    exact = replace(segmenter, net=Sam3Net(load_sam3(options.model).net, geometry_cls=geometry_cls).eval())
    reference = [found(exact, case, word) for case in cases]
    rows = []
    for dtype in (dtype for dtype in options.dtypes if "+" not in dtype):
        loaded = Sam3Segmenter.load(options.model, precision=dtype)  # type: ignore[arg-type] # it checks
        said = [found(loaded, case, word) for case in cases]
        pairs = [(a, b) for a, b in zip(said, reference, strict=True) if a.any() or b.any()]
        overlaps = [float((a & b).sum() / (a | b).sum()) for a, b in pairs]
        rows.append({
            "dtype": dtype, "set": dataset.name, "pictures": len(cases), "found": len(pairs),
            "iou_mean": float(np.mean(overlaps)), "iou_least": min(overlaps),
        })  # fmt: skip
    return rows


def found(segmenter: Sam3Segmenter, case: Any, word: Query) -> NDArray[np.bool_]:
    return segmenter.decode(segmenter.encode(case.content.volume(), [word]), [word]).findings[0].mask


def parse() -> tuple[Options, Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, dest="folder", help="folder for the file, which stays there")
    parser.add_argument("--preset", choices=("full", "small", "tiny"), default="full")
    parser.add_argument("--dtype", nargs="+", choices=tuple(BESIDE), default=tuple(BESIDE))
    parser.add_argument("--side", type=int, default=1008)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--model", type=Path, help="a small SAM3 that was trained")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--set", default=SET, dest="name")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--result", type=Path, default=RESULTS / "sam3_speed.json")
    typed = vars(parser.parse_args())
    out = typed.pop("result")
    dtypes = tuple(typed.pop("dtype"))
    return Options(dtypes=dtypes, **typed), out


if __name__ == "__main__":
    main()
