"""The method: makes a task expert out of an instruction, a few examples and one open model."""

import os
import signal
import sys

# A command that is stopped while torch is loaded ends without a traceback; `Console` takes over.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# Read when torch loads GNU OpenMP, whose threads turn 300,000 times before they sleep. Where
# another program wants a core, a run then takes two to four times as long. A thousand turns cost
# an idle machine next to nothing (docs/LOG.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
