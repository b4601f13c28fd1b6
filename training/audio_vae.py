"""Train the audio autoencoder: stereo log-mel <-> 25 tokens a second.

`python -m training.audio_vae --config training/configs/audio_vae.yaml --out runs/audio_vae [--resume] [--minutes M]`
leaves the finished model (bf16, with latent statistics) in `runs/audio_vae/audio_vae`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLLTX2Audio
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from training.common import (
    EMA,
    MetricsLog,
    RunClock,
    load_checkpoint,
    load_config,
    save_checkpoint,
    seed_everything,
    set_learning_rate,
    warmup_cosine,
)
from training.sounds import SoundClip, clips_of, crossing_frame, true_onsets

SAVE_SECONDS = 240
# Clips that are measured with each checkpoint, and at the end.
PROGRESS_CLIPS, FINAL_CLIPS = 6, 40
WORLD_ONLY = {"world": 1.0}
# The world's noise floor: its median log-mel and a level that it seldom passes.
SILENCE, SILENCE_TOP = -9.1, -8.4
# Log-mel above which a sound is heard over the world's noise floor.
AUDIBLE = -6.5


def build_model(arguments: dict[str, Any]) -> AutoencoderKLLTX2Audio:
    """A fresh model whose first outputs are silence, which is what most frames hold."""
    model = AutoencoderKLLTX2Audio(**arguments)
    first, last = model.encoder.conv_in.conv, model.decoder.conv_out.conv
    with torch.no_grad():
        first.bias -= SILENCE * first.weight.sum(dim=(1, 2, 3))
        last.bias.fill_(SILENCE)
    return model


def crops(mels: torch.Tensor, frames: int, gain: float, batch_size: int, rng: np.random.Generator) -> torch.Tensor:
    """Random crops `(batch, 2, frames, 64)` with sides swapped and a gain; the louder of two, as most is silence."""
    drawn = []
    for _ in range(batch_size):
        index = rng.integers(len(mels), size=2)
        starts = rng.integers(mels.shape[2] - frames + 1, size=2)
        pair = [mels[i, :, s : s + frames] for i, s in zip(index, starts, strict=True)]
        crop = max(pair, key=lambda mel: float(mel.amax(dim=(0, 2)).mean()))
        crop = crop.flip(0) if rng.random() < 0.5 else crop
        drawn.append((crop + gain * rng.standard_normal()).clamp_min(math.log(1e-5)))
    return torch.stack(drawn)


def without_noise_floor(mel: torch.Tensor) -> torch.Tensor:
    """Silence instead of the noise floor, so that no latent number is spent on noise that nobody can predict."""
    return torch.where(mel < SILENCE_TOP, SILENCE, mel)


def reconstruction_loss(
    reconstruction: torch.Tensor, target: torch.Tensor, slope_weight: float, side_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Absolute error of the log-mel, of its change from frame to frame and of left over right, where it is heard.

    Without the last, the two sides come out alike: a wrong pan costs less than the smallest error of the timbre.
    """
    weight = 0.15 + torch.sigmoid(1.5 * (target - AUDIBLE))
    level = (weight * (reconstruction - target).abs()).mean()
    rise = reconstruction.diff(dim=2) - target.diff(dim=2)
    slope = (torch.maximum(weight[:, :, 1:], weight[:, :, :-1]) * rise.abs()).mean()
    lean = (reconstruction - target)[:, 0] - (reconstruction - target)[:, 1]
    side = (weight.amax(dim=1) * lean.abs()).mean()
    return level + slope_weight * slope + side_weight * side, level


