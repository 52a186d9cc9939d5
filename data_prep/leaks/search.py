"""Which images look alike: neighbours in cells of similar images instead of all pairs, and which of them are copies.

An index keeps its vectors in cells (k-means), and a query looks into the few cells whose centres are nearest, so that
the work grows with n * sqrt(n) rather than n * n. Up to :data:`ONE_CELL` vectors there is one cell, and the search is
exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .describe import all_turned, vectors, whitening

SEARCH_FREQUENCIES = 11  # finer ones find no more, and take longer
ONE_CELL = 8192
PROBES = 8  # cells a query looks into
NEIGHBOURS = 24  # that a query is compared with
BACKGROUND = 3  # the fourth nearest: copies are rarely more than three
LEAST_BACKGROUND = 0.7  # where there are fewer images than that, or nothing else is like it
CERTAIN = 5.5  # closeness of a copy whatever else there is; a correlation of 0.996
LEAST = 1.5  # closeness below which nothing is a copy; a correlation of 0.78
CONFIDENCE = 6.0
BLOCK = 512  # queries at once


@dataclass
class Matches:
    """Rows that show the same picture, one entry a pair, all arrays of one length."""

    query: np.ndarray  # int64, position in the queries
    found: np.ndarray  # int64, position in the index
    transform: np.ndarray  # int64, number in TRANSFORMS: what turns the query's image into the other
    correlation: np.ndarray  # float32, of whitened frequencies
    confidence: np.ndarray  # float32, see :func:`find_copies`


class Index:
    """float32 vectors (n, d) of length 1, for nearest neighbours by scalar product; ``seed`` is that of the cells."""

    def __init__(self, data: np.ndarray, seed: int = 0) -> None:
        num_cells = 1 if len(data) <= ONE_CELL else min(len(data) // 128, 4096)
        tensor = torch.from_numpy(data)
        self.centres = _centres(tensor, num_cells, seed)
        cells = torch.cat([(part @ self.centres.T).argmax(1) for part in tensor.split(8192)])
        self.order = torch.argsort(cells, stable=True)
        self.data = tensor[self.order]
        self.ends = torch.bincount(cells, minlength=num_cells).cumsum(0).tolist()

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The nearest for queries (m, variants, d), each counted in its best variant.

        Returns:
            Positions int64, variants int64 and products float32, all (m, k), best first; -1 and -1 where there are
            no more.
        """
        num, variants, width = queries.shape
        flat = torch.from_numpy(queries).reshape(-1, width)
        probes = min(PROBES, len(self.centres))
        near = (flat @ self.centres.T).topk(probes, dim=1).indices
        each = min(k, 16)
        products = torch.full((len(flat), probes, each), -1.0)
        positions = torch.full((len(flat), probes, each), -1, dtype=torch.int64)
        by_cell = torch.argsort(near.flatten(), stable=True)
        starts = torch.bincount(near.flatten(), minlength=len(self.centres)).cumsum(0).tolist()
        for cell, members in enumerate(by_cell.tensor_split(starts[:-1])):
            first = self.ends[cell - 1] if cell else 0
            if not len(members) or first == self.ends[cell]:
                continue
            query, probe = members // probes, members % probes
            found = (flat[query] @ self.data[first : self.ends[cell]].T).topk(
                min(each, self.ends[cell] - first), dim=1
            )
            products[query, probe, : found.values.shape[1]] = found.values
            positions[query, probe, : found.values.shape[1]] = self.order[first + found.indices]
        variant = torch.arange(variants).repeat_interleave(probes * each).expand(num, -1)
        return _best_distinct(products.view(num, -1), positions.view(num, -1), variant, k)


