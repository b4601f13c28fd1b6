"""Train the embedded model's video autoencoder, a small `AutoencoderKLWan`, on the nano world.

    python -m training.video_vae --config training/configs/video_vae.yaml --out runs/video_vae [--resume] [--minutes 24]
    python -m training.video_vae --config ... --out runs/video_vae --stage decoder

The first command trains encoder and decoder, measures the latents' mean and spread over fresh clips and writes the
diffusers folder named in the config. The second goes on with the decoder alone, so that cached latents stay valid, from
the folder's checkpoint or, without one, from the config's `weights`. With --imagined a share of its steps has latents
that a backbone made (`training.imagined`).
Both also run as `torchrun --standalone --nproc-per-node 2 -m training.video_vae ...`, each rank on windows of its own.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import nn

from training import common
from training.fast_vae import decode_pixels, encode_moments, use_fast_norms
from training.imagined import ImaginedSource
from training.measure_vae import measure, save_sheet
from training.muon import Muon
from training.shots import sample_shot
from training.video_windows import WindowSource, babbling, to_pixels

STATISTICS_SEED = 800_000


def reconstruction_loss(
    sample: torch.Tensor, pixels: torch.Tensor, mask: torch.Tensor, config: dict[str, Any], progress: float = 1.0
) -> torch.Tensor:
    """Errors of the pixels, of their differences to the neighbours (edges) and of 4x4 means (colour).

    Squares lead at first and edges come in later: while the shape's place is still unknown, absolute errors and edges
    are least where no shape is drawn at all.
    """
    sharp = min(progress / config["sharp_from"], 1.0)
    weight = 1 + config["shape_weight"] * mask
    weight = weight / weight.mean()
    error = sample - pixels
    loss = (weight * (error.square() + (0.3 + 0.7 * sharp) * error.abs())).mean()
    across = (weight[..., 1:] * error.diff(dim=-1).abs()).mean()
    down = (weight[..., 1:, :] * error.diff(dim=-2).abs()).mean()
    coarse = (F.avg_pool3d(weight, (1, 4, 4)) * F.avg_pool3d(error, (1, 4, 4)).abs()).mean()
    return loss + config["gradient"] * sharp * (across + down) + config["coarse"] * coarse


def training_loss(
    vae: AutoencoderKLWan,
    pixels: torch.Tensor,
    mask: torch.Tensor,
    config: dict[str, Any],
    freeze_encoder: bool = False,
    progress: float = 1.0,
    anchor: AutoencoderKLWan | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of one batch: reconstruction from noisy latents and the pull of the latents to unit scale.

    anchor: the autoencoder that a run began with, near whose latents those of now are kept, except where a shape that
    falls or is struck is (`video_windows.SHAPE_WEIGHT`): what was made of all else stays valid.
    """
    with torch.set_grad_enabled(not freeze_encoder):
        mean, log_variance = encode_moments(vae, pixels).chunk(2, dim=1)
    log_variance = log_variance.clamp(-12, 4)
    latents = mean if freeze_encoder else mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    noise = config["latent_noise"] * min(progress / config["noisy_from"], 1.0)
    latents = latents + noise * torch.randn_like(mean)
    reconstruction = reconstruction_loss(decode_pixels(vae, latents), pixels, mask, config, progress)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    loss = reconstruction if freeze_encoder else reconstruction + config["kl"] * kl
    drift = torch.zeros(())
    if anchor is not None:
        with torch.no_grad():
            before = encode_moments(anchor, pixels).chunk(2, dim=1)[0]
        kept = F.adaptive_max_pool3d(mask, mean.shape[2:]) <= 1
        drift = ((mean - before).square() * kept).sum() / (kept.sum() * mean.shape[1]).clamp(min=1)
        loss = loss + config["anchor"] * drift
    return loss, {
        "drift": drift.item() ** 0.5,
        "reconstruction": reconstruction.item(),
        "kl": kl.item(),
        "latent_spread": mean.detach().std().item(),
        "posterior_spread": torch.exp(0.5 * log_variance).mean().item(),
    }