def training_step(
    model: AutoencoderKLLTX2Audio, mel: torch.Tensor, settings: dict[str, Any]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of one batch of crops, and its parts for the log."""
    posterior: DiagonalGaussianDistribution = model.encode(mel).latent_dist
    spread = posterior.mean.detach().std(dim=(0, 2), keepdim=True)
    latents = posterior.sample()
    latents = latents + settings["latent_noise"] * spread * torch.randn_like(latents)
    reconstruction = model.decode(latents).sample
    weights = settings["slope_weight"], settings["side_weight"]
    loss, level = reconstruction_loss(reconstruction, without_noise_floor(mel), *weights)
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    total = loss + settings["kl_weight"] * divergence
    return total, {"loss": total.item(), "level": level.item(), "kl": divergence.item(), "std": spread.mean().item()}


def tokens_of(model: AutoencoderKLLTX2Audio, mel: torch.Tensor) -> torch.Tensor:
    """Posterior modes of `(batch, 2, frames, 64)` as tokens `(batch, length, channels)`, z[c, t, m] at 16 c + m."""
    latents = model.encode(mel).latent_dist.mode()
    return latents.permute(0, 2, 1, 3).flatten(2)  # (batch, length, channels * mel)


@torch.no_grad()
def set_statistics(
    model: AutoencoderKLLTX2Audio, clips: Sequence[SoundClip], target: AutoencoderKLLTX2Audio | None = None
) -> None:
    """Fill `latents_mean` and `latents_std` of `target` (or `model`) from the tokens that `model` gives `clips`."""
    tokens = torch.cat([tokens_of(model, clip.mel[None])[0] for clip in clips])
    target = target or model
    target.latents_mean.copy_(tokens.mean(dim=0))
    target.latents_std.copy_(tokens.std(dim=0).clamp_min(1e-3))


@torch.no_grad()
def measure(model: AutoencoderKLLTX2Audio, count: int, seed: int) -> dict[str, float]:
    """Errors on fresh clips of the world: log-mel in nepers (all, and where audible), pan in dB, onset shift in ms."""
    everywhere, audible, leans, shifts, late = [], [], [], [], 0
    for clip, onsets in true_onsets(count, seed):
        result = model.decode(model.encode(clip.mel[None]).latent_dist.mode()).sample[0]
        error = (result - without_noise_floor(clip.mel)).abs()
        everywhere.append(error.mean().item())
        audible.append(error[clip.mel > AUDIBLE].mean().item())
        heard = clip.mel.amax(dim=0) > AUDIBLE
        leans.append(((result - clip.mel)[0] - (result - clip.mel)[1])[heard].mean().abs().item())
        envelopes = [mel.exp().sum(dim=(0, 2)).log() for mel in (clip.mel, result)]
        for onset in onsets:
            before, after = (crossing_frame(envelope, onset * 100, 6) for envelope in envelopes)
            if before is None:
                continue
            if after is None:
                late += 1
            else:
                shifts.append(10 * (after - before))
    shift = np.array(shifts) if shifts else np.array([np.nan])
    return {
        "error": float(np.mean(everywhere)),
        "audible_error": float(np.mean(audible)),
        "pan_abs_db": float(np.mean(leans)) * 20 / math.log(10),
        "onset_ms": float(shift.mean()),
        "onset_abs_ms": float(np.abs(shift).mean()),
        "onset_worst_ms": float(np.abs(shift).max()),
        "onsets": len(shifts),
        "onsets_lost": late,
    }


class Trainer:
    """Model, its moving average and optimiser, and the clock: everything that a checkpoint holds.

    `prepare` and `loss` say what is learnt, `measure` and `finish` what came of it.
    """

    model: torch.nn.Module

    def __init__(self, config: dict[str, Any], out: Path, minutes: float | None = None, resume: bool = False) -> None:
        self.config, self.settings, self.out = config, config["train"], out
        seed_everything(self.settings["seed"])
        self.model = self.build()
        self.average = EMA(self.model, self.settings["ema_decay"])
        self.optimizers = self.build_optimizers()
        self.log = MetricsLog(out / "metrics.jsonl")
        self.step, self.spent = 0, 0.0
        if resume and (state := load_checkpoint(out)) is not None:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.spent = state["step"], state["spent"]
        self.minutes = minutes or self.settings["minutes"]
        self.progress = 0.0
        self.rng = np.random.default_rng([self.settings["seed"], self.step])

    def build(self) -> torch.nn.Module:
        """A fresh model."""
        raise NotImplementedError

    def build_optimizers(self) -> list[torch.optim.Optimizer]:
        """What moves the weights; all follow the config's learning rate."""
        rate = self.settings["learning_rate"]
        return [torch.optim.AdamW(self.model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)]

    def prepare(self) -> None:
        """Make the training data; called once, before the clock starts."""
        raise NotImplementedError

    def loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of one random batch, and its parts for the log."""
        raise NotImplementedError

    def clip_gradients(self) -> None:
        """Bound the gradient before each step."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)

    def measure(self, count: int, seed: int) -> dict[str, Any]:
        """Errors of the averaged model on `count` fresh clips."""
        raise NotImplementedError

    def averaged(self) -> Any:
        """A copy of the model with the averaged weights, rounded to bf16 as they are stored."""
        model = copy.deepcopy(self.model).requires_grad_(False)
        self.average.copy_to(model)
        model.load_state_dict({name: value.to(torch.bfloat16).float() for name, value in model.state_dict().items()})
        return model

    def train(self) -> None:
        """Train until the clock, which counts over all resumed runs, shows the minutes asked for."""
        self.prepare()
        clock = RunClock(minutes=self.minutes, spent=self.spent)
        saved = clock.spent
        while (progress := clock.progress(self.step)) < 1:
            self.progress = progress
            for optimizer in self.optimizers:
                set_learning_rate(optimizer, self.settings["learning_rate"] * warmup_cosine(progress))
            self.model.zero_grad(set_to_none=True)
            loss, parts = self.loss()
            loss.backward()
            self.clip_gradients()
            for optimizer in self.optimizers:
                optimizer.step()
            self.average.update(self.model)
            self.step += 1
            if self.step % 25 == 0:
                self.log.write(self.step, **parts)
                print(self.step, f"{clock.spent / 60:.2f} min", {k: round(v, 4) for k, v in parts.items()}, flush=True)
            if clock.spent - saved > SAVE_SECONDS:
                saved = clock.spent
                self.save(saved)
                print(json.dumps(self.measure(PROGRESS_CLIPS, 900)), flush=True)
        self.save(clock.spent)

    def save(self, spent: float) -> None:
        """Write the checkpoint; `spent` is the clock in seconds."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        save_checkpoint(self.out, self.step, model=self.model, average=self.average, optimizers=optimizers, spent=spent)

    def finish(self) -> None:
        """Measure the averaged model and save it, in bf16, with its report beside it."""
        report = self.measure(FINAL_CLIPS, 901)
        print(json.dumps(report), flush=True)
        (self.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        self.averaged().to(torch.bfloat16).save_pretrained(self.out / self.out.name)


class AudioVaeTrainer(Trainer):
    """The audio autoencoder on random crops of log-mels."""

    def build(self) -> AutoencoderKLLTX2Audio:
        model = build_model(self.config["model"])
        if self.config.get("start"):
            started = AutoencoderKLLTX2Audio.from_pretrained(self.config["start"], torch_dtype=torch.float32)
            model.load_state_dict(started.state_dict())
        return model

    def prepare(self) -> None:
        data = self.config["data"]
        self.mels = torch.stack([clip.mel for clip in clips_of(data, data["clips"], data["seed"])])

    def loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        data = self.config["data"]
        mel = crops(self.mels, data["frames"], data["gain"], self.settings["batch_size"], self.rng)
        return training_step(self.model, mel, self.settings)

    def measure(self, count: int, seed: int) -> dict[str, Any]:
        return measure(self.averaged(), count, seed)

    def finish(self) -> None:
        statistics = self.config["statistics"]
        clips = clips_of(
            self.config["data"], statistics["clips"], statistics["seed"], statistics.get("shares", WORLD_ONLY)
        )
        set_statistics(self.averaged(), clips, self.model)
        super().finish()


def run(trainer: type[Trainer], description: str) -> None:
    """The command line that every sound trainer has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the model goes to a folder of the same name in it")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--minutes", type=float, help="instead of the config's; counts over all resumed runs")
    arguments = parser.parse_args()
    job = trainer(load_config(arguments.config), arguments.out, arguments.minutes, arguments.resume)
    job.train()
    job.finish()


if __name__ == "__main__":
    run(AudioVaeTrainer, "Train the audio autoencoder of nava-nano.")
