"""Train the embedded model's video autoencoder, a small `AutoencoderKLWan`, on the nano world.

    python -m training.video_vae --config training/configs/video_vae.yaml --out runs/video_vae [--resume] [--minutes 24]
    python -m training.video_vae --config ... --out runs/video_vae --stage decoder

The first command trains encoder and decoder, measures the latents' mean and spread over fresh clips and writes the
diffusers folder named in the config. The second goes on with the decoder alone, so that cached latents stay valid.
Both also run as `torchrun --standalone --nproc-per-node 2 -m training.video_vae ...`, each rank on windows of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanRMS_norm, patchify, unpatchify
from torch import nn

from training import common, world
from training.muon import Muon

VALIDATION_SEED = 900_000
STATISTICS_SEED = 800_000


class ChannelRMSNorm(nn.Module):
    """`WanRMS_norm` with a sum of squares in place of `F.normalize`, whose norm over channels is slow on a CPU."""

    def __init__(self, norm: WanRMS_norm) -> None:
        super().__init__()
        self.scale = norm.scale
        self.gamma = norm.gamma

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inverse = torch.rsqrt(hidden_states.square().sum(1, keepdim=True) + 1e-24) * self.scale
        return hidden_states * inverse * self.gamma


def use_fast_norms(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Replace the norms in place; parameters, their names and the results stay the same (float32 only)."""
    for module in list(vae.modules()):
        for name, child in module.named_children():
            if isinstance(child, WanRMS_norm):
                setattr(module, name, ChannelRMSNorm(child))
    return vae


