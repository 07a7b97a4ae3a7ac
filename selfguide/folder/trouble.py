"""What to say when the disk refuses."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from selfguide.errors import UserError

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EACCES: "allow writing there, or choose another --out",
    errno.EPERM: "allow writing there, or choose another --out",
    errno.EROFS: "choose another --out",
    errno.ENOTDIR: "choose another --out",
    errno.EEXIST: "choose another --out",
}
_TEMPORARY = re.compile(r"^\.(.+)\.\d+\.tmp$")


def disk_trouble(error: OSError, folder: Path) -> UserError | None:
    """An error of the file system as one line for the user; None if it is of another kind.

    Nothing is lost by any of these: files are replaced whole or not at all.

    Args:
        error: as Python raised it; errors of a full disk name no file.
        folder: the run's.
    """
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    path = Path(error.filename) if isinstance(error.filename, str) else folder
    path = path.with_name(_TEMPORARY.sub(r"\1", path.name))
    return UserError(
        f"{path}: {error.strerror}; {remedy} and give the same command again (what was finished "
        "is kept)"
    )
