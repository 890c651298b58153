#!/bin/bash
# Fine-tune the mask decoder on whole nodes: torchrun starts one process for each GPU of each node.
#
#   sbatch --nodes=2 train_nodes.sh EMBEDDING_DIR CHECKPOINT SAVE_DIR [OPTIONS OF samri-train]
#
# If the job is killed, preempted or out of time, the same command resumes after the last finished epoch. One GPU is
# often enough: the decoder is small.
#SBATCH --job-name=samri-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=samri-train-%j.log
#SBATCH --open-mode=append

set -euo pipefail

if [[ $# -lt 3 ]]; then
    echo "usage: sbatch --nodes=N $0 EMBEDDING_DIR CHECKPOINT SAVE_DIR [OPTIONS OF samri-train]" >&2
    exit 2
fi
embeddings=$1 checkpoint=$2 save=$3
shift 3

gpus=${SLURM_GPUS_ON_NODE:-8}
export OMP_NUM_THREADS=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Resume an existing run with its own settings and the options passed now.
if [[ -f $save/last.pth ]]; then
    run=(--resume "$save" "$@")
else
    run=(--embedding-dir "$embeddings" --checkpoint "$checkpoint" --save-dir "$save")
    # Options passed by the user replace this script's own; --no-amp, too.
    own=()
    for pair in "--device cuda" --amp "--num-workers $((${SLURM_CPUS_PER_TASK:-64} / gpus - 1))"; do
        name=${pair%% *}
        [[ " $* " =~ \ -(-no)?${name#-}[\ =] ]] || own+=($pair)
    done
    run+=("${own[@]}" "$@")
fi

# srun doesn't take sbatch's number of cores over by itself, and leaves one core to all processes of a node. Two jobs that
# share a node must not meet at one port.
srun --cpus-per-task "${SLURM_CPUS_PER_TASK:-64}" torchrun \
    --nnodes "$SLURM_NNODES" --nproc_per_node "$gpus" \
    --rdzv_backend c10d --rdzv_endpoint "$head:$((15000 + SLURM_JOB_ID % 15000))" --rdzv_id "$SLURM_JOB_ID" \
    -m samri_training.train "${run[@]}"
