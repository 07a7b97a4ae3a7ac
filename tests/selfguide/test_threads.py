"""How long OpenMP's threads wait awake, as it is set before torch loads them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_SHOW = "import selfguide, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_what_the_user_has_set_stands(given: dict[str, str], expected: str) -> None:
    own = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if key not in own}
    command = [sys.executable, "-c", _SHOW]
    shown = subprocess.run(
        command, env=environment | given, check=True, capture_output=True, text=True
    )
    assert shown.stdout.split() == [expected, "False"]
