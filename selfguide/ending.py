"""How a command ends: its exit code, and one line where a user can help it."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engine import EngineError
from selfguide.console import Console
from selfguide.errors import Interrupted, TooFewPairs, UserError
from selfguide.folder.trouble import disk_trouble
from selfguide.streams import open_closed, silence_output

MISTAKE, TOO_FEW, STOPPED = 2, 3, 130


def ended(work: Callable[[Console], None], resume: Sequence[str] = ()) -> int:
    """Does `work` with a console that listens; returns the exit code.

    Standard error says why it is not 0.

    Exceptions that no user can cause pass through, with their traceback.

    Args:
        work: a command's.
        resume: the command that goes on after an interruption; empty if there is nothing to go on.
    """
    open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no character is worth a traceback
            stream.reconfigure(errors="replace")
    try:
        console = Console()
        with disk_trouble_told(Path.cwd()):
            with console.listening():
                work(console)
            sys.stdout.flush()
    except TooFewPairs as error:
        return _said(f"error: {error}", TOO_FEW)
    except (UserError, EngineError) as error:
        return _said(f"error: {error}", MISTAKE)
    except (Interrupted, KeyboardInterrupt):
        again = f"; go on with: {shlex.join(resume)}" if resume else ""
        return _said(f"stopped{again}", STOPPED)
    except BrokenPipeError:  # whoever read standard output has seen enough
        silence_output()
        return 1
    return 0


@contextmanager
def disk_trouble_told(folder: Path) -> Iterator[None]:
    """Turns errors of the disk in the block, which writes to `folder`, into UserErrors."""
    try:
        yield
    except OSError as error:
        trouble = disk_trouble(error, folder)
        if trouble is None:
            raise
        raise trouble from None


@contextmanager
def output_trouble_told() -> Iterator[None]:
    """Turns errors of standard output, which the block writes to, into UserErrors."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"standard output: {error.strerror}") from None


def _said(line: str, code: int) -> int:
    print(" ".join(line.split("\n")), file=sys.stderr)
    return code
