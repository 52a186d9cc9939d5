"""Trees of folders with images: which files are images, which folders are splits and classes, and what is left out.

Every script reads folders here. Splits are told by whole names of the first folders. What other programs leave behind,
and results of our own scripts, are nobody's class. Links to folders are followed inside of the root, and passed over
where they lead out of it, unless they are asked for.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from ..images.files import lies_in

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"),
    *(".jp2", ".j2k", ".avif", ".heic", ".heif", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
)
"""File name extensions of images"""

FOREIGN = {"@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db", "desktop.ini"}
"""Files and folders of other programs, beside those whose names begin with a dot"""

RESULTS = {"prediction_state.json", "run_status.json"}
"""Files by which folders are known that our scripts wrote their results into"""

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Names of folders and cells that stand for splits"""


@dataclass
class FolderImages:
    """Paths of the images below a folder, relative to it and in a fixed order; of other files; what was left out."""

    names: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def splits(self) -> dict[str, str]:
        """The split that each of the first folders stands for; empty if they are classes."""
        first = sorted({name.split(os.sep)[0] for name in self.names if os.sep in name})
        exact, likely = name_splits(first)
        if exact and len(exact) + len(likely) == len(first):
            self.notes += [f"The folder {name} is read as {split}." for name, split in likely.items()]
            return exact | likely
        if len(exact) > 1:
            others = ", ".join([name for name in first if name not in exact][:5])
            self.notes.append(
                f"The folders {' and '.join(exact)} look like splits, but {others} beside them no further one: all "
                "are read as classes. If they are splits, move the others away."
            )
        return {}


def name_splits(names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Which of some names stand for splits; and which others probably do, such as ``train_mini`` if there is no train.

    Both are from a name to ``train``, ``validation`` or ``test``.
    """
    names = list(names)
    exact = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    first = {name: SPLIT_NAMES.get(re.split("[^a-z]", name.lower())[0]) for name in names if name not in exact}
    count = Counter([*first.values(), *exact.values()])
    return exact, {name: split for name, split in first.items() if split and count[split] == 1}


def find_images(root: str | Path, outside: bool = False) -> FolderImages:
    """All images below a folder, by their endings; also behind links that lead ``outside`` of it if that is wanted."""
    root = os.path.realpath(root)
    found, foreign, elsewhere, results = FolderImages(), [], [], []
    trail = {root: (root,)}  # of each folder, the folders above it, so that links cannot lead round in circles
    for folder, folders, files in os.walk(root, followlinks=True):
        if folder != root and not RESULTS.isdisjoint(files):
            results.append(os.path.relpath(folder, root))
            folders.clear()
            continue
        below = []
        for name in sorted(folders):
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if _is_foreign(name):
                foreign.append(os.path.relpath(path, root))
            elif real in trail[folder] or not (outside or lies_in(root, path)):
                elsewhere.append(os.path.relpath(path, root))
            else:
                trail[path] = (*trail[folder], real)
                below.append(name)
        folders[:] = below
        for name in sorted(files):
            place = shown_name(os.path.relpath(os.path.join(folder, name), root))
            (found.names if is_image(name) else found.others).append(place)
    endings = Counter(os.path.splitext(name)[1].lower() or os.path.basename(name) for name in found.others)
    counted = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(10))
    told = {
        "files that are no images": counted,
        "folders of other programs": ", ".join(foreign[:10]),
        "folders of results": ", ".join(results[:10]),
        "links to folders outside of it, or back to where they are": ", ".join(elsewhere[:10]),
    }
    found.notes += [f"Left out of {root}: {what}: {which}." for what, which in told.items() if which]
    return found


def _is_foreign(name: str) -> bool:
    return name.startswith(".") or name in FOREIGN


def is_image(path: str) -> bool:
    """Whether a file is an image by its name."""
    name = os.path.basename(path)
    return name.lower().endswith(IMAGE_ENDINGS) and not _is_foreign(name)


def shown_name(path: str) -> str:
    """A path as text; of a name in no known encoding as far as it can be shown, by which no file is found."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_image_folder(root: str | Path, found: FolderImages) -> DatasetDict:
    """A data set of the images below a folder, with the column ``image``, and ``label`` where they lie in classes.

    The class is the folder that an image lies in. Images that lie less deep or deeper than most are left out.
    """
    splits = found.splits()
    frame = pd.DataFrame({"name": found.names})
    frame["split"] = [splits.get(name.split(os.sep)[0], "train") for name in found.names]
    frame["label"] = [os.path.basename(os.path.dirname(name)) for name in found.names]
    depths = frame["name"].str.count(os.sep) - bool(splits)
    depth = depths.mode()[0]
    odd, frame = frame[depths != depth], frame[depths == depth]
    if len(odd):
        told = f"{len(odd)} images that do not lie {depth} folders deep, such as {odd['name'].iloc[0]}"
        found.notes.append(f"Left out of {root}: {told}.")
    label = {"label": ClassLabel(names=sorted(set(frame["label"])))} if depth else {}
    features = Features({"image": Image(), **label})
    data = DatasetDict()
    for split, rows in frame.groupby("split", sort=False):
        paths = [os.path.join(os.path.realpath(root), name) for name in rows["name"]]
        cells = {"image": paths, "label": rows["label"].tolist()}
        data[split] = Dataset.from_dict({name: cells[name] for name in features}, features)
    return data