@torch.no_grad()
def latent_statistics(vae: AutoencoderKLWan, clips: int, kinds: dict[str, float]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel's posterior mode over `clips` training shots, `kinds` as trained."""
    total = torch.zeros(2, vae.config["z_dim"], dtype=torch.float64)
    count = 0
    shares = np.array(list(kinds.values())) / sum(kinds.values())
    for index in range(clips):
        rng = np.random.default_rng(STATISTICS_SEED + index)
        clip, _ = babbling(sample_shot(rng, str(rng.choice(list(kinds), p=shares)), "train"), rng)
        latents = encode_moments(vae, to_pixels(clip.frames)[None]).chunk(2, dim=1)[0].double()
        total += torch.stack([latents.sum((0, 2, 3, 4)), latents.square().sum((0, 2, 3, 4))])
        count += latents[:, 0].numel()
    mean, square = total / count
    return mean.tolist(), (square - mean.square()).clamp(min=1e-8).sqrt().tolist()


def build(model: dict[str, Any], mean: list[float] | None = None, std: list[float] | None = None) -> AutoencoderKLWan:
    """The library's autoencoder of these sizes; without statistics its normalisation is the identity."""
    z_dim = model["z_dim"]
    return AutoencoderKLWan(**model, latents_mean=mean or [0.0] * z_dim, latents_std=std or [1.0] * z_dim)


@torch.no_grad()
def start_quietly(vae: AutoencoderKLWan) -> None:
    """Begin with a posterior of little noise: the default is unit noise, which takes minutes to unlearn."""
    for name, value in vae.quant_conv.named_parameters():
        log_variance = value[vae.config["z_dim"] :]
        log_variance.mul_(0.1) if name == "weight" else log_variance.fill_(-6.0)


def export(vae: AutoencoderKLWan, model: dict[str, Any], mean: list[float], std: list[float], folder: Path) -> None:
    """Write the diffusers folder, weights in bfloat16."""
    published = build(model, [round(value, 5) for value in mean], [round(value, 5) for value in std])
    published.load_state_dict(vae.state_dict())
    nn.Module.to(published, dtype=torch.bfloat16)
    published.save_pretrained(folder)


def published_statistics(folder: str | Path) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel, of the diffusers folder that `export` wrote."""
    published = AutoencoderKLWan.load_config(folder)
    return published["latents_mean"], published["latents_std"]


class Trainer:
    """Holds what a checkpoint holds, and the loop over steps."""

    def __init__(
        self, config: dict[str, Any], folder: Path, stage: str, minutes: float, resume: bool,
        imagined: tuple[Path, Path] | None = None,
    ) -> None:  # fmt: skip
        """imagined: the folder of imagined latents and the file of their voices, of the decoder's stage."""
        self.config, self.folder, self.stage = config, folder, stage
        common.seed_everything(config["seed"])
        self.vae = use_fast_norms(build(config["model"]))
        if config["weights"]:
            trained = AutoencoderKLWan.from_pretrained(config["weights"], torch_dtype=torch.float32)
            self.vae.load_state_dict(trained.state_dict())
        else:
            start_quietly(self.vae)
        anchored = stage == "joint" and config["weights"] and config["loss"].get("anchor")
        self.anchor = copy.deepcopy(self.vae).requires_grad_(False) if anchored else None
        self.averaged = use_fast_norms(build(config["model"])).requires_grad_(False)
        self.log = common.MetricsLog(folder / "metrics.jsonl")
        self.step, spent = 0, 0.0
        state = common.load_checkpoint(folder) if resume or stage == "decoder" else None
        if stage == "decoder" and state is None and not config["weights"]:
            raise ValueError(
                f"{folder} holds no checkpoint and the config no weights; the decoder stage goes on from either"
            )
        if state and state["stage"] != stage:
            self._load_averages(state)
        self._freeze()
        self.ema = common.EMA(self.vae, config["ema_decay"])
        trained = [value for value in self.vae.parameters() if value.requires_grad]
        kernels = [value for value in trained if value.ndim > 3 and value[0].numel() > 1]
        others = [value for value in trained if not (value.ndim > 3 and value[0].numel() > 1)]
        self.optimizers = {
            "muon": Muon(kernels),
            "adam": torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
        }
        if state and state["stage"] == stage:
            self.step, spent = state["step"], state["spent"]
            self.vae.load_state_dict(state["vae"])
            self.ema.load_state_dict(state["ema"])
            self.ema.decay = config["ema_decay"]
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state[name])
        self.clock = common.RunClock(minutes=minutes, spent=spent)
        self.ranks = common.Ranks()
        # The sizes of the windows are drawn alike on all ranks, so that none waits for another's larger step.
        self.sizes = np.random.default_rng([config["seed"], self.step])
        seed = config["seed"] + 1 + self.step + 1_000_000 * self.ranks.index
        self.source = WindowSource(config, seed)
        self.imagined = ImaginedSource(*imagined, seed) if imagined else None
        if imagined:
            statistics = published_statistics(config["output"])
            self.mean, self.spread = (torch.tensor(values)[:, None, None, None] for values in statistics)

    def _load_averages(self, state: dict[str, Any]) -> None:
        ema = common.EMA(self.vae)
        ema.load_state_dict(state["ema"])
        ema.copy_to(self.vae)

    def _freeze(self) -> None:
        if self.stage == "decoder":
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)

    def save(self) -> None:
        common.save_checkpoint(
            self.folder,
            self.step,
            stage=self.stage,
            spent=self.clock.spent,
            vae=self.vae,
            ema=self.ema,
            **self.optimizers,
        )

    def average(self) -> AutoencoderKLWan:
        self.ema.copy_to(self.averaged)
        return self.averaged

    def run(self, report: Callable[[str], None]) -> None:
        """Train until the clock says so, with a checkpoint and a measurement from time to time."""
        saved = time.monotonic()
        recent: defaultdict[str, list[float]] = defaultdict(list)
        while (progress := self.ranks.progress(self.clock, self.step)) < 1:
            values = self._train_step(progress)
            self.step += 1
            if self.ranks.index > 0:
                continue
            for name, value in values.items():
                recent[name].append(value)
            if self.step % 50 == 0:
                means = {name: round(float(np.mean(found)), 5) for name, found in recent.items()}
                recent.clear()
                self.log.write(self.step, stage=self.stage, progress=round(progress, 4), **means)
                text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
                report(f"{self.stage} step {self.step} {self.clock.spent:.0f} s ({progress:.0%}) {text}")
            if time.monotonic() - saved > self.config["checkpoint_seconds"]:
                saved = time.monotonic()
                self.save()
            if self.step % self.config["validation_steps"] == 0:
                report(f"step {self.step} on fresh clips: {self.validate(self.config['validation_clips'])}")
        if self.ranks.index == 0:
            self.save()

    def validate(self, clips: dict[str, int]) -> dict[str, dict[str, float]]:
        """Measures of so many fresh clips of each kind."""
        found = {kind: measure(self.average(), count, kind)[0] for kind, count in clips.items()}
        for kind, values in found.items():
            self.log.write(self.step, stage=self.stage, kind=kind, **values)
        return found

    def _train_step(self, progress: float) -> dict[str, float]:
        rate = self.config["learning_rate"] * common.warmup_hold_decay(progress, 0.01, self.config["decay_share"])
        frozen = self.stage == "decoder"
        sharpness = 1.0 if frozen else progress
        if self.imagined and self.sizes.random() < self.config["imagined_share"]:
            loss, values = self._imagined_loss(self.imagined)
        else:
            pixels, mask = self.source.draw(progress, self.sizes)
            with common.mixed_precision(self.config["precision"]):
                loss, values = training_loss(
                    self.vae, pixels, mask, self.config["loss"], frozen, sharpness, self.anchor
                )
        self.vae.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.average_gradients([value for value in self.vae.parameters() if value.requires_grad])
        norm = nn.utils.clip_grad_norm_(self.vae.parameters(), self.config["clip_norm"])
        for optimizer in self.optimizers.values():
            common.set_learning_rate(optimizer, rate)
            optimizer.step()
        self.ema.update(self.vae)
        return {**values, "gradient": float(norm)}

    def _imagined_loss(self, source: ImaginedSource) -> tuple[torch.Tensor, dict[str, float]]:
        """Of what a backbone made of a clip, decoded, held against the clip itself."""
        pixels, mask, latents = source.draw()
        with common.mixed_precision(self.config["precision"]):
            sample = decode_pixels(self.vae, latents * self.spread + self.mean)
            loss = reconstruction_loss(sample, pixels, mask, self.config["loss"])
        return loss, {"imagined": loss.item()}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the small video autoencoder.")
    parser.add_argument("--config", type=Path, default=Path("training/configs/video_vae.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/video_vae"))
    parser.add_argument("--stage", choices=("joint", "decoder"), default="joint")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    parser.add_argument("--minutes", type=float, help="of training in this stage, in place of the config's")
    parser.add_argument("--weights", type=Path, help="a folder to go on from in place of the config's")
    parser.add_argument("--imagined", type=Path, help="latents of training.imagined, for the decoder's stage")
    parser.add_argument("--voices", type=Path, default=Path("runs/voices/voices.npz"), help="their voices")
    arguments = parser.parse_args(given)
    if arguments.imagined and arguments.stage != "decoder":
        parser.error("--imagined is for --stage decoder: what a backbone makes has no pixels for an encoder to read")
    config = common.load_config(arguments.config)
    torch.set_num_threads(config["threads"])
    torch.set_flush_denormal(True)
    if arguments.weights:
        config["weights"] = str(arguments.weights)
    if arguments.stage == "decoder":
        config |= {"kinds": config.get("decoder_kinds", config["kinds"])}
    minutes = arguments.minutes or config["minutes" if arguments.stage == "joint" else "decoder_minutes"]
    imagined = (arguments.imagined, arguments.voices) if arguments.imagined else None
    trainer = Trainer(config, arguments.out, arguments.stage, minutes, arguments.resume, imagined)

    def report(text: str) -> None:
        print(time.strftime("%H:%M:%S"), text, flush=True)

    report(f"{common.count_parameters([trainer.vae]):,} weights")
    trainer.run(report)
    if trainer.ranks.index > 0:
        return
    vae, output = trainer.average(), Path(config["output"])
    if arguments.stage == "decoder" or trainer.anchor is not None:  # latents keep their scale
        mean, std = published_statistics(output if arguments.stage == "decoder" else config["weights"])
    else:
        mean, std = latent_statistics(vae, config["statistics_clips"], config["kinds"])
    export(vae, config["model"], mean, std, output)
    report(f"written to {output}; mean {np.round(mean, 3)}, std {np.round(std, 3)}")
    saved = use_fast_norms(AutoencoderKLWan.from_pretrained(output, torch_dtype=torch.float32))
    for kind in config["kinds"]:
        for split in ("train", "held_out"):
            values, pictures = measure(saved, config["final_clips"], kind, split)
            save_sheet(pictures[:6], arguments.out / f"sheet_{kind}_{split}.png")
            report(f"as saved, fresh {kind} clips, {split}: {values}")


if __name__ == "__main__":
    main()
