"""Packaging; pyproject.toml holds the metadata, CMakeLists.txt builds the C++ kernels."""

from __future__ import annotations

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["engine*", "kernels*", "selfguide*"]),
    cmake_source_dir=".",
    cmake_install_target="install",
)
