"""Row 9: peak host memory while a float32 checkpoint becomes bfloat16 weights."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.catalogue import row
from benchmarks.harness import Row
from nava_core.models.transformer_nava import NavaTransformer3DModel

CONFIG = {
    "dim": 512,
    "ffn_dim": 3072,
    "num_heads": 4,
    "num_double_layers": 2,
    "num_single_layers": 10,
    "text_dim": 512,
    "add_spk_emb": True,
    "no_split_norm_ffn": True,
}
"""An official config whose largest tensor is 6% of the weights; in the 6.3B model it is 3%, so this is harder."""


def loading_part(budget: float) -> list[Row]:
    """The larger peak of both published file forms / bytes of the weights that remain."""
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".safetensors", ".ckpt"):
            path = Path(folder) / f"NAVA{suffix}"
            size = write_checkpoint(path)
            ratios[suffix] = peak_over_weights(path)
            path.unlink()
    detail = {
        "summary": f"{ratios['.safetensors']:.2f} (.safetensors) and {ratios['.ckpt']:.2f} (.ckpt), all resident "
        f"memory with the file's mapped pages, for {size / 2**20:.0f} MiB of float32 tensors",
        "ratios": ratios,
        "file_bytes": size,
    }
    return [row("load", max(ratios.values()), detail)]


def write_checkpoint(path: Path) -> int:
    """An official file of zeros, float32; returns its bytes."""
    with torch.device("meta"):
        model = NavaTransformer3DModel(
            num_attention_heads=CONFIG["num_heads"],
            attention_head_dim=128,
            ffn_dim=CONFIG["ffn_dim"],
            num_layers=CONFIG["num_double_layers"],
            num_single_layers=CONFIG["num_single_layers"],
            text_dim=CONFIG["text_dim"],
        )
    doubles = int(CONFIG["num_double_layers"])
    tensors = {official_name(name, doubles): torch.zeros(form.shape) for name, form in model.state_dict().items()}
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors}, path)
    else:
        save_file(tensors, path)
    return path.stat().st_size


def official_name(name: str, doubles: int) -> str:
    """What the published files call one of our tensors."""
    if name.startswith("transformer_blocks."):
        _, index, rest = name.split(".", 2)
        is_double = int(index) < doubles
        name = f"double_blocks.{index}.{rest}" if is_double else f"single_blocks.{int(index) - doubles}.{rest}"
    return f"backbone.{name}"


def peak_over_weights(path: Path) -> float:
    """Loads the file in a process of its own, whose memory nothing else has touched."""
    command = [sys.executable, "-m", "benchmarks.loading", str(path)]
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    if run.returncode:
        raise RuntimeError(f"loading {path.name} failed:\n{run.stderr}")
    return float(json.loads(run.stdout)["ratio"])


def _measure(path: str) -> dict[str, Any]:
    import nava_core.checkpoint  # noqa: F401 (before the counting: what modules take grows with no weight)
    from benchmarks.memory import forget_resident_peak, resident_bytes

    forget_resident_peak()
    before = resident_bytes()
    model = NavaTransformer3DModel.from_official(path, CONFIG, dtype=torch.bfloat16)
    peak = resident_bytes("VmHWM") - before
    return {"ratio": peak / sum(parameter.nbytes for parameter in model.parameters())}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(sys.argv[1])))