def encode_moments(vae: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    """`vae.encode(pixels).latent_dist.parameters` in two chunks: the first frame, then all others.

    The library walks in chunks of four frames through the same cache; the convolutions are causal, so larger chunks
    give the same numbers in a fraction of the calls.

    Args:
        pixels: `(batch, 3, 4n+1, height, width)` in [-1, 1].

    Returns:
        Mean and log-variance, `(batch, 2 * z_dim, n+1, height / 16, width / 16)`.
    """
    vae.clear_cache()
    patches = patchify(pixels, vae.config["patch_size"])
    cache = vae._enc_feat_map
    chunks = [vae.encoder(patches[:, :, :1], feat_cache=cache, feat_idx=[0])]
    if patches.shape[2] > 1:
        chunks.append(vae.encoder(patches[:, :, 1:], feat_cache=cache, feat_idx=[0]))
    vae.clear_cache()
    return vae.quant_conv(torch.cat(chunks, dim=2))


def decode_pixels(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """`vae.decode(latents).sample` before its clamp to [-1, 1], in two chunks as in `encode_moments`."""
    vae.clear_cache()
    hidden_states = vae.post_quant_conv(latents)
    cache = vae._feat_map
    chunks = [vae.decoder(hidden_states[:, :, :1], feat_cache=cache, feat_idx=[0], first_chunk=True)]
    if hidden_states.shape[2] > 1:
        chunks.append(vae.decoder(hidden_states[:, :, 1:], feat_cache=cache, feat_idx=[0]))
    vae.clear_cache()
    return unpatchify(torch.cat(chunks, dim=2), vae.config["patch_size"])


def to_pixels(frames: np.ndarray) -> torch.Tensor:
    """uint8 `(frames, height, width, 3)` to float `(3, frames, height, width)` in [-1, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float().div_(127.5).sub_(1.0)


def shape_boxes(scene: world.Scene, width: int, height: int, num_frames: int) -> np.ndarray:
    """Where the shape is in each frame: `(frames, 4)` pixel bounds left, top, right, bottom, a margin included."""
    above = world.heights(scene, np.arange(num_frames) / world.FPS)
    radius = scene.radius * height
    bottom = (world.FLOOR - above) * height
    left = np.full(num_frames, scene.x * width - 1.25 * radius)
    boxes = np.stack([left, bottom - 2.2 * radius, left + 2.5 * radius, bottom + 0.15 * radius], axis=1)
    limits = np.array([width, height, width, height])
    return np.clip(np.rint(boxes), 0, limits).astype(np.int64)


def box_mask(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """1.0 inside each frame's box: float32 `(frames, height, width)`."""
    x, y = np.arange(width)[None, None, :], np.arange(height)[None, :, None]
    left, top, right, bottom = (boxes[:, i, None, None] for i in range(4))
    return ((x >= left) & (x < right) & (y >= top) & (y < bottom)).astype(np.float32)


@dataclass(frozen=True)
class Window:
    """The size of a training window and its share of the steps at evenly spaced points of the run."""

    frames: int
    height: int
    width: int
    batch: int
    share: list[float]

    def share_at(self, progress: float) -> float:
        return float(np.interp(progress, np.linspace(0, 1, len(self.share)), self.share))


@dataclass(frozen=True)
class Clip:
    frames: np.ndarray
    boxes: np.ndarray
    moving: np.ndarray


class WindowSource:
    """Windows of rendered clips. A pool is kept, and one clip of it is replaced at each draw."""

    def __init__(self, config: dict[str, Any], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.windows = [Window(**entry) for entry in config["windows"]]
        self.moving_share, self.shape_share = config["moving_share"], config["shape_share"]
        self.pool = [self._clip() for _ in range(config["pool"])]

    def draw(self, progress: float, sizes: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels `(batch, 3, frames, height, width)` in [-1, 1] and the shape's mask `(batch, 1, frames, ...)`.

        `sizes` draws which window is cut, the source's own generator everything in it.
        """
        shares = np.array([window.share_at(progress) for window in self.windows])
        window = self.windows[sizes.choice(len(shares), p=shares / shares.sum())]
        self.pool[self.rng.integers(len(self.pool))] = self._clip()
        cuts = [self._cut(self.pool[self.rng.integers(len(self.pool))], window) for _ in range(window.batch)]
        pixels = torch.stack([to_pixels(frames) for frames, _ in cuts])
        return pixels, torch.stack([torch.from_numpy(mask)[None] for _, mask in cuts])

    def _clip(self) -> Clip:
        scene = world.sample_scene(self.rng, "train")
        frames = world.render_frames(scene)
        above = world.heights(scene, np.arange(len(frames)) / world.FPS)
        moving = np.flatnonzero(np.abs(np.diff(above)) > 0.5 / frames.shape[1])
        return Clip(frames, shape_boxes(scene, frames.shape[2], frames.shape[1], len(frames)), moving)

    def _cut(self, clip: Clip, window: Window) -> tuple[np.ndarray, np.ndarray]:
        last = len(clip.frames) - window.frames
        start = int(self.rng.integers(last + 1))
        if self.rng.random() < self.moving_share:
            start = int(np.clip(self.rng.choice(clip.moving) - self.rng.integers(window.frames), 0, last))
        span = slice(start, start + window.frames)
        boxes = clip.boxes[span]
        height, width = clip.frames.shape[1:3]
        mask = box_mask(boxes, width, height)
        left, top = self._corner(boxes, window, width, height)
        area = (span, slice(top, top + window.height), slice(left, left + window.width))
        return np.ascontiguousarray(clip.frames[area]), np.ascontiguousarray(mask[:, area[1], area[2]])

    def _corner(self, boxes: np.ndarray, window: Window, width: int, height: int) -> tuple[int, int]:
        """The crop's left and top, on the latent grid: the floor and the frame's edges keep their place in it."""
        room = np.array([width - window.width, height - window.height])
        corner = self.rng.integers(0, room + 1)
        if self.rng.random() < self.shape_share:
            box = boxes[self.rng.integers(len(boxes))]
            centre = (box[:2] + box[2:]) / 2
            size = np.array([window.width, window.height])
            corner = centre - size * self.rng.uniform(0.25, 0.75, 2)
        left, top = np.clip(np.rint(corner / 16) * 16, 0, room).astype(int)
        return int(left), int(top)


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
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of one batch: reconstruction from noisy latents and the pull of the latents to unit scale."""
    with torch.set_grad_enabled(not freeze_encoder):
        mean, log_variance = encode_moments(vae, pixels).chunk(2, dim=1)
    log_variance = log_variance.clamp(-12, 4)
    latents = mean if freeze_encoder else mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    latents = latents + config["latent_noise"] * progress * torch.randn_like(mean)
    reconstruction = reconstruction_loss(decode_pixels(vae, latents), pixels, mask, config, progress)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    loss = reconstruction if freeze_encoder else reconstruction + config["kl"] * kl
    return loss, {
        "reconstruction": reconstruction.item(),
        "kl": kl.item(),
        "latent_spread": mean.detach().std().item(),
        "posterior_spread": torch.exp(0.5 * log_variance).mean().item(),
    }


@torch.no_grad()
def measure(vae: AutoencoderKLWan, clips: int, pairs: str = "all") -> tuple[dict[str, float], list[np.ndarray]]:
    """PSNR in dB of fresh clips, whole, in the shape's box, and in it where it moves; and truth over reconstruction."""
    errors: dict[str, list[float]] = {"psnr": [], "psnr_shape": [], "psnr_moving": []}
    pictures = []
    for index in range(clips):
        scene = world.sample_scene(np.random.default_rng(VALIDATION_SEED + index), pairs)
        frames = world.render_frames(scene)
        pixels = to_pixels(frames)[None]
        latents = encode_moments(vae, pixels).chunk(2, dim=1)[0]
        sample = decode_pixels(vae, latents).clamp(-1, 1)
        squared = ((sample - pixels) / 2).square().mean(1)[0].numpy()
        boxes = shape_boxes(scene, frames.shape[2], frames.shape[1], len(frames))
        inside = box_mask(boxes, frames.shape[2], frames.shape[1]) > 0
        moving = np.append(False, np.abs(np.diff(boxes[:, 3])) > 1)
        errors["psnr"].append(squared.mean())
        errors["psnr_shape"].append(squared[inside].mean())
        errors["psnr_moving"].append(squared[moving][inside[moving]].mean())
        decoded = sample[0].add(1).mul(127.5).round().byte().permute(1, 2, 3, 0).numpy()
        pictures.append(np.concatenate([frames, decoded], axis=1))
    return {name: round(float(-10 * np.log10(np.mean(values))), 2) for name, values in errors.items()}, pictures


@torch.no_grad()
def latent_statistics(vae: AutoencoderKLWan, clips: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel's posterior mode over `clips` training scenes."""
    total = torch.zeros(2, vae.config["z_dim"], dtype=torch.float64)
    count = 0
    for index in range(clips):
        scene = world.sample_scene(np.random.default_rng(STATISTICS_SEED + index), "train")
        latents = encode_moments(vae, to_pixels(world.render_frames(scene))[None]).chunk(2, dim=1)[0].double()
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


class Trainer:
    """Holds what a checkpoint holds, and the loop over steps."""

    def __init__(self, config: dict[str, Any], folder: Path, stage: str, minutes: float, resume: bool) -> None:
        self.config, self.folder, self.stage = config, folder, stage
        common.seed_everything(config["seed"])
        self.vae = use_fast_norms(build(config["model"]))
        start_quietly(self.vae)
        self.averaged = use_fast_norms(build(config["model"])).requires_grad_(False)
        self.log = common.MetricsLog(folder / "metrics.jsonl")
        self.step, spent = 0, 0.0
        state = common.load_checkpoint(folder) if resume or stage == "decoder" else None
        if stage == "decoder" and state is None:
            raise ValueError(
                f"{folder} holds no checkpoint; the decoder stage goes on from a joint run in the same folder"
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
        self.source = WindowSource(config, config["seed"] + 1 + self.step + 1_000_000 * self.ranks.index)

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
        recent: list[dict[str, float]] = []
        while (progress := self.ranks.progress(self.clock, self.step)) < 1:
            values = self._train_step(progress)
            self.step += 1
            recent.append(values)
            if self.ranks.index > 0:
                continue
            if self.step % 50 == 0:
                means = {name: round(float(np.mean([entry[name] for entry in recent])), 5) for name in values}
                recent.clear()
                self.log.write(self.step, stage=self.stage, progress=round(progress, 4), **means)
                text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
                report(f"{self.stage} step {self.step} {self.clock.spent:.0f} s ({progress:.0%}) {text}")
            if time.monotonic() - saved > self.config["checkpoint_seconds"]:
                saved = time.monotonic()
                self.save()
                report(f"step {self.step} on fresh clips: {self.validate(3)}")
        if self.ranks.index == 0:
            self.save()

    def validate(self, clips: int) -> dict[str, float]:
        values, _ = measure(self.average(), clips)
        self.log.write(self.step, stage=self.stage, **values)
        return values

    def _train_step(self, progress: float) -> dict[str, float]:
        pixels, mask = self.source.draw(progress, self.sizes)
        rate = self.config["learning_rate"] * common.warmup_hold_decay(progress, 0.01, self.config["decay_share"])
        frozen = self.stage == "decoder"
        sharpness = 1.0 if frozen else progress
        with common.mixed_precision(self.config["precision"]):
            loss, values = training_loss(self.vae, pixels, mask, self.config["loss"], frozen, sharpness)
        self.vae.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.average_gradients([value for value in self.vae.parameters() if value.requires_grad])
        norm = nn.utils.clip_grad_norm_(self.vae.parameters(), self.config["clip_norm"])
        for optimizer in self.optimizers.values():
            common.set_learning_rate(optimizer, rate)
            optimizer.step()
        self.ema.update(self.vae)
        return {**values, "gradient": float(norm)}


def save_sheet(pictures: list[np.ndarray], path: Path, shown: int = 10) -> None:
    """A PNG of each clip's frames around its motion, the truth above what was decoded."""
    from PIL import Image

    rows = []
    for frames in pictures:
        change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean((1, 2, 3))
        first = int(np.clip(np.flatnonzero(change > change.max() / 4)[0] - 1, 0, len(frames) - 2 * shown))
        rows.append(np.concatenate(list(frames[first : first + 2 * shown : 2]), axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small video autoencoder.")
    parser.add_argument("--config", type=Path, default=Path("training/configs/video_vae.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/video_vae"))
    parser.add_argument("--stage", choices=("joint", "decoder"), default="joint")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    parser.add_argument("--minutes", type=float, help="of training in this stage, in place of the config's")
    arguments = parser.parse_args()
    config = common.load_config(arguments.config)
    torch.set_flush_denormal(True)
    minutes = arguments.minutes or config["minutes" if arguments.stage == "joint" else "decoder_minutes"]
    trainer = Trainer(config, arguments.out, arguments.stage, minutes, arguments.resume)

    def report(text: str) -> None:
        print(time.strftime("%H:%M:%S"), text, flush=True)

    report(f"{common.count_parameters([trainer.vae]):,} weights")
    trainer.run(report)
    if trainer.ranks.index > 0:
        return
    vae, output = trainer.average(), Path(config["output"])
    if arguments.stage == "decoder":
        published = AutoencoderKLWan.load_config(output)
        mean, std = published["latents_mean"], published["latents_std"]
    else:
        mean, std = latent_statistics(vae, config["statistics_clips"])
    export(vae, config["model"], mean, std, output)
    report(f"written to {output}; mean {np.round(mean, 3)}, std {np.round(std, 3)}")
    saved = use_fast_norms(AutoencoderKLWan.from_pretrained(output, torch_dtype=torch.float32))
    for pairs in ("train", "held_out"):
        values, pictures = measure(saved, 8, pairs)
        save_sheet(pictures[:6], arguments.out / f"sheet_{pairs}.png")
        report(f"as saved, fresh {pairs} clips: {values}")


if __name__ == "__main__":
    main()
