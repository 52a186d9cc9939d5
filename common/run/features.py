"""Features of a frozen backbone, computed once and kept: the heads then train on them in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data.rows import Samples, make_loader
from ..images.files import BadSampleError
from ..model.hierarchy import Hierarchy
from ..model.modeling import LabelTreeModel
from ..system.files import atomic_write
from .processes import local_main_first


class FeatureRows(list):
    """Features (rows) of (views, channels), NaN where an image does not decode, in the place of an image's rows."""

    def encoded(self, indices: Sequence[int]) -> list[None]:
        """There is nothing to be read."""
        return [None] * len(indices)

    def apply(self, transform: Any, index: int, source: Any) -> torch.Tensor:
        """(channels, 1, 1): one of the views, drawn as augmentation is."""
        found = torch.from_numpy(self[index][int(torch.randint(len(self[index]), ()))])
        if found.isnan().any():
            raise BadSampleError(f"{self.describe(index)}: it does not decode")
        return found[:, None, None]


@torch.no_grad()
def features_once(
    args: Any, accelerator: Accelerator, model: LabelTreeModel, normalize: Any, *loaders: DataLoader
) -> Iterator[DataLoader]:
    """Loaders of features (batch, channels, 1, 1) instead of images; what ``--cache_features`` lacks is computed.

    Files are named by a hash of weights and pixels: images are decoded at each start, but no feature is an old one.
    The first loader's have ``--feature_views``; a single one is as the last loader shows images.
    """
    encoder, folder = model.backbone.eval(), Path(args.cache_features)
    weights = xxhash.xxh3_128(f"{accelerator.mixed_precision} {model.config.backbone}".encode())
    for value in encoder.state_dict().values():
        weights.update(value.cpu().numpy())
    folder.mkdir(parents=True, exist_ok=True)
    for loader, views in zip(loaders, (args.feature_views, 1), strict=True):
        samples = loader.dataset
        transform = (loaders[-1].dataset if views == 1 else samples).transform
        shown = Samples(samples.images, samples.rows, transform, None, samples.seed, "drop")
        features = np.full((len(samples.images), views, encoder.num_features), np.nan, np.float32)
        size = 16 if accelerator.device.type == "cpu" else 64  # there large activations cost page faults
        parts = torch.arange(len(shown)).split(size)
        keys = [[(view, index) for index in part.tolist()] for view in range(views) for part in parts]
        with local_main_first(accelerator):
            for part, batch in zip(keys, make_loader(shown, keys, loader.num_workers, False), strict=True):
                if batch["pixels"] is None:
                    continue
                digest = weights.copy()
                digest.update(batch["pixels"].contiguous().numpy())
                file = folder / f"{digest.hexdigest()}.npy"
                if not file.is_file():
                    with accelerator.autocast():
                        made = encoder(normalize(batch["pixels"].to(accelerator.device)))
                    with atomic_write(file, "wb") as target:
                        np.save(target, made.float().cpu().numpy())
                features[batch["rows"], part[0][0]] = np.load(file)
        rows = FeatureRows(features)
        rows.describe = samples.images.describe
        again = Samples(rows, samples.rows, None, samples.labels, samples.seed, samples.on_bad_sample)
        yield make_loader(again, loader.batch_sampler, 0, False)


def without_training(train: Samples, other: Samples, hierarchy: Hierarchy) -> str:
    """What features say by themselves, in words: accuracy of every level by neighbours' vote and by nearest mean."""
    from sklearn.neighbors import KNeighborsClassifier, NearestCentroid  # takes a second

    found = []
    for level, name in enumerate(hierarchy.levels):
        known = []
        for part in (train, other):
            features, labels = np.stack([part.images[row][0] for row in part.rows]), part.labels[part.rows, level]
            used = (labels >= 0) & ~np.isnan(features).any(1)
            known.append((features[used] / np.linalg.norm(features[used], axis=1, keepdims=True), labels[used]))
        judges = KNeighborsClassifier(min(5, len(known[0][1]))), NearestCentroid()
        right = [100 * judge.fit(*known[0]).score(*known[1]) for judge in judges]
        found.append("{} {:.1f} / {:.1f}".format(name, *right))
    return f"{', '.join(found)} % right by five nearest neighbours / by nearest class mean"
