"""Put the trained parts together as one diffusers folder, in bfloat16.

    python -m training.assemble --backbone runs/backbone --out assets/nava-nano

Autoencoders, vocoder and tokenizer are taken from the folder itself, where their trainers leave them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import AutoencoderKLLTX2Audio
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from nava_core.models.transformer_nava import NavaTransformer3DModel
from nava_core.pipeline import NavaPipeline
from training import common

DTYPE = torch.bfloat16


def assemble(backbone: Path, out: Path, defaults: dict[str, Any]) -> int:
    """Write `model_index.json` and every part below `out`; returns the bytes of all weights."""
    pipeline = NavaPipeline(
        transformer=NavaTransformer3DModel.from_pretrained(backbone / "transformer", torch_dtype=DTYPE),
        text_encoder=UMT5EncoderModel.from_pretrained(backbone / "text_encoder", dtype=DTYPE),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(out / "tokenizer"),
        vae=AutoencoderKLWan.from_pretrained(out / "vae", torch_dtype=DTYPE),
        audio_vae=AutoencoderKLLTX2Audio.from_pretrained(out / "audio_vae", torch_dtype=DTYPE),
        vocoder=LTX2VocoderWithBWE.from_pretrained(out / "vocoder", torch_dtype=DTYPE),
        defaults=defaults,
    )
    # Through a folder of its own, since some parts are read from where they are to be written.
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        pipeline.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                target = out / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.replace(target)
    return sum(path.stat().st_size for path in out.rglob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Put nava-nano's trained parts together.")
    parser.add_argument("--backbone", type=Path, default=Path("runs/backbone"))
    parser.add_argument("--out", type=Path, default=Path("assets/nava-nano"))
    parser.add_argument("--defaults", type=Path, default=Path("training/configs/nano_defaults.yaml"))
    arguments = parser.parse_args()
    size = assemble(arguments.backbone, arguments.out, common.load_config(arguments.defaults))
    print(f"{arguments.out}: {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
