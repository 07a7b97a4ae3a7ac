#!/usr/bin/env bash
# Builds the C++ kernels in place, for development: dev/build.sh
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build
exec 9>build/.lock
flock 9
cmake -S . -B build/dev -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$(command -v python)" >build/configure.log \
  || { cat build/configure.log; exit 1; }
cmake --build build/dev
cmake --install build/dev --prefix . >/dev/null
