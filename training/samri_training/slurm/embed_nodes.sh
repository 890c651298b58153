#!/bin/bash
# Embed a slice dataset on whole nodes: torchrun starts one process for each GPU of each node.
#
#   sbatch --nodes=2 embed_nodes.sh DATA_DIR SAVE_DIR CHECKPOINT
#
# Where GPUs can be had one by one, embed_array.sh starts sooner. If the job is killed, the same command resumes.
#SBATCH --job-name=samri-embed
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --mem=128G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --output=samri-embed-%j.log
#SBATCH --open-mode=append

set -euo pipefail

if [[ $# -lt 3 ]]; then
    echo "usage: sbatch --nodes=N $0 DATA_DIR SAVE_DIR CHECKPOINT [OPTIONS OF samri-embed]" >&2
    exit 2
fi
data=$1 save=$2 checkpoint=$3
shift 3

gpus=${SLURM_GPUS_ON_NODE:-8}
export OMP_NUM_THREADS=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# srun doesn't take sbatch's number of cores over by itself, and leaves one core to all processes of a node. Two jobs that
# share a node must not meet at one port.
# Options passed by the user replace this script's own.
own=()
for pair in "--device cuda" "--batch-size 8" "--num-workers $((${SLURM_CPUS_PER_TASK:-64} / gpus))"; do
    [[ " $* " == *" ${pair%% *} "* || " $* " == *" ${pair%% *}="* ]] || own+=($pair)
done
srun --cpus-per-task "${SLURM_CPUS_PER_TASK:-64}" torchrun \
    --nnodes "$SLURM_NNODES" --nproc_per_node "$gpus" \
    --rdzv_backend c10d --rdzv_endpoint "$head:$((15000 + SLURM_JOB_ID % 15000))" --rdzv_id "$SLURM_JOB_ID" \
    -m samri_training.embed \
    --data-dir "$data" --save-dir "$save" --checkpoint "$checkpoint" \
    "${own[@]}" "$@"
