"""What every script does around its ``main``; in a file of its own, so that small scripts start fast."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from ..images.files import BadSampleError
from ..system.files import StorageError, error_number, is_transient

logger = logging.getLogger(__name__)

SCREEN = 3000
"""Characters of a message that people can read"""


def run(main: Callable[[], Any]) -> None:
    """Call a script's ``main``; what a user did wrong becomes one message and exit status 2, without a stack trace.

    So does a disk that did not answer; then the status is 1, because it may the next time. Libraries draw bars only
    where a person watches.
    """
    if not sys.stderr.isatty():
        for library in ("HF_DATASETS", "HF_HUB"):  # read when these are imported; Transformers goes by the second
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    try:
        main()
    except (ValueError, OSError, StorageError) as error:
        logger.debug("stack trace of the error below (shown because of LOGLEVEL=DEBUG)", exc_info=True)
        # All processes see the same mistakes, so one speaks; a broken image is seen by one process only.
        if os.environ.get("RANK", "0") == "0" or isinstance(error, BadSampleError | StorageError):
            text = str(error)
            more = f" ... ({len(text):,} characters)" if len(text) > SCREEN else ""
            print(f"error: {text[:SCREEN]}{more}{_hint(error)}", file=sys.stderr, flush=True)
        sys.exit(1 if is_transient(error) else 2)
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _hint(error: Exception) -> str:
    """What to do where the caches of libraries, by default in the home folder, are read-only."""
    cache = os.path.realpath(os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface")))
    unwritable = error_number(error) in (errno.EROFS, errno.EACCES, errno.EPERM)
    return " Set HF_HOME to a folder that can be written." if unwritable and cache in str(error) else ""
