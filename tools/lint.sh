#!/usr/bin/env bash
# Set everything up and check form and types: ruff check, ruff format, mypy. `ruff check --fix` and `ruff format` mend.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source tools/enter_env.sh
ruff check
ruff format --check
mypy
