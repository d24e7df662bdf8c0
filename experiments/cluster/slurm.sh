#!/usr/bin/env bash
# Train one recipe on SLURM; the job requeues itself after preemption and at its time limit, and the run resumes.
#   sbatch experiments/cluster/slurm.sh experiments/mae/vitb16_in1k_1600ep.yaml runs/mae-b16 [--KEY VALUE ...]
# Each task is one process with one GPU; lit-vision finds the others by SLURM's variables. The same command again resumes the run.
#SBATCH --job-name=lit-vision
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
# two minutes before the end every task gets SIGUSR1: a checkpoint within one step, then `scontrol requeue` once it is verified
#SBATCH --signal=USR1@120
# for the scheduler's own preemption (SIGTERM, then SIGKILL after its GraceTime), which requeues by itself
#SBATCH --requeue
# append to the log instead of emptying it
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: sbatch $0 RECIPE.yaml RUN_DIR [--KEY VALUE ...]" >&2; exit 2; }
recipe=$1 run_dir=$2
shift 2
nodes=${SLURM_JOB_NUM_NODES:-1} tasks=${SLURM_NTASKS_PER_NODE:-1}
# another number of GPUs needs another batch_size or accumulation: the global batch must stay the same, and is checked
# exec: the signal must reach Python, not a shell that waits for it
exec srun --kill-on-bad-exit=1 "${LIT_VISION:-lit-vision}" fit --config "$recipe" --run_dir "$run_dir" --resume auto \
  --trainer.num_nodes "$nodes" --trainer.devices "$tasks" "$@"
