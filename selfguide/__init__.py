"""The method: makes a task expert out of an instruction, a few examples and one open model."""

import os

# Read when torch loads GNU OpenMP, whose threads turn 300,000 times before they sleep. Where
# another program wants a core, a run then takes two to four times as long. A thousand turns cost
# an idle machine next to nothing (docs/LOG.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
