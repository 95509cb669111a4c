#!/bin/sh
# Asks PyPI for the known vulnerabilities of everything that is locked.
#   sh deployments/audit.sh .venv-audit/bin/pip-audit
# Exit code 0: all were asked about and nothing is known. 1: something is known. 2: there was no answer, which is not a good one.
set -u
here="$(dirname "$0")"
told="$(mktemp -d)"
trap 'rm -rf "$told"' EXIT
worst=0
# constraints.txt is the union of what the product is installed from; the other two are beside it, with versions of their own.
for list in constraints.txt locks/torch-cuda.txt locks/audit.txt; do
    if "$@" --strict --no-deps --disable-pip --progress-spinner off -r "$here/$list" >"$told/report" 2>"$told/why"; then
        echo "audit: no vulnerability is known of what $list names"
    elif [ -s "$told/report" ]; then
        cat "$told/report"
        echo "audit: $list names what is known to be vulnerable; raise it with \`make lock\`, or say in docs/security.md why it stays" >&2
        [ $worst = 2 ] || worst=1
    else
        why="$(grep . "$told/why" | tail -n 1)"
        echo "audit: there was no answer, so nothing is known of what $list names: ${why:-no reason was given}" >&2
        worst=2
    fi
done
exit $worst
