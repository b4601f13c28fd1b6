#!/usr/bin/env bash
# Clips whose speakers have given voices: each line's spk_wavs holds one reference for each spoken line, null for none.
#
#   MODEL=/models/NAVA DATA_FILE=dialogues.jsonl scripts/inference_timbre.sh
#
# The model needs a speaker encoder (a ReDimNet release in its bundle). nava-nano has none yet, so the examples that this
# runs on without arguments leave their references empty. Variables as in inference.sh, and:
#   TIMBRE_SCALE  how strongly the sound is guided towards the voices (the model's own, 3)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export DATA_FILE="${DATA_FILE:-$root/assets/examples/timbre.jsonl}"
exec "$root/scripts/inference.sh" --timbre_cfg ${TIMBRE_SCALE:+--timbre_align_guidance_scale "$TIMBRE_SCALE"} "$@"
