#!/usr/bin/env bash
# A clip with sound for each line of a file. Without arguments: the embedded nava-nano on its examples.
#
#   MODEL=/models/NAVA DATA_FILE=prompts.jsonl scripts/inference.sh --steps 30
#   NPROC=8 MODEL=/models/NAVA DATA_FILE=prompts.jsonl scripts/inference.sh --use_sp
#
# Variables (all optional; further arguments go to inference_nava.py as they are, see its --help):
#   MODEL      official bundle folder, diffusers folder or hub id    DATA_FILE  prompts, .txt or .jsonl
#   OUT_DIR    where clips go (eval_results)                         NPROC      processes; each makes its share of the lines (1),
#                                                                               with --use_sp all make each clip together
#   WIDTH, HEIGHT (pixels)  FRAMES (latent: 37 is 6 s)  DURATION (seconds)  STEPS  SEED  GEN_TURN (clips per line)
#   PYTHON     the interpreter (python)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

arguments=(--data_file "${DATA_FILE:-$root/assets/examples/prompts.jsonl}" --out_dir "${OUT_DIR:-eval_results}" --save_sample)
for name in MODEL WIDTH HEIGHT FRAMES DURATION STEPS SEED GEN_TURN; do
  [[ -z "${!name:-}" ]] || arguments+=("--$(tr '[:upper:]' '[:lower:]' <<<"$name")" "${!name}")
done

launcher=("${PYTHON:-python}")
[[ "${NPROC:-1}" == 1 ]] || launcher+=(-m torch.distributed.run --standalone --nproc_per_node "$NPROC")
exec "${launcher[@]}" "$root/inference_nava.py" "${arguments[@]}" "$@"
