#!/usr/bin/env bash
# All benchmarks of speed, one after the other; nothing else should run meanwhile. An hour or so on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."
for benchmark in input segmentation_loss metrics loop checkpoints; do
    echo "## $benchmark"
    python "benchmarks/$benchmark.py" "$@"
done
echo "## find_leaks"
python -m pytest -s -n 0 -m slow tests/test_find_leaks.py -k made_up
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
echo "## prepare_scale"
python benchmarks/prepare_scale.py --folder "$folder" --modes paths --keep
python benchmarks/prepare_scale.py --folder "$folder" --sizes 20000 --modes memory
