"""`lexitome train` as it is typed: from annotated images to a model that segments, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexitome import __version__
from lexitome.cli import main
from lexitome.cli.console import BAD_INPUT, INTERRUPTED, OK
from lexitome.data.trained_on import TrainedOn
from lexitome.io.locks import holding
from lexitome.models.catalog import find_model
from lexitome.recipes.run import LOCK, Job
from lexitome.training import checkpoint, engine
from lexitome.training.compact import CompactTask

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from tiny_sets import disc, save_set

SIDE = 64
TINY = [
    "model.width=32", "model.heads=2", "model.encoder_layers=1", "model.decoder_layers=1", "model.path=8,16,24",
    *(f"sampling.{stage}.{size}.{what}" for stage in ("low", "high") for size in ("small", "medium", "fine")
      for what in ("side=64", "images=2")),
    "run.steps=6", "run.checkpoint_every=2", "run.threads=1", "run.precision=fp32", "queries=2",
]  # fmt: skip


def settings(*assignments: str) -> list[str]:
    return [word for assignment in (*TINY, *assignments) for word in ("--set", assignment)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, cases = np.random.default_rng(0), {}
    for i in range(8):
        mask = disc(SIDE, *rng.integers(20, 44, 2), 12).astype(np.uint8)
        cases[f"case{i}"] = np.where(mask[..., None] > 0, [200, 90, 80], [60, 30, 30]).astype(np.uint8), mask
    return save_set(tmp_path_factory.mktemp("data") / "polyps", cases, {1: "polyp"}, "colonoscopy")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and what it printed in `printed.txt` beside it."""
    folder = tmp_path_factory.mktemp("runs") / "polyps"
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        code = main(["train", "--data", str(data), "-o", str(folder), "--start", "imagenet", *settings()])
    folder.with_name("printed.txt").write_text("\n".join(lines))
    assert code == OK, lines
    return folder


def steps_logged(folder: Path) -> list[int]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["kind"] == "train"]


@pytest.mark.slow
def test_a_run_leaves_a_model_and_says_how_to_use_it(run: Path) -> None:
    printed = run.with_name("printed.txt").read_text()
    for topic in (
        "data  ",
        "resolution",
        "pictures",
        "start  ",
        "optimiser",
        "device",
        "memory",
        "decoding",
        "test part",
        "next",
    ):
        assert f"\n{topic}" in f"\n{printed}", topic
    assert f"-t polyp --model {run / 'model'}" in printed
    job = Job.load(run)
    assert job.recipe.run.steps == 6 and job.recipe.model.path == (8, 16, 24) and job.recipe.name == "polyps"
    assert job.recipe.optim.warmup <= 2  # fits the steps that were asked for
    assert {p.name for p in run.iterdir()} >= {"recipe.json", "splits", "checkpoints", "log.jsonl", "decoded", "model"}
    assert not (run / LOCK).exists() and "precision" not in printed  # which was set
    assert steps_logged(run) == [1, 2, 3, 4, 5, 6]
    card = find_model(run / "model")
    assert card.name == "polyps" and [c.words for c in card.trained_concepts] == ["polyp"] and not card.research_only
    assert set(card.metrics["test"]) == {"dice", "presence"} and card.measure_sha256() == card.sha256


@pytest.mark.slow
def test_what_it_prints_can_be_typed(run: Path, data: Path, tmp_path: Path) -> None:
    image = data / "images" / "case0.png"
    typed = next(line for line in run.with_name("printed.txt").read_text().splitlines() if line.startswith("next"))
    words = typed.split()[2:]
    words[words.index("IMAGE")], words[words.index("OUT")] = str(image), str(tmp_path / "out")
    assert main(words) == OK
    assert (tmp_path / "out" / "report.json").exists()
    assert main(["segment", "-i", str(image), "-o", str(tmp_path / "box"), "--box", "10,10,50,50",
                 "--model", str(run / "model")]) == OK  # fmt: skip
    masks = [p for p in (tmp_path / "box").glob("*.png")]
    assert len(masks) == 1 and Image.open(masks[0]).size == (SIDE, SIDE)


