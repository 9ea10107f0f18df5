"""A whole report of runs that were really scored: the page stands alone, says what was measured, marks what is oracle
or quoted, and its Markdown says the same."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lexitome.data.dataset import Dataset, Target
from lexitome.errors import InputError
from lexitome.evaluation.beside import as_json, compare_with_published
from lexitome.evaluation.found_sets import FoundSet, TaskData
from lexitome.evaluation.presets import PublishedScore, load_preset, published_for
from lexitome.evaluation.report import write_report
from lexitome.evaluation.report.blocks import Cell, Column, Document, Section, Table
from lexitome.evaluation.report.html import interval_bar, render_html
from lexitome.evaluation.report.markdown import render_markdown
from lexitome.evaluation.report.result_tables import dataset_table
from lexitome.evaluation.run_folder import Run, read_object, write_json, write_rows
from lexitome.evaluation.tables import summarise

sys.path.insert(0, str(Path(__file__).parent))
from scored_run import make_run

VOID = {"meta", "img", "input", "br", "wbr"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects what a browser would fetch, ids, links and tables' cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.rows: list[tuple[str, list[str]]] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.fetched += [given[name] for name in ("src", "xlink:href", "srcset", "data", "action") if name in given]
        self.fetched += [given["href"]] if tag in ("link", "base", "use", "image") and "href" in given else []
        if tag == "tr":
            self.rows.append((given.get("class", ""), []))
        if tag in ("td", "th"):
            self.rows[-1][1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][1][-1] += data
        if not {"style", "script"} & set(self.open):
            self.words += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs and the report of both."""
    root = tmp_path_factory.mktemp("reported")
    runs = [make_run(root / "first", cases=9), make_run(root / "second", cases=9, threshold=95.0, model="lower")]
    write_report(runs, root / "report")
    assert set(read_object(root / "report" / "summary.json")) >= {"by_dataset", "overall", "presence"}
    return root


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "report" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_page_needs_nothing_else(page: Page, text: str) -> None:
    assert page.fetched
    assert all(address.startswith(("data:", "#")) for address in page.fetched)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in text


def test_contents_lead_to_sections_and_ids_are_unique(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    assert len(page.links) >= 10
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)


def test_colours_of_figures_follow_the_page(text: str) -> None:
    figures = re.findall(r"<svg style=.*?</svg>", text, re.DOTALL)
    assert len(figures) == 7
    assert all("var(--ink)" in figure and "#1b2733" not in figure for figure in figures)


def test_numbers_are_those_of_the_rows(folder: Path, page: Page) -> None:
    """By hand from the rows, not by the code of the tables."""
    for name, label in (("first", "threshold"), ("second", "lower")):
        rows = [
            r for r in Run.load(folder / name).rows if r.dataset == "discs_b" and r.protocol == "text" and r.present
        ]
        mean = 100 * sum(row.metrics["dice"] or 0 for row in rows) / len(rows)
        shown = [cells for _, cells in page.rows if cells[:3] == ["discs_bexternal", label, "text"]]
        assert len(shown) == 1
        assert shown[0][7] == str(len(rows))
        assert float(re.match(r"[\d.]+", shown[0][3])[0]) == pytest.approx(mean, abs=0.051)  # type: ignore[index]


def test_every_row_with_an_oracle_is_marked_and_no_other(page: Page) -> None:
    marked = [(look, cells) for look, cells in page.rows if any(cell.startswith("oracle-box") for cell in cells)]
    assert len(marked) > 10
    assert all(look == "oracle" and any("ORACLE" in cell for cell in cells) for look, cells in marked)
    plain = [look for look, cells in page.rows if "text" in cells]
    assert plain and not any(plain)


def test_what_was_not_answered_is_named_and_escaped(page: Page, text: str) -> None:
    assert "there is no such file <case_lost.png>" in page.words
    assert "<case_lost" not in text
    assert "2 answers are missing, 0 cannot be used" in page.words


def test_reliability_of_masks_is_of_all_voxels_together(folder: Path, page: Page) -> None:
    """By hand from the bins of the rows; the figure's legend and the table say the same."""
    svg = (folder / "report" / "figures" / "mask-reliability-plain.svg").read_text()
    for name, label in (("first", "threshold"), ("second", "lower")):
        rows = [row for row in Run.load(folder / name).rows if row.protocol == "text" and row.bins]
        triples = np.array(
            [[word.split(":") if word != "0" else [0, 0, 0] for word in row.bins.split()] for row in rows]
        )
        count, sure, positive = triples.astype(float).sum(axis=0).T
        error = 100 * np.abs(sure - positive).sum() / count.sum()
        assert f"{label}, text: ECE {error:.1f} %" in svg
        shown = [cells for _, cells in page.rows if cells[:3] == ["all together", label, "text"]]
        assert len(shown) == 1 and shown[0][3] == str(len(rows)) and shown[0][5] == f"{error:.1f}"
    assert "oracle-box" not in svg


