"""Packaging; pyproject.toml holds the metadata, CMakeLists.txt builds the C++ kernels."""

from __future__ import annotations

import sys

from setuptools import find_packages, setup

# On Windows CMake stops where it finds no compiler, so there only the torch backend is installed.
kernels = (
    {} if sys.platform == "win32" else {"cmake_source_dir": ".", "cmake_install_target": "install"}
)

setup(packages=find_packages(include=["engine*", "kernels*", "selfguide*"]), **kernels)