def _best_distinct(
    products: torch.Tensor, positions: torch.Tensor, variant: torch.Tensor, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best k of each row; an image met in several variants (a symmetric one) counts once."""
    products, order = products.topk(min(4 * k, products.shape[1]), dim=1)
    positions, variant = positions.gather(1, order), variant.gather(1, order)
    same = positions[:, :, None] == positions[:, None, :]
    again = (same & torch.ones(same.shape[1:], dtype=torch.bool).tril(-1)).any(2)
    products = products.masked_fill(again, -1)
    products, order = products.topk(min(k, products.shape[1]), dim=1)
    positions = positions.gather(1, order).masked_fill(products <= -1, -1)
    return positions.numpy(), variant.gather(1, order).numpy(), products.numpy()


def _centres(data: torch.Tensor, num_cells: int, seed: int) -> torch.Tensor:
    """Centres (cells, d) of length 1 by spherical k-means on a sample."""
    generator = torch.Generator().manual_seed(seed)
    sample = data[torch.randperm(len(data), generator=generator)[: 64 * num_cells]]
    centres = sample[:num_cells].clone()
    for _ in range(8 if num_cells > 1 else 0):
        cells = torch.cat([(part @ centres.T).argmax(1) for part in sample.split(8192)])
        sums = torch.zeros_like(centres).index_add_(0, cells, sample)
        length = sums.norm(dim=1, keepdim=True)
        centres = torch.where(length > 0, sums / length.clamp(min=1e-6), centres)
    return centres


def find_copies(
    queries: np.ndarray, index: np.ndarray | None, confidence: float = CONFIDENCE, seed: int = 0
) -> Matches:
    """Pairs of images that show the same picture.

    With r the correlation of whitened frequencies, turned in the way that fits best, the closeness of two images is
    -log(1 - r), and the confidence is closeness + 2 * (closeness - that of the query's fourth nearest image).
    Look-alikes (plankton on white, digits) have many images nearly as close, while a copy stands out, even one that
    has lost much to compression. A closeness of :data:`CERTAIN` is enough by itself: an image may have many copies.

    Args:
        queries: spectra (m, 16, 16).
        index: spectra (n, 16, 16) to find them in; ``None`` to compare the queries among themselves.
        confidence: that a pair must have.
        seed: of the search's cells.
    """
    among = index is None
    others = queries if among else index
    if not len(queries) or len(others) < 1 + among:
        return Matches(*[np.zeros(0, np.int64)] * 3, *[np.zeros(0, np.float32)] * 2)
    sample = np.random.default_rng(seed).permutation(len(others))[:20_000]
    weights = whitening(others[sample].astype(np.float32))
    table = Index(vectors(others.astype(np.float32), weights, SEARCH_FREQUENCIES), seed)
    found = []
    for start in range(0, len(queries), BLOCK):
        turned = all_turned(queries[start : start + BLOCK].astype(np.float32))
        found.append(_compare(start, turned, others, table, weights, among, confidence))
    return Matches(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _compare(
    start: int, turned: np.ndarray, others: np.ndarray, table: Index, weights: np.ndarray, among: bool, least: float
) -> tuple[np.ndarray, ...]:
    """Columns of :class:`Matches` for a block of queries (m, 8, 16, 16)."""
    positions, variant, _ = table.search(vectors(turned, weights, SEARCH_FREQUENCIES), NEIGHBOURS + among)
    rows = np.arange(len(turned))[:, None]
    fine = vectors(turned, weights, turned.shape[-1])[rows, variant]
    known = vectors(others[positions].astype(np.float32), weights, turned.shape[-1])
    correlation = np.einsum("qnd,qnd->qn", fine, known)
    itself = among & (positions == start + rows)
    correlation[(positions < 0) | itself] = 0
    closeness = -np.log(1 - np.clip(correlation, 0, 0.99999))
    background = LEAST_BACKGROUND
    if closeness.shape[1] > BACKGROUND:
        background = np.maximum(np.sort(closeness, 1)[:, -1 - BACKGROUND, None], LEAST_BACKGROUND)
    sure = 3 * closeness - 2 * background
    wanted = (positions >= 0) & (closeness >= LEAST) & ((closeness >= CERTAIN) | (sure >= least))
    if among:
        wanted &= ~itself
    query, neighbour = np.nonzero(wanted)
    pick = (query, neighbour)
    return query + start, positions[pick], variant[pick], correlation[pick], sure[pick].astype(np.float32)
