#!/bin/bash
# Embed a slice dataset with a SLURM array: one GPU per task, any number of tasks.
#
#   sbatch --array=0-15 embed_array.sh DATA_DIR SAVE_DIR CHECKPOINT
#
# Tasks share nothing but SAVE_DIR, which lies on a file system that all nodes see. Each makes its own files; none waits
# for another. If tasks are killed, preempted or out of time, submit the same array again, as a whole,
# to resume. Tasks that have nothing left to do end within seconds.
#SBATCH --job-name=samri-embed
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --output=samri-embed-%A_%a.log

set -euo pipefail

if [[ $# -lt 3 ]]; then
    echo "usage: sbatch --array=0-15 $0 DATA_DIR SAVE_DIR CHECKPOINT [OPTIONS OF samri-embed]" >&2
    exit 2
fi
data=$1 save=$2 checkpoint=$3
shift 3

# One thread an operator: the workers that read and preprocess want the cores.
export OMP_NUM_THREADS=1

# samri-embed reads its part off SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT. exec, so that SLURM's signals reach it.
# Options passed by the user replace this script's own.
own=()
for pair in "--device cuda" "--batch-size 8" "--num-workers ${SLURM_CPUS_PER_TASK:-8}"; do
    [[ " $* " == *" ${pair%% *} "* || " $* " == *" ${pair%% *}="* ]] || own+=($pair)
done
exec samri-embed \
    --data-dir "$data" --save-dir "$save" --checkpoint "$checkpoint" \
    "${own[@]}" "$@"
