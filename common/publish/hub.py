"""Uploading a run to the Hub: checked before training, retried, and never able to lose what is on the disk.

A token comes from ``HF_TOKEN`` or ``hf auth login`` only. It is read by huggingface_hub when it is needed; nothing
here keeps it, so nothing can write it down.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars

logger = logging.getLogger(__name__)

PUBLISHED = (
    "README.md",
    "config.json",
    "preprocessor_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "*.py",
    "*.onnx",
    "hierarchy.json",
    "all_results.json",
    "report.html",
    "plots/*",
)
"""What goes to the Hub; never checkpoints, options or lists of files, which name things of this machine"""

STAGING = ".upload"

DELAYS = (2.0, 10.0, 30.0)
"""Seconds to wait before each new try"""


class Publisher:
    """Uploads an output folder's model to one repository; on the main process only.

    Args:
        folder: the output folder.
        repo_id: of the repository, with or without its owner; the folder's name by default.
        private: whether a new repository is.
        delays: seconds before each new try of an upload that failed.
    """

    def __init__(
        self, folder: str | Path, repo_id: str | None, private: bool, delays: Sequence[float] = DELAYS
    ) -> None:
        self.folder, self.private, self.delays = Path(folder), private, delays
        self.repo_id = repo_id or self.folder.resolve().name
        self.api = HfApi()
        self._thread: threading.Thread | None = None
        self._waiting: str | None = None
        self._lock = threading.Lock()

    def check(self, license: str | None = None) -> str:
        """Create the repository if need be, before hours of training; returns its full name.

        Args:
            license: of the model; the Hub refuses cards with one that it does not know.

        Raises:
            ValueError: if nobody is logged in, the Hub cannot be reached, the repository may not be written to, or
                the licence is unknown.
        """
        if is_offline_mode():
            raise ValueError("--push_to_hub needs the Hub, but HF_HUB_OFFLINE is set.")
        if not get_token():
            raise ValueError("--push_to_hub: nobody is logged in. Run `hf auth login`, or set HF_TOKEN.")
        try:
            url = self.api.create_repo(self.repo_id, private=self.private or None, exist_ok=True)
            self.repo_id = url.repo_id
            self.api.auth_check(self.repo_id, write=True)
        except Exception as error:  # of the network, the Hub, or the name
            raise ValueError(
                f"--push_to_hub: {self.repo_id} on {self.api.endpoint} cannot be written to: {first_line(error)}."
            ) from error
        if license:
            self._check_license(license)
        return self.repo_id

    def _check_license(self, license: str) -> None:
        try:
            ModelCard(f"---\n{ModelCardData(license=license).to_yaml()}\n---\n").validate()
        except ValueError as error:
            raise ValueError(f"--license {license} is none that the Hub knows: {first_line(error)}.") from error
        except OSError as error:  # then the upload will tell
            logger.debug("the licence could not be checked: %s", first_line(error))

    @property
    def url(self) -> str:
        """Of the repository's page."""
        return f"{self.api.endpoint}/{self.repo_id}"

    # ---- uploading

    def start_upload(self, message: str) -> None:
        """Upload what there is now, in the background; if an upload is under way, after it, and only the newest."""
        disable_progress_bars()  # they would draw over that of the training
        with self._lock:
            self._stage("next")
            self._waiting = message
            if self._thread is None:
                # A daemon, so that a run that is told to stop does not wait for the network.
                self._thread = threading.Thread(target=self._work, daemon=True, name="upload to the Hub")
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._waiting is None:
                    self._thread = None
                    return
                message, self._waiting = self._waiting, None
                current = self.folder / STAGING / "current"
                shutil.rmtree(current, ignore_errors=True)
                os.replace(self.folder / STAGING / "next", current)
            try:
                self._upload(current, message)
            except Exception as error:  # the next upload, or the last one, tries again
                logger.warning("An upload to %s failed: %s. Training goes on.", self.repo_id, first_line(error))

    def finish(self, message: str) -> bool:
        """Upload everything, after what is still under way; whether it is there now.

        A failure is told together with the command to do it by hand; it is no error of the run.
        """
        with self._lock:
            self._waiting = None
            thread = self._thread
        if thread is not None:
            thread.join()
        self._stage("next")
        try:
            self._upload(self.folder / STAGING / "next", message)
        except Exception as error:
            logger.warning(
                "The upload to %s failed: %s. Everything is in %s; upload it with\n  %s",
                self.repo_id,
                first_line(error),
                self.folder,
                self.command(),
            )
            return False
        finally:
            shutil.rmtree(self.folder / STAGING, ignore_errors=True)
        return True

    def command(self) -> str:
        """What uploads the same by hand."""
        patterns = " ".join(f"--include '{pattern}'" for pattern in PUBLISHED)
        return f"hf upload {self.repo_id} {self.folder} . {patterns}"

    def _stage(self, name: str) -> None:
        """Freeze the files as they are: links, because each file of the folder is replaced, never changed."""
        target = self.folder / STAGING / name
        shutil.rmtree(target, ignore_errors=True)
        for pattern in PUBLISHED:
            for file in self.folder.glob(pattern):
                copy = target / file.relative_to(self.folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(file, copy)
                except OSError:  # a file system without hard links
                    shutil.copyfile(file, copy)

    def _upload(self, folder: Path, message: str) -> None:
        for delay in (*self.delays, None):
            try:
                self.api.upload_folder(
                    repo_id=self.repo_id, folder_path=folder, commit_message=message, ignore_patterns=["*.tmp"]
                )
                return
            except Exception as error:
                if delay is None or not _may_pass(error):
                    raise
                logger.info("upload to %s: %s; trying again in %g s", self.repo_id, first_line(error), delay)
                time.sleep(delay)


def _may_pass(error: Exception) -> bool:
    """Whether trying again may help: not if the server says no, or the name is wrong."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 500
        return status >= 500 or status in (408, 409, 412, 429)
    return not isinstance(error, ValueError)


def first_line(error: BaseException) -> str:
    """What went wrong and why, without what follows."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[0] if lines else type(error).__name__).rstrip(".")
    why = first_line(error.__cause__) if error.__cause__ is not None else ""
    return text if why in text else f"{text}: {why}"
