"""A folder of this user's below /tmp, for what Ray cannot do without: a home, a temporary folder with a short path."""

from __future__ import annotations

import getpass
import os
from contextlib import suppress
from pathlib import Path

from trainable.core.errors import InputError


def short_private_dir() -> Path:
    """Return /tmp/voxtune-UID, made if missing.

    Raises:
        InputError: if it is another user's, or not a folder.
    """
    folder = Path(f"/tmp/voxtune-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder} is not a folder of yours; set HOME, and RAY_TMPDIR to a folder with a short path")
    return folder


def ensure_home() -> None:
    """Set HOME and USER for Ray, whose import needs them, where they are unset and passwd has no entry of this user.

    So it is in containers that run as a bare number. Ray's processes inherit them.

    Raises:
        InputError: as short_private_dir.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(short_private_dir())
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())
