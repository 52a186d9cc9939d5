"""Which of many images are copies of one another.

Candidates are the nearest by numbers that turning does not change; among them the turn that fits best is found.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .describe import WAY_BACK, all_turned, unit, unturned, whitening

LOWEST = 11  # frequencies that the search looks at; finer ones find no more
NEIGHBOURS = 64  # that an image is compared with
BACKGROUND = 3  # the fourth nearest: copies are rarely more than three
LEAST_BACKGROUND = 0.7  # where there are fewer images than that, or nothing else is like it
CERTAIN = 5.5  # closeness of a copy whatever else there is; a correlation of 0.996
LEAST = 1.5  # closeness below which nothing is a copy; a correlation of 0.78
CONFIDENCE = 6.0
BLOCK = 256  # images at once
LARGEST_CLUSTER = 100  # of which all pairs are looked at


class Pictures:
    """Spectra (n, 16, 16) of different images, to find copies among; ``seed`` draws a sample that sets weights."""

    def __init__(self, spectra: np.ndarray, seed: int = 0) -> None:
        sample = np.random.default_rng(seed).permutation(len(spectra))[:20_000]
        self.spectra, self.weights = spectra, whitening(spectra[sample].astype(np.float32))

    def closeness(self, rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How close images (m,) are to others (m, k), turned as fits best, and the number of that turn, both (m, k).

        With r the correlation of whitened frequencies, the closeness is -log(1 - r).
        """
        turned, known = all_turned(self.spectra[rows] * self.weights), self.spectra[others] * self.weights
        turned, known = (unit(array.reshape(*array.shape[:2], self.weights.size)) for array in (turned, known))
        correlation = np.einsum("qvd,qnd->qnv", turned, known, optimize=True)
        return -np.log(1 - np.clip(correlation.max(2), 0, 0.99999)), correlation.argmax(2)

    def copies(self, confidence: float = CONFIDENCE) -> pd.DataFrame:
        """Pairs of images that show the same picture.

        The confidence of a pair is its closeness + 2 * (closeness - background), the background being the closeness
        of the fourth nearest image, or of one after it behind a drop that shows that all nearer ones are copies.
        Look-alikes (plankton on white, digits) have many images nearly as close, while a copy stands out, even one
        that has lost much to compression. A closeness of :data:`CERTAIN` is enough by itself.

        Args:
            confidence: that a pair must have.

        Returns:
            A row per pair: ``first`` and ``second``, the smaller number; ``transform``, the number in TRANSFORMS that
            turns the first into the second; ``confidence``.
        """
        found, count = [], len(self.spectra)
        data = torch.from_numpy(unturned(self.spectra[:, :LOWEST, :LOWEST] * self.weights[:LOWEST, :LOWEST]))
        for rows in np.split(np.arange(count), range(BLOCK, count, BLOCK)):
            near = (data[rows] @ data.T).topk(min(NEIGHBOURS + 1, count), dim=1).indices.numpy()
            closeness, transform = self.closeness(rows, near)
            closeness[near == rows[:, None]] = np.inf  # itself, which then comes first and is left out
            order = np.argsort(-closeness, 1, kind="stable")[:, 1:]
            near, closeness, transform = (np.take_along_axis(x, order, 1) for x in (near, closeness, transform))
            missing = max(0, BACKGROUND + 1 - closeness.shape[1])
            level = np.maximum(np.pad(closeness, ((0, 0), (0, missing))), LEAST_BACKGROUND)[:, BACKGROUND:]
            drops = 3 * level[:, :-1] - 2 * level[:, 1:] >= confidence
            background = np.where(drops, level[:, 1:], level[:, :1]).min(1, initial=np.inf, keepdims=True)
            sure = 3 * closeness - 2 * np.minimum(background, level[:, :1])
            query, place = np.nonzero((closeness >= LEAST) & ((closeness >= CERTAIN) | (sure >= confidence)))
            pairs = {"first": rows[query], "second": near[query, place], "transform": transform[query, place]}
            found.append(pd.DataFrame({**pairs, "confidence": sure[query, place]}))
        return in_order(pd.concat(found))

    def others_of_clusters(self, pairs: pd.DataFrame) -> pd.DataFrame:
        """Pairs that are not among these, but whose images are linked by them; of clusters that are not too large."""
        clusters = pd.Series(np.arange(len(self.spectra))).groupby(linked(pairs, len(self.spectra)))
        members = [rows for _, rows in clusters if 2 < len(rows) <= LARGEST_CLUSTER]
        known = set(zip(pairs["first"], pairs["second"], strict=True))
        more = [(b, a) for rows in members for a, b in combinations(rows, 2) if (b, a) not in known]
        first, second = np.array(more, dtype=np.int64).reshape(-1, 2).T
        parts = np.split(np.arange(len(more)), range(BLOCK, len(more), BLOCK))
        found = [self.closeness(first[part], second[part, None]) for part in parts]
        closeness, transform = (np.concatenate(column)[:, 0] for column in zip(*found, strict=True))
        sure = 3 * closeness - 2 * LEAST_BACKGROUND
        return pd.DataFrame({"first": first, "second": second, "transform": transform, "confidence": sure})


def in_order(pairs: pd.DataFrame) -> pd.DataFrame:
    """Each pair once, the surest way, with the larger number as ``first``."""
    swap = pairs["first"] < pairs["second"]
    back = pairs.assign(first=pairs["second"], second=pairs["first"], transform=WAY_BACK[pairs["transform"]])
    return pairs.where(~swap, back).sort_values("confidence", ascending=False).drop_duplicates(["first", "second"])


def linked(pairs: pd.DataFrame, count: int) -> np.ndarray:
    """int (count,): numbers of the clusters that pairs join."""
    links = coo_array((np.ones(len(pairs)), (pairs["first"], pairs["second"])), shape=(count, count))
    return connected_components(links, directed=False)[1]
