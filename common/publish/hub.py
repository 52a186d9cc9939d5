"""Uploading a run to the Hub: checked before training, retried, and never able to lose what is on the disk.

A token comes from ``HF_TOKEN`` or ``hf auth login`` only. It is read by huggingface_hub when it is needed; nothing
here keeps it, so nothing can write it down.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import shutil
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import count
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars

from ..model.encoders import first_line
from .card import CARD_FILE, MARKER
from .models import MODEL_FILES

logger = logging.getLogger(__name__)

PUBLISHED = (CARD_FILE, *MODEL_FILES, "*.py", "hierarchy.json", "all_results.json", "report.html", "plots/*")
"""What goes to the Hub; never checkpoints, options or lists of files, which name things of this machine"""

STAGING = ".upload"


class Publisher:
    """Uploads an output folder's model to one repository; on the main process only.

    Args:
        folder: the output folder.
        repo_id: of the repository, with or without its owner; the folder's name by default.
        private: whether a new repository is.
    """

    delays = (2.0, 10.0, 30.0)  # seconds to wait before each new try

    def __init__(self, folder: str | Path, repo_id: str | None, private: bool) -> None:
        self.folder, self.private = Path(folder), private
        self.repo_id = repo_id or self.folder.resolve().name
        self.api = HfApi()
        self._numbers = count()
        self._waiting: deque[tuple[Path, str]] = deque()  # at most one
        self._uploading = threading.Lock()

    def check(self, license: str | None = None) -> str:
        """Create the repository if need be, before hours of training; returns its full name.

        Raises:
            ValueError: if nobody is logged in, the Hub cannot be reached, the repository may not be written to, or
                the Hub would refuse the card because it does not know the licence.
        """
        if is_offline_mode():
            raise ValueError("--push_to_hub needs the Hub, but HF_HUB_OFFLINE is set.")
        if not get_token():
            raise ValueError("--push_to_hub: nobody is logged in. Run `hf auth login`, or set HF_TOKEN.")
        try:
            self.repo_id = self.api.create_repo(self.repo_id, private=self.private or None, exist_ok=True).repo_id
            self.api.auth_check(self.repo_id, write=True)
        except Exception as error:  # of the network, the Hub, or the name
            raise ValueError(
                f"--push_to_hub: {self.repo_id} on {self.api.endpoint} cannot be written to: {first_line(error)}."
            ) from error
        try:
            if license:
                ModelCard(f"---\n{ModelCardData(license=license).to_yaml()}\n---\n").validate()
        except ValueError as error:
            raise ValueError(f"--license {license} is unknown to the Hub: {first_line(error)}.") from error
        except OSError as error:  # then the upload will fail, with a message of its own
            logger.debug("the licence could not be checked: %s", first_line(error))
        return self.repo_id

    @property
    def url(self) -> str:
        """Of the repository's page."""
        return f"{self.api.endpoint}/{self.repo_id}"

    # ---- uploading

    def start_upload(self, message: str) -> None:
        """Upload what there is now, in the background; if an upload is under way, after it, and only the newest."""
        disable_progress_bars()  # they would draw over that of the training
        with suppress(IndexError):
            shutil.rmtree(self._waiting.pop()[0])  # this one replaces it
        self._waiting.append((self._stage(), message))
        # Daemons, unlike the threads of HfApi.run_as_future: a run that is stopped does not wait for the network.
        threading.Thread(target=self._upload_waiting, daemon=True).start()

    def _upload_waiting(self) -> None:
        with self._uploading, suppress(IndexError):
            staged, message = self._waiting.pop()
            if error := self._upload(staged, message):  # the next upload, or the last one, tries again
                logger.warning("An upload to %s failed: %s. Training continues.", self.repo_id, error)

    def finish(self, message: str) -> bool:
        """Upload everything, after what is still under way; whether it is there now.

        A failure is a warning with the command to upload by hand; it does not end the run with an error.
        """
        self._waiting.clear()
        with self._uploading:
            error = self._upload(self._stage(), message)
            shutil.rmtree(self.folder / STAGING, ignore_errors=True)
        if error:
            patterns = " ".join(f"--include '{pattern}'" for pattern in PUBLISHED)
            there = f"Everything is in {self.folder}; upload it with"
            command = f"hf upload {self.repo_id} {self.folder} . {patterns}"
            logger.warning("The upload to %s failed: %s. %s\n  %s", self.repo_id, error, there, command)
        return not error

    def _stage(self) -> Path:
        """Freeze the files as they are: links, because each file of the folder is replaced, never changed."""
        target = self.folder / STAGING / str(next(self._numbers))
        shutil.rmtree(target, ignore_errors=True)
        for file in (file for pattern in PUBLISHED for file in self.folder.glob(pattern)):
            copy = target / file.relative_to(self.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, copy)
            except OSError:  # a file system without hard links
                shutil.copyfile(file, copy)
        return target

    def _upload(self, staged: Path, message: str) -> str | None:
        """Upload a staged folder, and remove it; returns what went wrong in the end, if anything did."""
        try:
            for delay in (*self.delays, None):
                try:
                    self.api.upload_folder(
                        repo_id=self.repo_id,
                        folder_path=staged,
                        commit_message=message,
                        ignore_patterns=["*.tmp", *([CARD_FILE] if self._has_other_card(staged) else [])],
                        delete_patterns=self._outdated(staged),
                    )
                    return None
                except Exception as error:
                    if delay is None or not _is_temporary(error):
                        return first_line(error)
                    logger.info("upload to %s: %s; trying again in %g s", self.repo_id, first_line(error), delay)
                    time.sleep(delay)
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _outdated(self, staged: Path) -> list[str]:
        """Files of an earlier model in the repository, which this one does not replace."""
        there = self.api.list_repo_files(self.repo_id)
        of_models = {file for pattern in MODEL_FILES for file in fnmatch.filter(there, pattern) if "/" not in file}
        return [file for file in of_models if not (staged / file).exists()]

    def _has_other_card(self, staged: Path) -> bool:
        """Whether somebody wrote the repository's card, and nobody the one here."""
        card = staged / CARD_FILE
        ours = card.exists() and MARKER in card.read_text("utf-8")
        if not ours or not self.api.file_exists(self.repo_id, CARD_FILE):
            return False
        return MARKER not in Path(self.api.hf_hub_download(self.repo_id, CARD_FILE)).read_text("utf-8")


def _is_temporary(error: Exception) -> bool:
    """Whether trying again may help: not if the server refuses, or the name is wrong."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 500
        return status >= 500 or status in (408, 409, 412, 429)
    return not isinstance(error, ValueError)
