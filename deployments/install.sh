#!/bin/sh
# Installs what a lock lists and nothing else: nothing is resolved, and a file whose hash the lock does not have is refused.
#   sh deployments/install.sh development .venv/bin/python -m pip
# TORCH=cuda brings PyPI's build of torch and what only it needs. TORCH_INDEX is where the CPU build lies.
set -eu
locks="$(dirname "$0")/locks"
name="$1"
shift
install() {
    "$@" --require-hashes --no-deps --only-binary :all:
}
if grep -q '^-r torch-cpu.txt' "$locks/$name.txt"; then
    # First and alone, since only torch comes from there. A hash is asked for here too, so that index need not be trusted.
    case "${TORCH:-cpu}" in
        cpu) install "$@" install -r "$locks/torch-cpu.txt" --retries 1 --timeout 30 \
            --index-url "${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" ;;
        cuda) install "$@" install -r "$locks/torch-cuda.txt" ;;
        *) echo "TORCH=$TORCH: there are cpu and cuda" >&2 && exit 2 ;;
    esac
fi
install "$@" install -r "$locks/$name.txt"
