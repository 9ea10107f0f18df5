"""One structure followed through the slices of a volume by SAM3's tracker (needs torch).

A structure starts at the best detection that no other structure explains and is followed outwards in both directions
until it is gone. Where the detector was asked, its detections that overlap join the structure and refresh the tracker's
memory; from a slice on which it does not see the structure, this goes on only if it sees it again soon. The way between
the outermost detections is then walked back, so that there the detector and both directions are averaged. What the
detector saw on a single slice stays, whatever the tracker makes of it: nothing here takes an object back (SAM3's video
mode does so after some frames, "hotstart", which would delete what is short in z).
"""

from __future__ import annotations

import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexitome.models.sam3.network import Features, Sam3Net
from lexitome.models.sam3.tracker import Bank, Sam3Tracker, Sight, Tracked

MOST_STORED = 4 << 30
"""Bytes of the temporary file that holds what the tracker sees of slices (10.6 MB each at full size in bfloat16)."""
SAME = 0.5
"""Two masks on one slice that overlap this much (intersection over union) are of one thing."""
_TRACE = 0.02
"""Probabilities below this are not kept."""


class Slices(Protocol):
    """The pictures of a volume, cut and turned as the detector sees them; made when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor:
        """(1, 3, S, S) in -1..1."""
        ...


@dataclass(frozen=True)
class Plan:
    """How a volume is gone through.

    Args:
        every: the detector is asked about each so many slices; 1 for all of them.
        also: ... and about these.
        found: a detection of this score is an object.
        faint: one of this score confirms an object that was followed there, but does not start one.
        match: intersection over union from which a detection is of the structure followed (SAM3's own value).
        unseen: a structure is given up where the detector was asked so many times in a row and did not see it; it ends
            before the first of these slices.
        gone: ... and where the tracker has not seen it for so many slices in a row.
        most: structures that are followed; what is found beyond them stays on its slice.
    """

    every: int = 1
    also: tuple[int, ...] = ()
    found: float = 0.5
    faint: float = 0.25
    match: float = 0.1
    unseen: int = 2
    gone: int = 2
    most: int = 64

    def asked(self, slices: int) -> list[int]:
        """The slices the detector is asked about, as much room before the first as after the last."""
        every = min(self.every, slices)
        return sorted({*range((slices - 1) % every // 2, slices, every), *self.also})


@dataclass(frozen=True, eq=False)
class Detection:
    """An object on one slice: the part of the plane (h, w) that it covers.

    Args:
        corner: row and column of `values` [0, 0] in the plane.
        values: (r, c) probabilities.
    """

    index: int
    score: float
    shape: tuple[int, int]
    corner: tuple[int, int]
    values: NDArray[np.float16]

    @staticmethod
    def of(index: int, score: float, plane: NDArray[np.floating]) -> Detection:
        """From a whole plane of probabilities (h, w); for what a user marks, too."""
        there = plane >= _TRACE
        rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
        top, left = (int(rows[0]), int(columns[0])) if len(rows) else (0, 0)
        bottom, right = (int(rows[-1]) + 1, int(columns[-1]) + 1) if len(rows) else (0, 0)
        values = plane[top:bottom, left:right].astype(np.float16)
        return Detection(index, score, (plane.shape[0], plane.shape[1]), (top, left), values)

    @property
    def rank(self) -> tuple[float, int]:
        """Sorts the likeliest first; of those that are as likely, the largest."""
        return -self.score, -int((self.values >= 0.5).sum())

    def plane(self) -> NDArray[np.float32]:
        whole = np.zeros(self.shape, np.float32)
        whole[self._window] = self.values
        return whole

    def overlap(self, inside: NDArray[np.bool_]) -> tuple[float, float]:
        """Intersection over union with a mask (h, w), and the share of the detection that lies inside it."""
        own = self.values >= 0.5
        shared, area = int((own & inside[self._window]).sum()), int(own.sum())
        return shared / max(area + int(inside.sum()) - shared, 1), shared / max(area, 1)

    @property
    def _window(self) -> tuple[slice, slice]:
        (top, left), (rows, columns) = self.corner, self.values.shape
        return slice(top, top + rows), slice(left, left + columns)


@dataclass(eq=False)
class Followed:
    """What was found of one concept, slice by slice as the slices hang, on the grid of the network's masks.

    Args:
        grid: (slices, h, w).
        presence: the best score on any slice.
        best: the slice it was on, None where no slice was asked.
        objects: how many structures; ``owners`` holds their ids from 1 where ``probability`` is at least a half.
    """

    grid: tuple[int, int, int]
    presence: float = 0.0
    best: int | None = None
    objects: int = 0
    probability: NDArray[np.float16] = field(init=False)
    owners: NDArray[np.uint16] = field(init=False)

    def __post_init__(self) -> None:
        self.probability = np.zeros(self.grid, np.float16)
        self.owners = np.zeros(self.grid, np.uint16)

    def saw(self, index: int, score: float) -> None:
        if self.best is None or score > self.presence:
            self.presence, self.best = score, index


class Sights:
    """What the tracker sees of each slice, encoded once, when first needed.

    The network takes seconds for a slice, and structures may come by often. So sights wait in an unnamed temporary file
    of bounded size (`MOST_STORED`, half of the free disk at most); memory holds one. If the file is full, the slice not
    needed for longest gives way, and may have to be encoded again.
    """

    def __init__(
        self,
        net: Sam3Net,
        tracker: Sam3Tracker,
        slices: Slices,
        *,
        most: int = MOST_STORED,
        seen: Callable[[int], None] | None = None,
    ) -> None:
        self._net, self._tracker, self._slices = net, tracker, slices
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this; closed, it is gone
        self._most = min(most, shutil.disk_usage(tempfile.gettempdir()).free // 2)
        self._records: OrderedDict[int, int] = OrderedDict()
        self._form: list[tuple[torch.Size, torch.dtype]] = []
        self._last: tuple[int, Sight] | None = None
        self._seen, self._told = seen, np.zeros(len(slices), np.bool_)

    def __len__(self) -> int:
        return len(self._slices)

    def __enter__(self) -> Sights:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getitem__(self, index: int) -> Sight:
        if self._last is None or self._last[0] != index:
            stored = self._records.get(index)
            if stored is None:
                self.encode(index)
            else:
                self._records.move_to_end(index)
                self._last = (index, self._read(stored))
        assert self._last is not None
        return self._last[1]

    def encode(self, index: int) -> Features:
        """Encode a slice; what the tracker sees of it is kept, the rest is for the caller."""
        features = self._net.encode(self._slices[index])
        sight = self._tracker.look(features.trunk)
        self._last = (index, sight)
        self._write(index, sight)
        self._told[index] = True
        if self._seen is not None:
            self._seen(int(self._told.sum()))
        return features

    def _write(self, index: int, sight: Sight) -> None:
        self._form = [(level.shape, level.dtype) for level in sight]
        size = sum(level.nbytes for level in sight)
        if index in self._records:
            record = self._records.pop(index)
        elif (len(self._records) + 1) * size <= self._most:
            record = len(self._records)
        elif self._records:
            record = self._records.popitem(last=False)[1]
        else:
            return
        self._records[index] = record
        self._file.seek(record * size)
        for level in sight:
            self._file.write(level.contiguous().flatten().view(torch.uint8).cpu().numpy().data)

    def _read(self, record: int) -> Sight:
        counts = [shape.numel() * dtype.itemsize for shape, dtype in self._form]
        self._file.seek(record * sum(counts))
        device = self._tracker.tracker_model.no_memory_embedding.device
        levels = []
        for (shape, dtype), count in zip(self._form, counts, strict=True):
            held = torch.frombuffer(bytearray(self._file.read(count)), dtype=dtype)
            levels.append(held.view(shape).to(device))
        return Sight(*levels)


class Body:
    """The structure being followed: weighted sums of what was said about each slice. One is used for all of them."""

    def __init__(self, grid: tuple[int, int, int]) -> None:
        self._total = np.zeros(grid, np.float16)
        self._weight = np.zeros(grid[0], np.float32)

    def add(self, index: int, plane: NDArray[np.float32], weight: float) -> None:
        self._total[index] += (plane * weight).astype(np.float16)
        self._weight[index] += weight

    def mean(self, index: int) -> NDArray[np.float32]:
        """(h, w) probabilities of a slice that something was said about."""
        return self._total[index].astype(np.float32) / self._weight[index]

    def drop(self, index: int) -> None:
        self._total[index], self._weight[index] = 0, 0

    def settle(self, result: Followed) -> None:
        """Give the structure to the result under the next id, and forget it. What two claim is the likelier's."""
        result.objects += 1
        for index in map(int, np.flatnonzero(self._weight)):
            mean = self.mean(index).astype(np.float16)
            likelier = mean > result.probability[index]
            result.probability[index][likelier] = mean[likelier]
            result.owners[index][likelier & (mean >= 0.5)] = min(result.objects, np.iinfo(np.uint16).max)
            self.drop(index)


class Follower:
    """Makes structures of one concept's detections."""

    def __init__(
        self, tracker: Sam3Tracker, sights: Sights, detections: Sequence[Detection], asked: Collection[int], plan: Plan
    ) -> None:
        self._tracker, self._sights, self._plan = tracker, sights, plan
        self._detections, self._asked = detections, asked
        self._on: dict[int, list[int]] = {}
        for number, detection in enumerate(detections):
            self._on.setdefault(detection.index, []).append(number)
        self._owner: dict[int, int] = {}

    def run(self, result: Followed, body: Body) -> None:
        """Follow every structure, the likeliest first, into `result`."""
        for number in sorted(range(len(self._detections)), key=lambda n: self._detections[n].rank):
            seed = self._detections[number]
            if seed.score < self._plan.found:
                break
            result.saw(seed.index, seed.score)
            if number in self._owner:
                continue
            self._take(body, [number], result.objects)
            if result.objects < self._plan.most:
                ends = {step: self._outwards(body, seed.index, step, result.objects) for step in (1, -1)}
                for step, marks in ends.items():
                    if len(marks) > 1:
                        self._back(body, marks, -step)
            body.settle(result)

    def _outwards(self, body: Body, start: int, step: int, name: int) -> list[int]:
        """Follow from slice `start` to where the structure ends.

        Returns:
            The slices on which the detector saw it, `start` first.
        """
        bank, marks = self._bank(body, start), [start]
        unseen = gone = 0
        doubtful: list[int] = []  # slices from one on which the detector did not see it
        for index in range(start + step, len(self._sights) if step > 0 else -1, step):
            found = self._tracker.step(self._sights[index], bank, index)
            plane, weight = _probability(found)
            inside = plane >= 0.5
            gone = 0 if inside.any() else gone + 1
            if gone == self._plan.gone:
                break
            matches = self._matches(index, inside, name)
            if matches is None:
                break
            unseen = 0 if matches else unseen + (index in self._asked)
            if unseen == self._plan.unseen:
                break
            doubtful = [*doubtful, index] if unseen else []
            if not gone:
                body.add(index, plane, weight)
            if matches:
                self._take(body, matches, name)
                self._mark(bank, body, index)
                marks.append(index)
            else:
                bank.add(index, found.memory)
        for index in doubtful:
            body.drop(index)
        return marks

    def _back(self, body: Body, marks: list[int], step: int) -> None:
        """Follow from the last of some marked slices towards the first."""
        bank = self._bank(body, marks[-1])
        for index in range(marks[-1] + step, marks[0], step):
            found = self._tracker.step(self._sights[index], bank, index)
            plane, weight = _probability(found)
            if (plane >= 0.5).any():  # a way that has lost the structure has no say
                body.add(index, plane, weight)
            if index in marks:
                self._mark(bank, body, index)
            else:
                bank.add(index, found.memory)

    def _matches(self, index: int, inside: NDArray[np.bool_], name: int) -> list[int] | None:
        """Detections on a slice that are of the structure; None where it has run into one that was there first."""
        mine = []
        for number in self._on.get(index, []):
            iou, share = self._detections[number].overlap(inside)
            if self._owner.get(number, name) != name:
                if iou >= SAME:
                    return None
            elif iou >= self._plan.match or share >= SAME:
                mine.append(number)
        return mine

    def _take(self, body: Body, numbers: Sequence[int], name: int) -> None:
        """Detections on one slice become part of the structure."""
        parts = [self._detections[number] for number in numbers]
        whole = np.maximum.reduce([part.plane() for part in parts])
        body.add(parts[0].index, whole, max(part.score for part in parts))
        self._owner.update(dict.fromkeys(numbers, name))

    def _bank(self, body: Body, index: int) -> Bank:
        bank = self._tracker.bank(len(self._sights))
        self._mark(bank, body, index)
        return bank

    def _mark(self, bank: Bank, body: Body, index: int) -> None:
        bank.mark(index, self._tracker.start(self._sights[index], torch.from_numpy(body.mean(index))))


def _probability(found: Tracked) -> tuple[NDArray[np.float32], float]:
    """The mask as probabilities (h, w), and how sure it is that there is one."""
    return found.logits.sigmoid().cpu().numpy(), float(torch.tensor(found.presence).sigmoid())
