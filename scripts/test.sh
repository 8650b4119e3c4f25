#!/usr/bin/env bash
# Install what is needed and run all checks: lint, types, all tests.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install.sh test
bin="${RMTRAIN_VENV:-.venv}/bin"
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # two workers, a core each; a file's tests stay together with what they share
"$bin/python" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder "$@"  # the longest first: see tests/conftest.py
