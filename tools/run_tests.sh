#!/usr/bin/env bash
# Set everything up and run the tests on two cores; arguments go to pytest: tools/run_tests.sh -k report
# The fast ones, which do not train: tools/run_tests.sh -m 'not e2e'. Also those for a release: tools/run_tests.sh --slow
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

has_browser() {
    command -v chromium || command -v chromium-browser || command -v google-chrome
} >/dev/null

install_browser() {
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium
} >/dev/null

python3 tools/setup_env.py
export PATH="$PWD/.venv/bin:$PATH"

# One test opens a report in a browser
if ! has_browser && [[ $EUID == 0 ]] && command -v apt-get >/dev/null; then
    echo 'installing chromium for the test that opens a report'
    install_browser || true
fi
has_browser || echo 'no chromium: the test that opens a report is skipped (to run it: apt-get install chromium)'

# One thread each, because many tests start processes of their own: more threads than cores are slower than one
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# Tests that train go one after the other (tests/conftest.py), the others beside them
pytest -o testpaths=tests -n 2 --dist loadgroup "$@"
