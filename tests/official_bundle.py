"""The miniature of a published bundle: where it lies and what its files are called."""

from __future__ import annotations

import json

from conftest import GOLDEN

OFFICIAL = GOLDEN / "official_tiny"
CONFIG = json.loads((OFFICIAL / "configs/NAVA_tiny.json").read_text(encoding="utf-8"))
VAE = "Wan2.2-TI2V-5B/Wan2.2_VAE.pth"
TEXT_ENCODER = "Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth"
AUDIO = "params/LTX2/ltx-2.3-22b-dev_audio_vae.safetensors"
