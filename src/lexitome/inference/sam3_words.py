"""What SAM3's text encoder says of words (needs torch): computed once, then remembered, in memory and on disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lexitome.data.feature_cache import FeatureCache
from lexitome.models.sam3.network import Sam3Net
from lexitome.models.sam3.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Words:
    """
    Args:
        weights: hash of the weights, which with their dtype and the token ids decide the features.
        cache: None for no memory on disk.
    """

    net: Sam3Net
    tokens: Tokens
    weights: Callable[[], str]
    cache: FeatureCache | None = None
    _known: dict[str, Tensor] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cut(self, text: str) -> str:
        """The end of a text that is not read."""
        return self.tokens.cut(text)

    def features(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(Q, T, C) in the dtype of the network, and which are tokens (Q, T) bool; T is as long as the longest text."""
        with self._lock:
            for text in texts:
                if text not in self._known:
                    self._known[text] = self._recall(text)
            found = [self._known[text] for text in texts]
        longest = max(len(each) for each in found)
        features = found[0].new_zeros(len(found), longest, found[0].shape[-1])
        mask = torch.zeros(len(found), longest, dtype=torch.bool, device=features.device)
        for row, each in enumerate(found):
            features[row, : len(each)] = each
            mask[row, : len(each)] = True
        return features, mask

    @torch.inference_mode()
    def _recall(self, text: str) -> Tensor:
        """(T, C) of one text."""
        ids, mask = self.tokens.encode([text])
        ids, mask = ids[:, : int(mask.sum())], mask[:, : int(mask.sum())]
        weight = self.net.model.text_projection.weight
        if self.cache is None:
            return self.net.text(ids.to(weight.device), mask.to(weight.device))[0]
        dtypes = f"{weight.dtype} {self.net.dtype}"
        key = (self.weights(), dtypes, " ".join(map(str, ids[0].tolist())))
        stored = self.cache.get(key)
        if stored is not None and stored.shape == (ids.shape[1], weight.shape[0]):
            return torch.from_numpy(stored).to(weight.device, self.net.dtype)
        found = self.net.text(ids.to(weight.device), mask.to(weight.device))[0]
        self.cache.put(key, found.float().cpu().numpy())
        return found
