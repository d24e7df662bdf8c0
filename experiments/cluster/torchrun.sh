#!/usr/bin/env bash
# Train one recipe on one or more machines with torchrun, which restarts it when a process is lost.
#   experiments/cluster/torchrun.sh experiments/mae/vitb16_in1k_1600ep.yaml runs/mae-b16 [--KEY VALUE ...]
# Several machines: the same command on each, with NODES=4 and HEAD=<host of the first>:29500.
# Ctrl-C or SIGTERM: torchrun forwards it, a checkpoint is written within one step; the same command again resumes the run.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: [NODES=1] [GPUS=8] [HEAD=host:port] $0 RECIPE.yaml RUN_DIR [--KEY VALUE ...]" >&2; exit 2; }
recipe=$1 run_dir=$2
shift 2
nodes=${NODES:-1} gpus=${GPUS:-$(nvidia-smi -L 2>/dev/null | wc -l)}
[ "$gpus" -gt 0 ] || { echo "$0: no GPU here; set GPUS=2 --trainer.accelerator cpu to try it on processors" >&2; exit 1; }
where=(--nnodes "$nodes" --nproc-per-node "$gpus" --max-restarts "${RESTARTS:-3}")
if [ "$nodes" = 1 ]; then where+=(--standalone); else
  where+=(--rdzv-backend c10d --rdzv-endpoint "${HEAD:?name the first machine: HEAD=host:port}" --rdzv-id "$(basename "$run_dir")")
fi
exec "${TORCHRUN:-torchrun}" "${where[@]}" -m lit_vision fit --config "$recipe" --run_dir "$run_dir" --resume auto \
  --trainer.num_nodes "$nodes" --trainer.devices "$gpus" "$@"
