# shellcheck shell=bash
# Sourced by the checks: changes to the repository's root, and defines what they share.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=$PWD/.venv/bin

step() { printf '\n=== %s (after %d s)\n' "$1" "$SECONDS"; }
fail() { echo "error: $*" >&2; exit 1; }
snakemake() { "$bin/snakemake" "$@"; }

# find_python 3.13: an interpreter of that version. A name on PATH may be a pyenv shim that refuses to run, so each
# candidate is started.
find_python() {
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}
