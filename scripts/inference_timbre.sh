#!/usr/bin/env bash
# Clips whose speakers have given voices: each line's spk_wavs holds one reference for each spoken line, null for none.
# Without arguments: the embedded nava-nano on its examples.
#
#   MODEL=/models/NAVA DATA_FILE=dialogues.jsonl scripts/inference_timbre.sh
#
# The model needs a speaker encoder (of NAVA, a ReDimNet release in its bundle). Variables as in inference.sh, and:
#   TIMBRE_SCALE  how strongly the sound is guided towards the voices (the model's own; nava-nano's is 0.5)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export DATA_FILE="${DATA_FILE:-$root/assets/examples/timbre.jsonl}"
[[ -z "${MODEL:-}${TIMBRE_SCALE:-}" ]] || set -- --timbre_cfg ${TIMBRE_SCALE:+--timbre_align_guidance_scale "$TIMBRE_SCALE"} "$@"
exec "$root/scripts/inference.sh" "$@"
