#!/usr/bin/env bash
# Set everything up and check form and types: ruff check, ruff format, mypy. `ruff check --fix` and `ruff format` mend.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python3 tools/setup_env.py
export PATH="$PWD/.venv/bin:$PATH"
ruff check
ruff format --check
mypy