def test_runs_of_earlier_versions_have_no_reliability_of_masks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sets=1, cases=3)
    write_rows(run, [replace(row, bins="") for row in Run.load(run).rows])
    write_report([run], run, images=False)
    assert not list((run / "figures").glob("mask-reliability*")) and (run / "figures" / "reliability.svg").is_file()
    assert "all together" not in (run / "report.html").read_text(encoding="utf-8")


def test_runs_are_compared(page: Page) -> None:
    assert "lower against threshold, text" in page.words
    assert "nobody looked whether test images were in its training data" in page.words


def test_markdown_says_the_same(folder: Path, page: Page) -> None:
    markdown = (folder / "report" / "report.md").read_text(encoding="utf-8")
    plain = re.sub(r"\\(.)", r"\1", markdown)
    cells = {cell.replace(" ", "") for line in plain.splitlines() for cell in line.split(" | ")}
    for _, row in page.rows:
        for cell in row:
            words = re.sub(r"(ORACLE|external|published)$", "", cell).replace(" ", "")
            assert any(words in other.replace("`", "") for other in cells), words
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", markdown)
    assert len(links) == 7 + 24
    assert all((folder / "report" / link).is_file() for link in links)
    assert all((folder / "report" / link).with_suffix(".svg").is_file() for link in links if link.startswith("figures"))


def test_reports_are_reproducible(folder: Path, text: str) -> None:
    write_report([folder / "first", folder / "second"], folder / "again")
    assert (folder / "again" / "report.html").read_text(encoding="utf-8") == text
    for path in (folder / "report" / "figures").iterdir():
        assert (folder / "again" / "figures" / path.name).read_bytes() == path.read_bytes()


def test_without_matplotlib_there_are_tables_and_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_report([folder / "first"], folder / "bare", images=False)
    bare = (folder / "bare" / "report.html").read_text(encoding="utf-8")
    assert "lexitome[eval]" in bare and "<img" not in bare and "discs_<wbr>a" in bare
    assert not (folder / "bare" / "figures").exists()


def test_two_runs_of_one_model_get_names_of_their_own(folder: Path, tmp_path: Path) -> None:
    twin = make_run(tmp_path / "twin", sets=1, cases=3)
    write_report([folder / "first", twin], tmp_path / "out", images=False)
    words = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).words
    assert "threshold (first)" in words and "threshold (twin)" in words


def test_baselines_of_a_run_stand_beside_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sets=1, cases=3)
    make_run(run / "baselines" / "otsu", sets=1, cases=3, threshold=90.0, model="otsu")
    write_report([run], run, images=False)
    words = Page((run / "report.html").read_text(encoding="utf-8")).words
    assert "threshold and otsu on discs_a" in words
    assert not (run / "summary.json").exists()  # of the run alone, and not the report's to write


def test_leakage_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sets=1, cases=3)
    pair = {"dataset": "discs_a", "case": "case_01", "trained_on": "other_discs", "bits": 3, "slices": 1}
    own = {"dataset": "discs_a", "cases": 3, "affected": 1, "unreadable": [], "taught": True}
    write_json(run / "leakage.json", {
        "checked": True, "summary": "1 of 3 cases looks like a picture of training", "affected": 1, "cases": 3,
        "pictures": 99, "most_bits": 6, "bits": 64, "sets": [own], "pairs": [pair],
    })  # fmt: skip
    write_report([run], run, images=False)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "1 of 3 cases looks like a picture of training" in page.words
    assert ["case_01", "discs_a", "other_discs", "3", "1"] in [cells for _, cells in page.rows]


