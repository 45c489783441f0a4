#!/bin/sh
# Every figure of a GPU that README and docs promise, in at most nine minutes on one H100:
#   benchmarks/gpu.sh gpu.json              --cpu: toy sizes on a CPU, to try the script; --help: the rest
# Needs no network. Measure on an idle machine.
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" "$root/benchmarks/gpu/figures.py" "$@"
