"""What is stored with the weights of a SAM3, besides the weights: how pictures are made, how answers are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

Policy = Literal["best", "union", "semantic", "semantic-presence"]
"""Which of SAM3's answers is the mask:

    best                the object with the highest score, as Medical SAM3 evaluates pictures
    union               all objects whose score is high enough, as it evaluates volumes
    semantic            the semantic head, whatever the presence, as transformers' post-processing
    semantic-presence   the semantic head, where the presence token says that there is something at all

The score of an object is its probability times that of presence. Presence gates the semantic head and does not multiply
it: a product would thin the mask of whatever is doubtful.
"""

POLICIES: tuple[str, ...] = get_args(Policy)


@dataclass(frozen=True)
class Settings:
    """
    Args:
        policy: see `Policy`.
        keep: an object counts from this score. Official demo 0.5, transformers 0.3, Medical SAM3 0.1.
        present: the target is there from this probability of the presence token.
        geometry_cls: as `network.Sam3Net` takes it. The released weights were trained with it.
        window: CT window (low, high in HU).
        windows: other CT windows, by the words that are asked.
        stacked: whether the channels of a volume's slice are the slice before it, itself and the one after it.
        trained: concepts it was taught, by name, and the words each was taught with; empty where nobody knows, as for a
            model for any words.
        trained_on: names of datasets, empty where unknown.
        synonyms: how many further wordings of a known concept are asked; the surest answers.
    """

    policy: Policy = "semantic-presence"
    keep: float = 0.3
    present: float = 0.5
    geometry_cls: bool = True
    window: tuple[float, float] = (-125.0, 275.0)
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    stacked: bool = False
    trained: Mapping[str, str] = field(default_factory=dict)
    trained_on: tuple[str, ...] = ()
    synonyms: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(POLICIES)}, not {self.policy!r}")
        for name in ("keep", "present"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")

    @staticmethod
    def read(stored: Mapping[str, Any]) -> Settings:
        """From what was stored; keys that belong to others are left alone.

        Raises:
            ValueError: a value that cannot be.
        """
        own = {each.name for each in fields(Settings)}
        values = {name: value for name, value in stored.items() if name in own}
        try:
            if "window" in values:
                values["window"] = _window(values["window"])
            if "trained_on" in values:
                values["trained_on"] = tuple(map(str, values["trained_on"]))
            if "windows" in values:
                values["windows"] = {str(words): _window(pair) for words, pair in dict(values["windows"]).items()}
            return Settings(**values)
        except TypeError as error:
            raise ValueError(f"settings of another shape ({error})") from error

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _window(pair: Any) -> tuple[float, float]:
    low, high = map(float, pair)
    if not low < high:
        raise ValueError(f"a window must rise, not {low} to {high}")
    return low, high
