"""Train the vocoder: log-mel -> 16 kHz -> bandwidth extension -> 48 kHz, in stereo.

`python -m training.vocoder --config training/configs/vocoder.yaml --out runs/vocoder [--resume] [--minutes M]`
leaves the finished model (bf16) in `runs/vocoder/vocoder`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

from nava_core.mel import HOP_LENGTH, SAMPLING_RATE, log_mel_spectrogram, mel_filter_bank
from training.audio_vae import AUDIBLE, SILENCE, Trainer, run
from training.muon import Muon
from training.sounds import OUTPUT_RATE, SoundClip, clips_of, crossing_frame, true_onsets
from training.world_sound import NOISE_FLOOR

RATIO = OUTPUT_RATE // SAMPLING_RATE
# Amplitude under which the losses lose interest.
QUIET = 20 * NOISE_FLOOR
LOW_RESOLUTIONS = {64: 6, 256: 20, 1024: 64}
HIGH_RESOLUTIONS = {128: 6, 512: 20, 2048: 80}
# Milliseconds: an envelope's frame, and how far from a contact its onset is looked for.
ENVELOPE_MS, REACH_MS = 1, 60
LOUDEST_FALL = math.log(10 ** (40 / 20))


def build_model(arguments: dict[str, Any]) -> LTX2VocoderWithBWE:
    """A fresh model with its Fourier basis and mel filters in place and an almost silent bandwidth extension."""
    model = LTX2VocoderWithBWE(**arguments)
    length, mels = arguments["filter_length"], arguments["num_mel_channels"]
    time = torch.arange(length, dtype=torch.float64)
    angle = 2 * math.pi * torch.arange(length // 2 + 1, dtype=torch.float64)[:, None] * time / length
    basis = torch.cat([angle.cos(), -angle.sin()]) * torch.hann_window(length, dtype=torch.float64)
    with torch.no_grad():
        model.mel_stft.stft_fn.forward_basis.copy_(basis[:, None].bfloat16())
        model.mel_stft.mel_basis.copy_(mel_filter_bank(SAMPLING_RATE, length, mels).bfloat16())
        for value in model.parameters():
            tie_sides(value, apart=True)
            if value.ndim > 1:  # the mean of two halves, and half as many inputs, each take a factor of sqrt(2)
                value.mul_(2.0)
        # Silence is far from zero in log-mels: shift it there; spread the kinks of the activations over the loudness,
        # since loudness is an exponential of the input.
        for generator in (model.vocoder, model.bwe_generator):
            weight, bias = generator.conv_in.weight, generator.conv_in.bias
            bias.sub_(SILENCE * weight.sum(dim=(1, 2)) + 3 * torch.rand(len(bias) // 2).repeat(2))
        model.bwe_generator.conv_out.weight.mul_(0.01)
        model.vocoder.conv_out.weight.mul_(0.1)
    return model


@torch.no_grad()
def tie_sides(tensor: torch.Tensor, apart: bool) -> None:
    """Make a weight, or its gradient, treat both sides alike, in place: the first half of all channels is the left.

    Swapping the sides of the mel then swaps those of the sound. With `apart` nothing passes from one side to the other,
    without which a young model settles on one sound in the middle.
    """
    outputs = tensor.shape[0] // 2
    if tensor.ndim == 1:
        tensor.copy_(((tensor[:outputs] + tensor[outputs:]) / 2).repeat(2))
        return
    inputs = tensor.shape[1] // 2
    own = (tensor[:outputs, :inputs] + tensor[outputs:, inputs:]) / 2
    other = (tensor[:outputs, inputs:] + tensor[outputs:, :inputs]) / 2 * (not apart)
    tensor.copy_(torch.cat([torch.cat([own, other], dim=1), torch.cat([other, own], dim=1)]))


def both_rates(model: LTX2VocoderWithBWE, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The 16 kHz and 48 kHz waveforms `(batch, 2, samples)` of `(batch, 2, frames, mel)`.

    The second has no gradient for the first stage: the logarithm of the bandwidth extension's own mel, steepest in
    silence, would drown the first stage's.
    """
    inner: list[torch.Tensor] = []

    def cut(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        inner.append(output)
        return output.detach()

    hook = model.vocoder.register_forward_hook(cut)
    try:
        high = model(mel)
    finally:
        hook.remove()
    return inner[0], high


def spectral_loss(sound: torch.Tensor, target: torch.Tensor, rate: int, resolutions: dict[int, int]) -> torch.Tensor:
    """Multi-resolution STFT loss of `(batch, 2, samples)`, mean over `resolutions` (window in samples: mel bands).

    Log-magnitude error by bin and by mel band, error of the square root and spectral convergence. The logarithm alone
    learns from the many quiet places first, and the bins alone reward a young model for silence.
    """
    total = sound.new_zeros(())
    for length, bands in resolutions.items():
        window = torch.hann_window(length)
        floor = QUIET * (0.375 * length) ** 0.5
        filters = mel_filter_bank(rate, length, bands)
        filters = filters / filters.sum(dim=1, keepdim=True)
        magnitudes = []
        for waveform in (sound, target):
            spectrum = torch.stft(
                waveform.flatten(0, 1), length, length // 4, length, window, return_complex=True, pad_mode="reflect"
            )
            magnitudes.append((spectrum.real**2 + spectrum.imag**2 + 1e-10).sqrt())
        mine, theirs = magnitudes
        by_bin = ((mine + floor) / (theirs + floor)).log().abs().mean()
        by_band = ((filters @ mine + floor) / (filters @ theirs + floor)).log().abs().mean()
        convergence = (mine - theirs).norm() / theirs.norm().clamp_min(1.0)
        root = (mine.sqrt() - theirs.sqrt()).abs().mean() / theirs.sqrt().mean().clamp_min(0.05)
        total = total + by_bin + by_band + root + 0.25 * convergence
    return total / len(resolutions)


def envelope_loss(sound: torch.Tensor, target: torch.Tensor, length: int) -> torch.Tensor:
    """Error of the log mean amplitude over windows of `length` samples, half overlapping: onsets and level."""
    mine, theirs = (F.avg_pool1d(waveform.abs(), length, length // 2).add(QUIET).log() for waveform in (sound, target))
    return (mine - theirs).abs().mean()


def level_loss(sound: torch.Tensor, target: torch.Tensor, length: int) -> torch.Tensor:
    """Error of the log power of both sides and of their difference (the pan), over windows of `length` samples."""
    mine, theirs = (
        0.5 * F.avg_pool1d(waveform.square(), length, length // 2).add(QUIET**2).log() for waveform in (sound, target)
    )
    pan = (mine[:, 0] - mine[:, 1]) - (theirs[:, 0] - theirs[:, 1])
    return (mine - theirs).abs().mean() + pan.abs().mean()


def waveform_loss(sound: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute error relative to the batch's mean amplitude: keeps the phase where it can be known."""
    return (sound - target).abs().mean() / target.abs().mean().clamp_min(1e-3)


class VocoderTrainer(Trainer):
    """The vocoder on random short segments of mels, true and from the audio autoencoder."""

    model: Any  # torch's types know nothing of a module's parts

    def build(self) -> LTX2VocoderWithBWE:
        model = build_model(self.config["model"])
        if self.config.get("start"):
            started: Any = LTX2VocoderWithBWE.from_pretrained(self.config["start"], torch_dtype=torch.float32)
            model.load_state_dict(started.state_dict())
        return model

    def build_optimizers(self) -> list[torch.optim.Optimizer]:
        rate = self.settings["learning_rate"]
        kernels = [value for value in self.model.parameters() if value.ndim > 1]
        vectors = [value for value in self.model.parameters() if value.ndim == 1]
        return [Muon(kernels, lr=rate), torch.optim.AdamW(vectors, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)]

    def prepare(self) -> None:
        data = self.config["data"]
        self.clips = clips_of(data, data["clips"], data["seed"])
        self.audio_vae: AutoencoderKLLTX2Audio | None = None
        if self.config["audio_vae"]:
            self.audio_vae = AutoencoderKLLTX2Audio.from_pretrained(
                self.config["audio_vae"], torch_dtype=torch.float32
            ).requires_grad_(False)
            self.decoded = [self._through_vae(clip.mel) for clip in self.clips]

    def _through_vae(self, mel: torch.Tensor) -> torch.Tensor:
        assert self.audio_vae is not None
        with torch.no_grad():
            latents = self.audio_vae.encode(mel[None]).latent_dist.mode()
            spread = self.audio_vae.latents_std.view(latents.shape[1], 1, latents.shape[3])
            latents = latents + self.config["data"]["latent_noise"] * spread * torch.randn_like(latents)
            return self.audio_vae.decode(latents).sample[0]

    def _segment(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loudest of a few random segments: mel, 16 kHz and 48 kHz."""
        data, rng = self.config["data"], self.rng
        frames = data["frames"]
        drawn: list[tuple[SoundClip, torch.Tensor, int]] = []
        for _ in range(data["loudest_of"]):
            index = int(rng.integers(len(self.clips)))
            decoded = self.audio_vae is not None and rng.random() < data["decoded_share"]
            mel = self.decoded[index] if decoded else self.clips[index].mel
            # The last frame is centred on the clip's end and has no samples after it.
            drawn.append((self.clips[index], mel, int(rng.integers(mel.shape[1] - frames))))
        clip, mel, start = max(drawn, key=lambda d: float(d[0].mel[:, d[2] : d[2] + frames].amax(dim=(0, 2)).mean()))
        low = clip.low[:, start * HOP_LENGTH : (start + frames) * HOP_LENGTH]
        high = clip.high[:, start * HOP_LENGTH * RATIO : (start + frames) * HOP_LENGTH * RATIO]
        return mel[:, start : start + frames], low, high

    def loss(self) -> tuple[torch.Tensor, dict[str, float]]:
        segments = [self._segment() for _ in range(self.settings["batch_size"])]
        mel, low, high = (torch.stack(parts) for parts in zip(*segments, strict=True))
        weights, parts = self.settings, {}
        both = self.progress >= weights["first_stage_share"]
        my_low, my_high = both_rates(self.model, mel) if both else (self.model.vocoder(mel), None)
        parts["low"] = spectral_loss(my_low, low, SAMPLING_RATE, LOW_RESOLUTIONS)
        parts["envelope"] = weights["envelope_weight"] * envelope_loss(my_low, low, 32)
        parts["level"] = weights["level_weight"] * level_loss(my_low, low, 320)
        parts["waveform"] = weights["waveform_weight"] * waveform_loss(my_low, low)
        if my_high is not None:
            parts["high"] = spectral_loss(my_high, high, OUTPUT_RATE, HIGH_RESOLUTIONS)
            parts["high_envelope"] = weights["envelope_weight"] * envelope_loss(my_high, high, 96)
        total = torch.stack(list(parts.values())).sum()
        gain = 20 * math.log10(float(my_low.detach().norm() / low.norm().clamp_min(1e-3)) + 1e-6)
        return total, {"loss": total.item(), **{name: value.item() for name, value in parts.items()}, "gain_db": gain}

    def clip_gradients(self) -> None:
        """Both sides alike; each stage by itself, as one's large gradient must not hold up the other."""
        apart = self.progress < self.settings["apart_share"]
        for value in self.model.parameters():
            if value.grad is not None:
                tie_sides(value.grad, apart)
        for stage in (self.model.vocoder, self.model.bwe_generator):
            torch.nn.utils.clip_grad_norm_(stage.parameters(), 1.0)

    def measure(self, count: int, seed: int) -> dict[str, Any]:
        model = self.averaged()
        result: dict[str, Any] = {"true_mel": measure(model, None, count, seed)}
        if self.audio_vae is not None:
            result["decoded_mel"] = measure(model, self.audio_vae, count, seed)
        return result


@torch.no_grad()
def measure(
    model: LTX2VocoderWithBWE, audio_vae: AutoencoderKLLTX2Audio | None, count: int, seed: int
) -> dict[str, float]:
    """Errors on fresh clips of the world, the mel through the autoencoder if one is given.

    Onsets in ms against the original's, level and pan in dB over 100 ms after each contact, spectral distance as the
    log-mel's error in nepers where the sound is audible.
    """
    onset, level, pan, distance, lost = [], [], [], [], 0
    for clip, contacts in true_onsets(count, seed):
        mel = clip.mel
        if audio_vae is not None:
            mel = audio_vae.decode(audio_vae.encode(mel[None]).latent_dist.mode()).sample[0]
        sound = model(mel[None])[0, :, : clip.high.shape[1]]
        again = log_mel_spectrogram(torch.from_numpy(_low_rate(sound)))
        distance.append((again - clip.mel).abs()[clip.mel > AUDIBLE].mean().item())
        envelopes = [_log_envelope(waveform) for waveform in (clip.high, sound)]
        for contact in contacts:
            near = 1000 * contact / ENVELOPE_MS
            before, after = (crossing_frame(envelope, near, REACH_MS // ENVELOPE_MS) for envelope in envelopes)
            if before is not None and abs(before - near) < 15 / ENVELOPE_MS:
                if after is None:
                    lost += 1
                else:
                    onset.append((after - before) * ENVELOPE_MS)
            first = int(contact * OUTPUT_RATE)
            theirs, mine = (_rms(waveform[:, first : first + OUTPUT_RATE // 10]) for waveform in (clip.high, sound))
            level.append(20 * np.log10(np.linalg.norm(mine) / np.linalg.norm(theirs)))
            pan.append(20 * np.log10(mine[0] / mine[1]) - 20 * np.log10(theirs[0] / theirs[1]))
    # An untrained model has no onsets at all.
    shifts = np.array(onset) if onset else np.array([np.nan])
    return {
        "onset_ms": round(float(shifts.mean()), 2),
        "onset_abs_ms": round(float(np.abs(shifts).mean()), 2),
        "onset_worst_ms": round(float(np.abs(shifts).max()), 2),
        "onsets": len(onset),
        "onsets_lost": lost,
        "level_db": round(float(np.mean(level)), 2),
        "level_abs_db": round(float(np.abs(level).mean()), 2),
        "pan_abs_db": round(float(np.abs(pan).mean()), 2),
        "distance": round(float(np.mean(distance)), 3),
    }


def _low_rate(sound: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(soxr.resample(sound.numpy().T, OUTPUT_RATE, SAMPLING_RATE).T)


def _log_envelope(waveform: torch.Tensor) -> torch.Tensor:
    """Log amplitude of both sides together over 2 ms, every millisecond, at most 40 dB under the clip's loudest."""
    step = OUTPUT_RATE // 1000 * ENVELOPE_MS
    power = F.avg_pool1d(waveform.pow(2).sum(dim=0)[None], 2 * step, step, padding=step)[0]
    envelope = 0.5 * (power + 1e-12).log()
    return envelope.clamp_min(float(envelope.max()) - LOUDEST_FALL)


def _rms(waveform: torch.Tensor) -> np.ndarray:
    return waveform.pow(2).mean(dim=1).sqrt().clamp_min(NOISE_FLOOR).numpy()


if __name__ == "__main__":
    run(VocoderTrainer, "Train the vocoder of nava-nano.")
