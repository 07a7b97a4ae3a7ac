"""Stops `import engine` where `kernels` is another distribution's package of that name."""

from __future__ import annotations

import kernels

if not hasattr(kernels, "SampleParams"):
    raise ImportError(
        f"`import kernels` finds {kernels.__file__}, which is not selfguide's package (Hugging "
        "Face publishes one of that name): install selfguide in a virtual environment of its own"
    )
