"""COCO annotations, with pycocotools as oracle where it is installed: outlines, overlaps, objects, crowds, parts."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lexitome.data.cases import read_case, read_instances
from lexitome.data.dataset import UNKNOWN_CODE, Dataset
from lexitome.data.sources import load_any
from lexitome.data.sources.outlines import fill_polygon, mask_from_runs, runs_from_text
from lexitome.errors import InputError

HEIGHT, WIDTH = 30, 40


def square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed run lengths, written down independently of the reader: column by column, background first."""
    runs, value, count = [], False, 0
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(count)
            value, count = pixel, 0
        count += 1
    return {"size": list(mask.shape), "counts": [*runs, count]}


def write_coco(root: Path, objects: dict[int, list[dict]], names: tuple[str, ...], **image_keys: Any) -> Path:
    """`objects` of each image number; annotations in `annotations/`, images in `images/`."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for number in objects:
        Image.fromarray(np.full((HEIGHT, WIDTH), 20 + number, np.uint8)).save(root / "images" / f"p{number}.png")
    entries = [
        {"id": 1000 * number + k, "image_id": number, "iscrowd": 0, **item}
        for number, items in objects.items()
        for k, item in enumerate(items)
    ]
    document = {
        "info": {"description": "Histopathology (H&E)"},
        "images": [
            {"id": n, "file_name": f"p{n}.png", "height": HEIGHT, "width": WIDTH, **image_keys} for n in objects
        ],
        "categories": [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(names)],
        "annotations": entries,
    }
    (root / "annotations" / "instances.json").write_text(json.dumps(document))
    return root


def mask_of(dataset: Dataset, codes: np.ndarray, name: str) -> np.ndarray:
    return np.isin(codes[0], next(t for t in dataset.targets if t.name == name).codes)


def test_nested_and_overlapping_categories_are_all_kept(tmp_path: Path) -> None:
    cells = {
        1: [{"category_id": 10, "segmentation": [square(5, 5, 12)]},  # a cell with its nucleus
            {"category_id": 20, "segmentation": [square(8, 8, 4)]},
            {"category_id": 10, "segmentation": [square(25, 5, 10)]},  # a cell crossed by debris
            {"category_id": 30, "segmentation": [square(30, 0, 9)]}],
        2: [{"category_id": 20, "segmentation": [square(0, 0, 3)]}],
    }  # fmt: skip
    dataset = load_any(write_coco(tmp_path, cells, ("cell", "nucleus", "debris")))
    _, codes = read_case(dataset.cases[0])
    areas = {name: int(mask_of(dataset, codes, name).sum()) for name in ("cell", "nucleus", "debris")}
    assert areas == {"cell": 144 + 100, "nucleus": 16, "debris": 81}
    assert (mask_of(dataset, codes, "cell") & mask_of(dataset, codes, "nucleus")).sum() == 16
    assert dataset.family == "histology" and [c.stem for c in dataset.cases] == ["p1", "p2"]


def test_objects_keep_their_ids(tmp_path: Path) -> None:
    cells = {1: [{"category_id": 20, "segmentation": [square(8, 8, 4)]},
                 {"category_id": 10, "segmentation": [square(5, 5, 12)]},
                 {"category_id": 10, "segmentation": [square(15, 5, 12)]}]}  # fmt: skip
    dataset = load_any(write_coco(tmp_path, cells, ("cell", "nucleus")))
    volume, codes = read_case(dataset.cases[0])
    ids = read_instances(dataset.cases[0], volume)
    assert ids is not None and set(np.unique(ids)) == {0, 1, 2, 3} and (ids == 1).sum() == 16
    assert ((ids > 0) == (codes > 0)).all()
    only = read_instances(dataset.cases[0], volume, next(t for t in dataset.targets if t.name == "cell"))
    assert only is not None and set(np.unique(only)) == {0, 2, 3}
    assert ((only > 0)[0] == mask_of(dataset, codes, "cell")).all()


def test_parts_runs_crowds_and_boxes(tmp_path: Path) -> None:
    blob = np.zeros((HEIGHT, WIDTH), bool)
    blob[20:26, 3:9] = True
    items = {1: [{"category_id": 10, "segmentation": [square(1, 1, 3), square(10, 1, 5)]},  # one object in two parts
                 {"category_id": 10, "segmentation": runs_of(blob), "iscrowd": 1},
                 {"category_id": 10, "segmentation": [], "bbox": [30, 20, 5, 5]}]}  # fmt: skip
    dataset = load_any(write_coco(tmp_path, items, ("gland",)))
    volume, codes = read_case(dataset.cases[0])
    gland = mask_of(dataset, codes, "gland")
    assert gland.sum() == 9 + 25 + 36 and gland[blob].all()
    ids = read_instances(dataset.cases[0], volume)
    assert ids is not None and (ids == 1).sum() == 34 and not ids[0][blob].any()  # a crowd is no object
    assert (codes[0, 20:25, 30:35] == UNKNOWN_CODE).all() and (codes == UNKNOWN_CODE).sum() == 25
    assert any("box but no outline" in f.cause for f in dataset.findings)


def test_compressed_runs_and_polygons_agree_with_pycocotools() -> None:
    oracle = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = (int(n) for n in rng.integers(1, 90, 2))
        mask = ndimage.gaussian_filter(rng.normal(size=(height, width)), 2) > 0
        packed = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
        for counts in (packed["counts"], packed["counts"].decode()):
            assert np.array_equal(mask_from_runs(runs_from_text(counts), height, width), mask)
    for sides in (3, 5, 12):
        angles = np.sort(rng.uniform(0, 2 * np.pi, sides))
        corners = 50 + rng.uniform(10, 45, sides)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        ours = np.zeros((100, 100), bool)
        fill_polygon(ours, corners)
        theirs = oracle.decode(oracle.frPyObjects([corners.ravel().tolist()], 100, 100))[..., 0] > 0
        apart = ours != theirs  # they round corners to pixels; ours asks for the centre of the pixel
        assert not (apart & ndimage.binary_erosion(theirs, iterations=2)).any()
        assert not (apart & ~ndimage.binary_dilation(theirs, iterations=2)).any()


def test_polygons_are_filled_exactly_and_cut_at_the_border() -> None:
    mask = np.zeros((6, 8), bool)
    fill_polygon(mask, np.array([[-3.0, -3.0], [2.0, -3.0], [2.0, 4.0], [-3.0, 4.0]]))
    assert mask[:4, :2].all() and mask.sum() == 8
    fill_polygon(mask, np.array([[90.0, 90.0], [95.0, 90.0], [95.0, 99.0]]))
    assert mask.sum() == 8
    triangle = np.zeros((200, 200), bool)
    fill_polygon(triangle, np.array([[10.0, 10.0], [190.0, 10.0], [10.0, 190.0]]))
    assert abs(int(triangle.sum()) - 180 * 180 / 2) < 180


@pytest.mark.parametrize("text", ["o", "\x01", "zzz\u00ff"])
def test_damaged_runs_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        mask_from_runs(runs_from_text(text), 2, 2)


def test_damaged_outline_names_the_file(tmp_path: Path) -> None:
    bad = {1: [{"category_id": 10, "segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 5]}}]}
    dataset = load_any(write_coco(tmp_path, bad, ("polyp",)))
    with pytest.raises(InputError, match=r"p1\.png"):
        read_case(dataset.cases[0])


def test_published_parts_are_honoured(tmp_path: Path) -> None:
    for part, numbers in (("train", (1, 2, 3)), ("val", (4,)), ("test", (5,))):
        item = {"category_id": 10, "segmentation": [square(2, 2, 5)]}
        write_coco(tmp_path, {n: [item] for n in numbers}, ("polyp",))
        (tmp_path / "annotations" / "instances.json").rename(tmp_path / "annotations" / f"instances_{part}.json")
    dataset = load_any(tmp_path)
    assert {c.stem: c.split for c in dataset.cases} == {
        "p1": "train", "p2": "train", "p3": "train", "p4": "val", "p5": "test"}  # fmt: skip


def test_categories_nobody_looked_for_are_unknown(tmp_path: Path) -> None:
    items = {1: [{"category_id": 10, "segmentation": [square(2, 2, 5)]}]}
    dataset = load_any(write_coco(tmp_path, items, ("polyp", "tool", "vessel"), neg_category_ids=[30]))
    assert dataset.cases[0].unknown_labels == {20}


def test_size_of_the_file_must_be_as_listed(tmp_path: Path) -> None:
    write_coco(tmp_path, {1: [{"category_id": 10, "segmentation": [square(2, 2, 5)]}]}, ("polyp",))
    Image.fromarray(np.zeros((WIDTH, HEIGHT), np.uint8)).save(tmp_path / "images" / "p1.png")
    with pytest.raises(InputError, match="30 x 40, but instances"):
        read_case(load_any(tmp_path).cases[0])


def test_a_list_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"instances\.json: lists no images"):
        load_any(write_coco(tmp_path, {}, ("polyp",)))


def test_too_many_combinations_are_refused(tmp_path: Path) -> None:
    names = tuple(f"thing {i}" for i in range(255))
    with pytest.raises(InputError, match="more than 254 codes"):
        load_any(write_coco(tmp_path, {1: []}, names))


def test_cases_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    dataset = load_any(write_coco(tmp_path, {1: [{"category_id": 10, "segmentation": [square(2, 2, 5)]}]}, ("polyp",)))
    again = pickle.loads(pickle.dumps(dataset.cases[0]))
    assert np.array_equal(read_case(again)[1], read_case(dataset.cases[0])[1])
