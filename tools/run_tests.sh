#!/usr/bin/env bash
# Set everything up and run the tests; arguments go to pytest: tools/run_tests.sh -k report
# Those that train or start processes are left out by -m 'not e2e'; those that only a release needs are run by --slow.
# In one process, as --pdb and -s need it: -n 0
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

has_browser() {
    command -v chromium || command -v chromium-browser || command -v google-chrome
} >/dev/null

install_browser() {
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium
} >/dev/null

source tools/enter_env.sh

# One test opens a report in a browser
if ! has_browser && [[ $EUID == 0 ]] && command -v apt-get >/dev/null; then
    echo 'installing chromium for the test that opens a report'
    install_browser || true
fi
has_browser || echo 'no chromium: the test that opens a report is skipped (to have it: apt-get install chromium)'

# One thread each, because there are as many processes as cores: more threads than cores are slower than one. A file's
# tests stay together, for what they share. Four processes are what 16 GB of memory has room for.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
pytest -o testpaths=tests -n logical --maxprocesses 4 --dist loadfile "$@"
