"""Which folders of an output folder are checkpoints, what they are called, and which link names the latest."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from .folder import MANIFEST, looks_complete

logger = logging.getLogger(__name__)

At = Callable[[str], None]

# What is under way hides behind a dot, so that nothing half-done ever looks like a checkpoint:
# .<name>.incomplete-<pid>-<random> is being written, .replaced was moved aside for a new folder of the same name,
# .deleted is being deleted, .temporary is a link about to replace the one of that name.
HIDDEN = re.compile(r"\.(.+)\.(incomplete|replaced|deleted|temporary)-\d+-[0-9a-f]+")
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def hidden(path: Path, kind: str) -> Path:
    """A new hidden name beside ``path``; ``kind`` is one of those in ``HIDDEN``."""
    return path.with_name(f".{path.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}")


def remove(path: Path) -> None:
    """Delete a folder, file or link, and only warn if that fails: a rest does no harm."""
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s could not be deleted: %s", path, error)


class Layout:
    """Checkpoints as ``checkpoint-<step>`` and a relative link ``latest``: what runs use outside the ISC."""

    link_name = "latest"
    pattern = re.compile(r"checkpoint-(\d{8,})")
    prunes = True
    """Whether old folders are deleted."""

    # ---- names

    def target(self, root: Path, step: int, force: bool) -> Path:
        """The folder for a new checkpoint; ``force`` asks to keep it for good, where the layout can."""
        return root / f"checkpoint-{step:08d}"

    def leftovers(self, root: Path) -> list[Path]:
        """Folders that are known to be of no use once the save under way is complete."""
        return []

    def folders(self, root: Path) -> list[Path]:
        """All that is named like a checkpoint, and what was moved aside for a replacement that never came."""
        names = _names(root)
        found = [root / name for name in names if self.pattern.fullmatch(name)]
        moved = ((root / name, match) for name in names if (match := HIDDEN.fullmatch(name)))
        for path, match in moved:
            if match[2] == "replaced" and self.pattern.fullmatch(match[1]) and match[1] not in names:
                found.append(path)
        return found

    # ---- the link

    def linked(self, root: Path) -> Path | None:
        """The folder that the link names, whether it exists or not; None without a link.

        A folder of that name beside the link goes first: where an output folder was moved or copied, an absolute
        target is gone, or is the original's.
        """
        link = root / self.link_name
        if not link.is_symlink():
            return link if (link / MANIFEST).is_file() else None  # a copy that followed links
        target = Path(os.readlink(link))
        beside = root / target.name
        return beside if beside.exists() or not target.is_absolute() else target

    def link_target(self, path: Path) -> str:
        """What the link to a folder beside it says."""
        return path.name

    def link(self, path: Path, at: At) -> None:
        """Let the link name ``path``, in one step; file systems without links do without."""
        link = path.with_name(self.link_name)
        temporary = hidden(link, "temporary")
        try:
            os.symlink(self.link_target(path), temporary)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            logger.warning("%s cannot be made: this file system has no links.", link)
            return
        at("temporary link")
        if link.is_dir() and not link.is_symlink():
            aside = link.with_name(f"{link.name}.{secrets.token_hex(4)}")
            logger.warning("%s is a folder instead of a link; it is now %s.", link, aside.name)
            os.rename(link, aside)
        os.replace(temporary, link)

    def protected(self, root: Path) -> set[Path]:
        """Folders that any link in ``root`` names, such as one to the best: never deleted."""
        links = (root / name for name in _names(root) if (root / name).is_symlink() and not HIDDEN.fullmatch(name))
        return {root / Path(os.readlink(link)).name for link in links}

    # ---- after a crash

    def sweep(self, root: Path) -> None:
        """Remove what dead runs left half-done, and put back what they moved aside and did not replace."""
        for name in _names(root):
            match = HIDDEN.fullmatch(name)
            if match is None or not (self.pattern.fullmatch(match[1]) or match[1] == self.link_name):
                continue
            if match[2] == "replaced" and not os.path.lexists(root / match[1]):
                os.rename(root / name, root / match[1])
            else:
                remove(root / name)


class ArtifactLayout(Layout):
    """The artifact protocol of Strong Compute's ISC, as its package cycling_utils reads and writes it.

    ``AtomicDirectory_checkpoint_<n>`` and ``..._<n>_force``; n is one more than that of the folder which the link
    ``AtomicDirectory.latest_checkpoint`` names. What has a higher n than that one was never finished. The platform
    ships the linked folder and the forced ones, and deletes the others itself after that.

    None is deleted here, because the platform may be shipping it just then (its documentation asks for
    ``keep_last=-1``).

    Args:
        relative_link: let the link say a name instead of an absolute path, which is what cycling_utils writes.
    """

    link_name = "AtomicDirectory.latest_checkpoint"
    pattern = re.compile(r"AtomicDirectory_checkpoint_(\d+)(_force)?")

    prunes = False

    def __init__(self, relative_link: bool = False) -> None:
        self.relative_link = relative_link

    def target(self, root: Path, step: int, force: bool) -> Path:
        useless = self.leftovers(root)
        paths = [path for path in (*self.folders(root), self.linked(root)) if path and path not in useless]
        taken = [self._index(path) for path in paths]
        return root / f"AtomicDirectory_checkpoint_{max(taken, default=-1) + 1}{'_force' if force else ''}"

    def leftovers(self, root: Path) -> list[Path]:
        linked, folders = self.linked(root), self.folders(root)
        if linked not in folders:
            return []
        above = [path for path in folders if self._index(path) > self._index(linked)]
        # Above the linked one, a complete forced folder is somebody's best model: its number is skipped.
        return [path for path in above if not (path.name.endswith("_force") and looks_complete(path))]

    def link_target(self, path: Path) -> str:
        return path.name if self.relative_link else str(path.absolute())

    def sweep(self, root: Path) -> None:
        super().sweep(root)
        # Their own saver makes its new link under this name, and after a crash fails on it for ever.
        stale = root / f"{self.link_name}_temp"
        if stale.is_symlink():
            remove(stale)

    def _index(self, path: Path) -> int:
        match = self.pattern.search(path.name)
        return int(match[1]) if match else -1


def _names(root: Path) -> list[str]:
    try:
        return sorted(os.listdir(root))
    except FileNotFoundError:
        return []
