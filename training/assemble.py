"""Put the trained parts together as one diffusers folder, in bfloat16.

    python -m training.assemble --backbone runs/backbone_stage2 --out runs/nano_stage2

Autoencoders, vocoder, tokenizer and, where there is one, the speaker encoder are taken from `--parts`, where their
trainers leave them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from nava_core.models.speaker_encoder import ReDimNetSpeakerEncoder
from nava_core.models.transformer_nava import NavaTransformer3DModel
from nava_core.pipeline import NavaPipeline
from training import common

DTYPE = torch.bfloat16


def assemble(backbone: Path, parts: Path, out: Path, defaults: dict[str, Any]) -> int:
    """Write `model_index.json` and every part below `out`, which may be `parts`; returns the bytes of all weights."""
    speakers = parts / "speaker_encoder"
    pipeline = NavaPipeline(
        transformer=NavaTransformer3DModel.from_pretrained(backbone / "transformer", torch_dtype=DTYPE),
        text_encoder=UMT5EncoderModel.from_pretrained(backbone / "text_encoder", dtype=DTYPE),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(parts / "tokenizer"),
        vae=AutoencoderKLWan.from_pretrained(parts / "vae", torch_dtype=DTYPE),
        audio_vae=AutoencoderKLLTX2Audio.from_pretrained(parts / "audio_vae", torch_dtype=DTYPE),
        vocoder=LTX2VocoderWithBWE.from_pretrained(parts / "vocoder", torch_dtype=DTYPE),
        speaker_encoder=ReDimNetSpeakerEncoder.from_pretrained(speakers, torch_dtype=DTYPE)
        if speakers.exists()
        else None,
        defaults=defaults,
    )
    # Through a folder of its own, since some parts are read from where they are to be written.
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        pipeline.save_pretrained(folder)
        for path in Path(folder).rglob("config.json"):  # where a part was read from says nothing to others
            known = json.loads(path.read_text(encoding="utf-8"))
            known.pop("_name_or_path", None)
            path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                target = out / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    return sum(path.stat().st_size for path in out.rglob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Put nava-nano's trained parts together.")
    parser.add_argument("--backbone", type=Path, default=Path("runs/backbone_stage2"))
    parser.add_argument("--parts", type=Path, default=Path("training/weights"))
    parser.add_argument("--out", type=Path, default=Path("runs/nano_stage2"))
    parser.add_argument("--defaults", type=Path, default=Path("training/configs/nano_defaults.yaml"))
    arguments = parser.parse_args()
    size = assemble(arguments.backbone, arguments.parts, arguments.out, common.load_config(arguments.defaults))
    print(f"{arguments.out}: {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
