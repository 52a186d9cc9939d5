"""Objects of rare classes pasted from one image into another (Ghiasi et al., CVPR 2021)."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from .masks import MaskedImageRows


class CopyPaste:
    """Image and mask -> the same, some with an object of another image; draws from torch's global generator.

    The object's class is drawn evenly from all but the commonest, its image evenly from those that have the class, and
    the object evenly from what hangs together there. It gets a random place; if it is too large, its upper left part.
    ``donors`` are row numbers of images that objects may come from, int64 (donors, leaves) ``pixels`` of each class.
    """

    def __init__(self, rows: MaskedImageRows, probability: float, donors: np.ndarray, pixels: np.ndarray) -> None:
        self.rows, self.probability = rows, probability
        rare = np.setdiff1d(np.flatnonzero(pixels.any(0)), pixels.sum(0).argmax())
        self.donors = [(int(leaf), donors[pixels[:, leaf] > 0]) for leaf in rare]

    def __call__(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.donors or torch.rand(()) >= self.probability:
            return image, mask
        leaf, donors = self.donors[torch.randint(len(self.donors), ())]
        row = int(donors[torch.randint(len(donors), ())])
        other, other_mask = self.rows.load(row, self.rows.encoded([row])[0])
        objects, count = ndimage.label(other_mask.numpy() == leaf, np.ones((3, 3)))
        chosen = 1 + int(torch.randint(count, ()))
        source, place = [], []
        for part, side in zip(ndimage.find_objects(objects)[chosen - 1], mask.shape, strict=True):
            size = min(part.stop - part.start, side)
            start = int(torch.randint(side - size + 1, ()))
            source.append(slice(part.start, part.start + size))
            place.append(slice(start, start + size))
        shape = torch.from_numpy(objects[*source] == chosen)
        image, mask = image.clone(), mask.clone()
        image[:, *place] = torch.where(shape, other[:, *source], image[:, *place])
        mask[*place] = torch.where(shape, other_mask[*source], mask[*place])
        return image, mask
