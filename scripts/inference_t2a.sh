#!/usr/bin/env bash
# Sound alone, as .wav. Without arguments: the embedded nava-nano on its examples.
#
#   MODEL=/models/NAVA DATA_FILE=sounds.txt DURATION=10 scripts/inference_t2a.sh
#
# Variables as in inference.sh; DURATION is in seconds.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export DATA_FILE="${DATA_FILE:-$root/assets/examples/sounds.jsonl}"
exec "$root/scripts/inference.sh" --modality audio "$@"