@pytest.mark.slow
def test_a_finished_run_can_be_resumed_and_is_not_begun_again(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = find_model(run / "model").sha256
    assert main(["train", "-o", str(run), "--resume"]) == OK
    assert steps_logged(run)[-1] == 6 and find_model(run / "model").sha256 == before
    capsys.readouterr()
    assert main(["train", "--data", str(data), "-o", str(run), "--start", "imagenet"]) == BAD_INPUT
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("holds a run already. Continue it with --resume, or choose another folder with -o.")
    )


@pytest.mark.slow
def test_an_interrupted_run_continues_where_it_was(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in step 5, after the checkpoint of step 4: the weights are those of a run that was not stopped."""
    calls, loss = [0], CompactTask.loss

    def stopped(self: CompactTask, *arguments: object) -> object:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return loss(self, *arguments)  # type: ignore[arg-type]

    folder = tmp_path / "stopped"
    monkeypatch.setattr(CompactTask, "loss", stopped)
    typed = ["train", "--data", str(data), "-o", str(folder), "--start", "imagenet", "--cache", str(run / "decoded")]
    assert main([*typed, *settings()]) == INTERRUPTED
    assert not (folder / "model").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-o", "stopped", "--resume", "--cache", str(run / "decoded")]) == OK
    assert sorted(set(steps_logged(folder))) == [1, 2, 3, 4, 5, 6]
    one, other = (checkpoint.read(checkpoint.locate(f / "checkpoints", "last"), "model") for f in (run, folder))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.fixture
def best_in_the_middle(run: Path, tmp_path: Path) -> Path:
    """A copy of the run whose best validation was in step 4, so that its last one describes other weights."""
    folder = tmp_path / "polyps"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("decoded", "model"))
    place = folder / "checkpoints" / "best" / "state.json"
    state = json.loads(place.read_text())
    place.write_text(json.dumps({**state, "step": 4, "metrics": {"dice": 0.123, "presence": 0.5}}))
    return folder


@pytest.mark.slow
def test_the_card_tells_of_the_weights_that_are_exported(best_in_the_middle: Path, run: Path, tmp_path: Path) -> None:
    cache = ["--cache", str(run / "decoded")]
    assert main(["train", "-o", str(best_in_the_middle), "--resume", *cache]) == OK
    assert main(["export", str(best_in_the_middle), "-o", str(tmp_path / "small"), "--format", "int8", *cache]) == OK
    own, small = find_model(best_in_the_middle / "model"), find_model(tmp_path / "small")
    for card in (own, small):
        assert card.metrics["validation"] == {"dice": 0.123, "presence": 0.5}
        assert json.loads(card.files.joinpath("card.json").read_text())["provenance"]["steps"] == 4
    assert small.metrics["test"] == own.metrics["test"] and small.sha256 != own.sha256
    assert small.trained_concepts[0].words == "polyp"


@pytest.mark.slow
def test_a_second_start_on_a_folder_is_refused(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Begun or resumed, while another process holds the folder; what a dead one left holds nobody up."""
    fresh = tmp_path / "fresh"
    with holding(run / LOCK), holding(fresh / LOCK):
        for typed in (["-o", str(run), "--resume"],
                      ["--data", str(data), "-o", str(fresh), "--start", "imagenet", *settings()]):  # fmt: skip
            assert main(["train", *typed]) == BAD_INPUT
            said = capsys.readouterr().err.splitlines()[-1]
            assert f"is being trained by process {os.getpid()}. Wait for it or stop it" in said
        assert [p.name for p in fresh.iterdir()] == [LOCK]
    (run / LOCK).write_text("1\n")
    assert main(["train", "-o", str(run), "--resume"]) == OK
    assert not (run / LOCK).exists()


@pytest.mark.slow
def test_two_processes_are_refused_together(run: Path, tmp_path: Path) -> None:
    """The first one finds the folder held; the other does not wait for it."""
    words = [sys.executable, "-m", *TORCHRUN.split(), "train", "-o", str(run), "--resume"]
    with holding(run / LOCK):
        done = subprocess.run(
            words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
        )
    assert done.returncode != OK and f"is being trained by process {os.getpid()}" in done.stderr


@pytest.mark.slow
def test_a_resumed_run_needs_nothing_of_its_start(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Begun from a model folder that is another one, then gone, before it is resumed: losses are as if nothing was."""
    start, cache = tmp_path / "start", ["--cache", str(run / "decoded")]
    shutil.copytree(run / "model", start)
    loss, calls = engine._step, [0]

    def stopped(*arguments: object) -> object:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return loss(*arguments)  # type: ignore[arg-type]

    sizes = [word for word in TINY if not word.startswith("model.")]
    typed = ["train", "--data", str(data), "--start", str(start), *(w for s in sizes for w in ("--set", s)), *cache]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert main([*typed, "-o", str(whole)]) == OK
    monkeypatch.setattr(engine, "_step", stopped)
    assert main([*typed, "-o", str(parted)]) == INTERRUPTED
    monkeypatch.setattr(engine, "_step", loss)
    assert Job.load(parted).start.sha256 == find_model(start).measure_sha256()
    shutil.rmtree(start)
    capsys.readouterr()
    assert main(["train", "-o", str(parted), "--resume", *cache]) == OK
    assert (
        f"start        {start} is not there any more: the run goes on with its own weights" in capsys.readouterr().out
    )
    one, other = (checkpoint.read(checkpoint.locate(f / "checkpoints", "last"), "model") for f in (whole, parted))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-4, err_msg=name)
    provenance = json.loads((parted / "model" / "card.json").read_text())["provenance"]
    assert provenance["start_sha256"] == Job.load(parted).start.sha256


def test_export_of_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "model")]) == BAD_INPUT
    assert "holds no run to continue. Name the folder of a run" in capsys.readouterr().err


TORCHRUN = "torch.distributed.run --standalone --nproc-per-node 2 -m -- lexitome"
ACCELERATE = (
    "accelerate.commands.launch --main_process_port {port} --num_processes 2 --use_fsdp --fsdp_version 2 -m lexitome"
)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["ddp", "fsdp2"])
def test_two_processes_train_and_one_exports(data: Path, tmp_path: Path, launcher: str) -> None:
    """As docs/training.md has it. The model that is exported is whole, whatever slices the processes had."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        words = launcher.format(port=free.getsockname()[1]).split()
    folder, environment = tmp_path / "polyps", {**os.environ, "OMP_NUM_THREADS": "1"}
    typed = ["train", "--data", str(data), "-o", str(folder), "--start", "imagenet", *settings()]
    command = [sys.executable, "-m", *words, *typed]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == OK, done.stderr[-4000:]
    assert done.stdout.count("test part") == 1 and steps_logged(folder) == [1, 2, 3, 4, 5, 6]
    assert [c.words for c in find_model(folder / "model").trained_concepts] == ["polyp"]


@pytest.mark.slow
def test_a_model_of_ones_own_is_taught_on_whatever_its_size(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan takes over the network of the model, and its folder as seen from anywhere."""
    monkeypatch.chdir(run)
    typed = ["train", "--data", str(data), "-o", str(tmp_path / "on"), "--start", "model"]
    assert main([*typed, "--plan"]) == OK
    planned = capsys.readouterr().out
    recipe = json.loads(planned[planned.index("{") :])
    assert recipe["model"]["width"] == 32 and recipe["start"] == str(run / "model")
    sizes = [word for word in TINY if not word.startswith("model.")]
    assert main([*typed, *(w for s in sizes for w in ("--set", s)), "--set", "run.steps=2"]) == OK
    card = find_model(tmp_path / "on" / "model")
    assert [s.name for s in card.sets] == ["polyps"]
    before, now = TrainedOn.of_model(tmp_path / "on"), TrainedOn.of_model(card.files)
    assert before is not None and now is not None and len(now.hashes) == len(before.hashes) > 0  # the same pictures
    assert main([*typed, "-o", str(tmp_path / "other"), "--set", "model.width=64"]) == BAD_INPUT
    assert "was built with another width" in capsys.readouterr().err


def test_a_plan_writes_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["train", "--data", str(data), "-o", str(tmp_path / "run"), "--start", "imagenet", "--plan"]
    assert main([*typed, "--set", "optim.lr=1e-5"]) == OK
    said = capsys.readouterr().out
    assert "steps        as many as fit into 30 minutes" in said
    assert "precision    the quicker of bf16 and fp32" in said and "\nmemory       " in said
    assert "polyps: 8 images" in said and json.loads(said[said.index("{") :])["optim"]["lr"] == 1e-5
    assert list(tmp_path.iterdir()) == []
    assert main(["train", "compact", *typed[1:]]) == OK
    listed = capsys.readouterr().out
    assert json.loads(listed)["start"] == "imagenet" and json.loads(listed)["name"] == "compact"


@pytest.mark.parametrize(("words", "part"), [
    ([], "--data is missing"),
    (["--data", "{data}", "nonsense"], "there is no recipe 'nonsense'. Choose from compact, compact-open"),
    (["--data", "missing"], "there is no such folder"),
    (["--data", "{data}", "--start", "nonsense"], "there is no such model"),
    (["--data", "{data}", "--start", "imagenet", "--set", "optim.lrr=1"], "Did you mean lr?"),
    (["--data", "{data}", "compact", "--set", "optim.lrr=1"], "Did you mean lr?"),
    (["--data", "{data}", "--start", "imagenet", "--set", "run.steps=0"], "out of range"),
    (["--data", "{data}", "--start", "imagenet", "--set", "sampling.high.fine.side=100"], "multiple of 32"),
    (["--data", "{data}", "--data", "{data}", "--start", "imagenet"], "two datasets are called 'polyps'"),
    (["--data", "{data}", "--concept", "polyp", "--start", "imagenet"], "has no meaning"),
    (["--resume"], "holds no run to continue"),
    (["--resume", "--start", "imagenet"], "--resume takes data and settings from the run"),
    (["--resume", "--set", "run.steps=9"], "holds no run to continue"),
    (["--data", "{data}", "--start", "imagenet", "--set", "queries=0"], "out of range"),
    (["--resume", "--concept", "polyp"], "--resume takes data and settings from the run"),
    (["--data", "{data}", "--resume"], "--resume takes data and settings from the run"),
    (["--data", "{data}", "--minutes", "0"], "--minutes"),
    (["compact", "--data", "{data}", "--minutes", "5"], "a length of its own"),
    (["small-sam3", "--data", "{data}", "--minutes", "5"], "a length of its own"),
])  # fmt: skip
def test_one_line_says_what_is_wrong_and_what_to_do(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], part: str
) -> None:
    typed = [word.format(data=data) for word in words]
    assert main(["train", *typed, "-o", str(tmp_path / "run")]) == BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and part in said
    assert list(tmp_path.iterdir()) == []


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from lexitome.cli import main; sys.exit(main(sys.argv[1:]))"


def test_help_needs_no_torch() -> None:
    done = python(WITHOUT_TORCH, "train", "--help")
    assert done.returncode == OK and "--minutes" in done.stdout and done.stderr == ""


def test_without_torch_it_says_what_to_install() -> None:
    done = python(WITHOUT_TORCH, "train", "--data", "anything")
    assert (done.returncode, done.stdout) == (BAD_INPUT, "")
    assert done.stderr == 'error: lexitome train: needs torch. Type: pip install "lexitome[train]"\n'


def test_as_a_module() -> None:
    """The form that torchrun starts."""
    command = [sys.executable, "-m", "lexitome", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (OK, f"lexitome {__version__}\n")
    failed = subprocess.run([*command[:-1], "nonsense"], capture_output=True, text=True, timeout=120)
    assert failed.returncode == BAD_INPUT
