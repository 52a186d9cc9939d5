#!/bin/bash
# For clusters that do not requeue: several jobs that wait for each other, the first to finish making the rest end at once.
#   launch/slurm/chain.sh NUMBER [sbatch options] launch/slurm/train.sbatch train_segmentation.py OPTIONS...
set -euo pipefail
number=${1:?how many jobs}
shift
export REQUEUE=0
previous=$(sbatch --parsable "$@")
echo "$previous"
export CHAINED=1
for ((link = 2; link <= number; link++)); do
    previous=$(sbatch --parsable --dependency="afterany:${previous%%;*}" "$@")
    echo "$previous"
done