def test_published_numbers_have_a_column_of_their_own(folder: Path) -> None:
    summary = summarise(Run.load(folder / "first").rows)
    score = PublishedScore("preset", "discs", "SAM9", "text", "text only", "dice", 0.875, "Table 1", "")
    table = dataset_table(summary, frozenset(), {("discs_a", "text"): [score]})
    assert table is not None
    quoted = [i for i, column in enumerate(table.columns) if column.kind == "published"]
    assert len(quoted) == 1
    shown = {(row[0].text, row[2].text): row[quoted[0]].text for row in table.rows}
    assert shown == {("discs_a", "text"): "87.5 SAM9"} | {key: "" for key in shown if key != ("discs_a", "text")}
    document = Document("t", "s", (), (Section("a", "A", (table,)),))
    assert '<td class="right quoted" data-v="87.5" title="87.5 SAM9, Table 1">87.5 SAM9</td>' in render_html(document)
    assert "*published*" in unescape(render_markdown(document).text).replace("(", "").replace(")", "")


def test_known_datasets_show_what_was_published(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sets=1, cases=3)
    rows = [replace(row, dataset="cvc_clinicdb") for row in Run.load(run).rows]
    write_rows(run, rows)
    write_report([run], run, images=False)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    quoted = {f"{100 * score.value:.1f}" for score in published_for("cvc_clinicdb") if score.metric == "dice"}
    shown = {cell for _, cells in page.rows for cell in cells}
    assert quoted and quoted <= shown
    assert "Quoted from papers, never measured here" in page.words


def test_a_benchmark_stands_beside_its_published_columns(tmp_path: Path) -> None:
    """The real preset; of its tasks only PH2 is measured, twice."""
    run = make_run(tmp_path / "run", sets=1, cases=3)
    rows = [replace(row, dataset="ph2", concept="skin lesion") for row in Run.load(run).rows]
    write_rows(run, rows)
    preset = load_preset("medical-sam3")
    task = next(task for task in preset.tasks if task.name == "PH2")
    target = Target("skin lesion", (), (1,), (1,))
    dataset = Dataset("ph2", run, "", "", "", "", 2, "", "", None, None, (target,), ())
    found = FoundSet(task.source, run, dataset)
    comparison = compare_with_published(
        preset, {task.source.key: found}, [TaskData(task, found, dataset, ("skin lesion",), ("drawn by us",))], rows
    )
    write_json(run / "benchmark.json", as_json(comparison))
    write_report([run], run, images=False)
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    place = next(i for i, (_, cells) in enumerate(page.rows) if cells[0] == "PH2")
    line, above = page.rows[place][1], [cells for _, cells in page.rows[:place]]
    head = next(cells for cells in reversed(above) if cells[0] == "task")
    assert len(line) == len(head)
    ours = 100 * sum(row.metrics["dice"] or 0 for row in rows if row.oracle) / sum(row.oracle for row in rows)
    column = next(i for i, title in enumerate(head) if "threshold" in title and title.endswith("ORACLE"))
    assert float(re.match(r"[\d.]+", line[column])[0]) == pytest.approx(ours, abs=0.051)  # type: ignore[index]
    for quoted in preset.columns:
        column = next(i for i, title in enumerate(head) if title.startswith(f"{quoted.model}, {quoted.setting}"))
        assert head[column].endswith("published")
        assert line[column] == f"{100 * task.published[quoted.key]['dice']:.1f}"
    assert "drawn by us" in line[-1]


def test_intervals_are_drawn_to_scale() -> None:
    bar = interval_bar(Cell("50 (25–75)", 50.0, (25.0, 75.0)), (0.0, 100.0), width=108)
    assert 'class="band" x="29.0" y="3" width="50.0"' in bar and 'cx="54.0"' in bar
    assert 'cx="104.0"' in interval_bar(Cell("140", 140.0), (0.0, 100.0), width=108)
    assert interval_bar(Cell(""), (0.0, 100.0)) == ""


def test_words_from_data_are_never_markup() -> None:
    evil = "<script>alert(1)</script> | *x* [y](z)"
    table = Table((Column(evil, "words"),), ((Cell(evil, evil, hint=f'"{evil}'),),), evil)
    document = Document(evil, evil, (evil,), (Section("a", evil, (table,)),))
    page = Page(render_html(document))
    assert page.words.count(evil) == 11 and "<script>alert" not in render_html(document)
    markdown = render_markdown(document).text
    assert "<script" not in markdown.replace("\\<script", "") and "| *x*" not in markdown.replace("\\|", "")


def test_runs_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run is named"):
        write_report([], tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        write_report([tmp_path / "nowhere"], tmp_path / "out")
    run = make_run(tmp_path / "run", sets=1, cases=3)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="is a file"):
        write_report([run], tmp_path / "taken")
    (run / "overlays.json").write_text('[{"file": "../../secret.png"}]')
    with pytest.raises(InputError, match="not a list of examples"):
        write_report([run], tmp_path / "out")
