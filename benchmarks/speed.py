"""How long `lexitome segment` takes on a 512 x 512 PNG, process start included, and how much memory.

    make bench            # or: .venv/bin/python benchmarks/speed.py [--check]

Runs the installed command as a user does: a warm-up, then five runs each with 1 and with 6 text prompts, alternating.
Wall time is that of the whole process, memory its peak resident set as the kernel counts it. The cost of a further
prompt is the difference of the medians, divided by five. Results go to benchmarks/results/speed.json; `--check` fails
if a limit of `LIMITS` is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path

LIMITS = {"seconds": 1.5, "peak_mb": 600.0, "seconds_per_further_prompt": 0.06}
PROMPTS = ("optic disc", "retinal vessel", "optic cup", "polyp", "nuclei", "skin lesion")
RUNS = 5
SIDE = 512
RESULT = Path(__file__).parent / "results" / "speed.json"


def make_picture(path: Path) -> None:
    """The demo's fundus photograph as a 512 x 512 RGB PNG."""
    from PIL import Image

    with as_file(files("lexitome").joinpath("assets", "demo", "fundus.jpg")) as source:
        Image.open(source).resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(path)


def run_once(command: list[str]) -> tuple[float, float]:
    """(wall seconds, peak resident MB) of one process from start to end.

    Raises:
        RuntimeError: the command failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    return seconds, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def command_for(picture: Path, out: Path, prompts: tuple[str, ...]) -> list[str]:
    beside = Path(sys.executable).with_name("lexitome")
    program = str(beside) if beside.exists() else shutil.which("lexitome") or "lexitome"
    texts = [word for prompt in prompts for word in ("-t", prompt)]
    return [program, "segment", "-i", str(picture), "-o", str(out), *texts]


def measure() -> dict[str, object]:
    """Medians of `RUNS` runs after a warm-up, with all that is needed to judge them."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "fundus.png"
        make_picture(picture)
        one, many = (command_for(picture, Path(folder) / "out", prompts) for prompts in (PROMPTS[:1], PROMPTS))
        run_once(many)
        runs = [(run_once(one), run_once(many)) for _ in range(RUNS)]
    seconds = statistics.median(first[0] for first, _ in runs)
    further = (statistics.median(second[0] for _, second in runs) - seconds) / (len(PROMPTS) - 1)
    return {
        "command": shlex.join(["lexitome", "segment", "-i", "fundus.png", "-o", "out", *one[6:]]),
        "picture": f"{SIDE} x {SIDE} RGB PNG",
        "seconds": round(seconds, 3),
        "seconds_all": [round(first[0], 3) for first, _ in runs],
        "peak_mb": round(statistics.median(first[1] for first, _ in runs), 1),
        "seconds_per_further_prompt": round(further, 4),
        "seconds_all_six_prompts": [round(second[0], 3) for _, second in runs],
        "peak_mb_six_prompts": round(statistics.median(second[1] for _, second in runs), 1),
        "limits": LIMITS,
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("lexitome", "numpy", "onnxruntime", "pillow")},
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a limit is exceeded")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    result = measure()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    exceeded = [name for name, limit in LIMITS.items() if float(str(result[name])) > limit]
    for name, limit in LIMITS.items():
        print(f"{name}: {result[name]} (limit {limit})")
    print(f"written to {options.out}")
    return 1 if options.check and exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
