#!/usr/bin/env bash
# All benchmarks of speed, one after the other; nothing else should run meanwhile. About half an hour on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."
for benchmark in input segmentation_loss metrics loop checkpoint_stall resume_time find_leaks; do
    echo "## $benchmark"
    python "benchmarks/$benchmark.py" "$@"
done
