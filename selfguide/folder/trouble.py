"""What to say when the disk refuses."""

from __future__ import annotations

import errno
from pathlib import Path

from selfguide.errors import UserError
from selfguide.folder.temporary import becomes

_ANOTHER = "choose another --out"
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EACCES: f"allow writing there, or {_ANOTHER}",
    errno.EPERM: f"allow writing there, or {_ANOTHER}",
    errno.EROFS: _ANOTHER,
    errno.ENOTDIR: _ANOTHER,
    errno.EEXIST: _ANOTHER,
    errno.ENAMETOOLONG: _ANOTHER,
}


def disk_trouble(error: OSError, folder: Path) -> UserError | None:
    """An error of the file system as one line for the user; None if it is of another kind.

    Nothing is lost by any of these: files are replaced whole or not at all.

    Args:
        error: as Python raised it; errors of a full disk name no file.
        folder: the run's; an error that names it, a path within or a folder above, is always for
            the user.
    """
    path = Path(error.filename) if isinstance(error.filename, str) else folder
    related = path == folder or folder in path.parents or path in folder.parents
    ours = isinstance(error.filename, str) and related
    remedy = _REMEDIES.get(error.errno or 0) or (_ANOTHER if ours else None)
    if remedy is None:
        return None
    path = path.with_name(becomes(path.name) or path.name) if path.name else path
    return UserError(
        f"{path}: {error.strerror}; {remedy} and give the same command again (what was finished "
        "is kept)"
    )
