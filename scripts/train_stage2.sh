#!/bin/sh
# nava-nano's stages 2 and 3, from the committed stage 1 to an evaluated folder. Run again, it goes on where it stopped.
#   scripts/train_stage2.sh [runs]      PYTHON, WORKERS and CLIPS may be set
# It needs training/weights/{tokenizer,audio_vae,vocoder}, better also speaker_encoder, and runs/voices/voices.npz
# (python -m training.voices, training.audio_vae, training.vocoder, training.tokenizer).
set -eu
runs="${1:-runs}"
python="${PYTHON:-python}"
workers="${WORKERS:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
weights=training/weights

"$python" -m training.video_vae --config training/configs/video_vae_stage2.yaml --out "$runs/video_vae_stage2" --resume
"$python" -m training.measure_vae --vae "$weights/vae" --sheets "$runs/video_vae_stage2/gate"
# Sound first, as the paper has it: with no picture a step costs half, its latents a twentieth.
"$python" -m training.cache_latents --config training/configs/sound_stage2.yaml --out "$runs/sound_stage2" \
    --model "$weights" --voices "$runs/voices/voices.npz" --workers "$workers"
"$python" -m training.backbone --config training/configs/backbone_stage2.yaml --latents "$runs/sound_stage2" \
    --model "$weights" --weights assets/nava-nano --out "$runs/backbone_sound" --batch_size 24 --minutes 240 --resume
cp -r "$weights/tokenizer" "$runs/backbone_sound/"   # its pieces are those of the text encoder beside it
"$python" -m training.cache_latents --config training/configs/latents_stage2.yaml --out "$runs/latents_stage2" \
    --model "$weights" --voices "$runs/voices/voices.npz" --workers "$workers"
"$python" -m training.backbone --config training/configs/backbone_stage2.yaml --latents "$runs/latents_stage2" \
    --model "$weights" --weights "$runs/backbone_sound" --out "$runs/backbone_stage2" --resume
"$python" -m training.assemble --backbone "$runs/backbone_stage2" --parts "$weights" --out "$runs/nano_stage2"
"$python" -m training.evaluate_people --source "$runs/nano_stage2" --voices "$runs/voices/voices.npz" \
    --clips "${CLIPS:-24}" --floors --out "$runs/nano_stage2_people.json" --sheet "$runs/nano_stage2_sheets"
"$python" -m training.evaluate --source "$runs/nano_stage2" --clips "${CLIPS:-24}" \
    --out "$runs/nano_stage2_falling.json" --sheet "$runs/nano_stage2_sheets/falling.png"
