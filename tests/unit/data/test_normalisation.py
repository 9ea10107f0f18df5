"""Policies give the published numbers, and what nnU-Net gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lexitome.data.dataset import Case
from lexitome.data.intensity import View
from lexitome.data.normalisation import Normalisation, fingerprint
from lexitome.errors import InputError
from lexitome.io import from_array
from lexitome.volume import Volume


def ct(values: np.ndarray) -> Volume:
    return from_array(values.astype(np.float32), spacing=(1.0, 1.0, 3.0), modality="CT")


VALUES = np.linspace(-1500, 1500, 2 * 5 * 6).reshape(2, 5, 6)


def test_hounsfield_units_as_meddinov3_was_pretrained_on() -> None:
    found = Normalisation("hu_meddino").prepare(ct(VALUES), View())
    assert found.dtype == np.float16 and found.shape == (2, 1, 5, 6)
    expected = (np.clip(VALUES, -1000, 1000) - 65.1084) / 178.0166
    assert np.allclose(found[:, 0], expected, atol=4e-3)


@pytest.mark.slow
@pytest.mark.parity
def test_ct_and_zscore_as_nnunet_does_them() -> None:
    schemes = pytest.importorskip("nnunetv2.preprocessing.normalization.default_normalization_schemes")
    numbers = (-200.0, 300.0, 40.0, 60.0)
    names = ("percentile_00_5", "percentile_99_5", "mean", "std")
    theirs = schemes.CTNormalization(False, dict(zip(names, numbers, strict=True))).run(VALUES.copy())
    ours = Normalisation("nnunet_ct", numbers).prepare(ct(VALUES), View())
    assert np.allclose(ours[:, 0], theirs, atol=4e-3)
    theirs = schemes.ZScoreNormalization(False, {}).run(VALUES.copy())
    assert np.allclose(Normalisation("zscore").prepare(ct(VALUES), View())[:, 0], theirs, atol=2e-3)


def test_pictures_by_the_numbers_of_imagenet() -> None:
    policy = Normalisation("imagenet", window=(0.0, 255.0))
    stored = policy.prepare(ct(np.arange(60).reshape(2, 5, 6)), View())
    assert stored.dtype == np.uint8 and stored.shape == (2, 1, 5, 6)
    shown = policy.finish(torch.from_numpy(stored), is_8_bit=True)
    expected = (np.arange(60).reshape(2, 1, 5, 6) / 255 - [[[[0.485]], [[0.456]], [[0.406]]]]) / [
        [[[0.229]], [[0.224]], [[0.225]]]
    ]
    assert shown.shape == (2, 3, 5, 6) and np.allclose(shown, expected, atol=1e-5)


def test_8_bit_pictures_are_standardised_one_by_one_and_the_rest_only_gets_three_channels() -> None:
    policy, picture = Normalisation("zscore"), torch.rand(2, 3, 4, 8, 8) * 255
    shown = policy.finish(picture, is_8_bit=True)
    assert torch.allclose(shown.mean((2, 3, 4)), torch.zeros(2, 3), atol=1e-5)
    assert torch.allclose(shown.std((2, 3, 4)), torch.ones(2, 3), atol=1e-4)
    grey = torch.randn(2, 1, 8, 8).half()
    assert torch.equal(policy.finish(grey, is_8_bit=False), grey.float().expand(-1, 3, -1, -1))


class Drawn:
    """Content of a case that is in memory."""

    files = ()

    def __init__(self, volume: Volume, labels: np.ndarray) -> None:
        self._volume, self._labels = volume, labels

    def volume(self) -> Volume:
        return self._volume

    def codes(self, grid: tuple[int, int, int]) -> np.ndarray:
        return self._labels

    def instances(self, grid: object, target: object) -> None:
        return None


def test_numbers_of_a_dataset_are_those_of_its_foreground() -> None:
    rng, inside, cases = np.random.default_rng(0), [], []
    for number in range(3):
        values, labels = rng.normal(40, 30, (4, 20, 20)), rng.choice(np.array([0, 1, 2, 255], np.uint8), (4, 20, 20))
        inside.append(values.astype(np.float32)[(labels == 1) | (labels == 2)])
        cases.append(Case(f"c{number}", f"c{number}", "train", Drawn(ct(values), labels)))
    values = np.concatenate(inside)
    expected = (*np.percentile(values, (0.5, 99.5)), values.mean(), values.std())
    assert fingerprint(cases) == pytest.approx(expected, rel=1e-4)
    empty = Case("e", "e", "train", Drawn(ct(VALUES), np.zeros((2, 5, 6), np.uint8)))
    with pytest.raises(InputError, match="no voxel is annotated"):
        fingerprint([empty])


def test_numbers_and_policies_belong_together_and_pictures_have_no_hounsfield_units() -> None:
    for policy, numbers in (("nnunet_ct", None), ("zscore", (0.0, 1.0, 0.0, 1.0))):
        with pytest.raises(InputError, match="low, high, mean and deviation"):
            Normalisation(policy, numbers)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no Hounsfield units"):
        Normalisation("hu_meddino").prepare(from_array(np.zeros((8, 8), np.uint8)), View())
