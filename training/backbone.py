"""Train nava-nano's backbone and its text encoder on cached latents, by flow matching.

    python -m training.backbone --config training/configs/backbone_stage2.yaml --latents runs/latents_stage2 \\
        --model training/weights --weights assets/nava-nano --heads training/weights/heads.safetensors \\
        --out runs/backbone_stage2 --resume

With --sound_latents some batches are sound without a picture, as the config's `sound_alone` says, and with
--sound_share 1 all are: the paper's order, sound first and then both.

Resumable with --resume; under `torchrun --nproc-per-node 2 -m training.backbone ...` the processes average their
gradients, which on a CPU beats one process with two threads. The recipe is the paper's: both streams at one noise
level, text dropout to zero states, samples with isolated modalities, batches with a clean first frame, a weight for
the audio's loss.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from nava_core.sampling import shifted
from training import common
from training.clips import Batch, CachedClips, WorldCaptions
from training.muon import Muon
from training.nano_model import HEADS, HEADS_FILE, NanoModel
from training.picture_labels import class_weights, error_weights
from training.voices import VoiceBank

logger = logging.getLogger(__name__)
# Of the samples with streams of unequal noise, those whose picture is known; the least level of what is nearly noise.
SEEN_SHARE, NOISE_WIDTH = 0.7, 0.15


def draw_voices(
    batch: Batch, alone: np.ndarray, config: dict[str, Any], rng: np.random.Generator
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The speakers' embeddings, zeros for none, and the text rows that they take, per sample, as guidance passes have
    them.

    alone: samples whose pass has no speakers (negative and modality-isolated ones). Of the others some have none either
    (a prompt without references), and single speakers become the null token (a span without a reference).
    """
    absent = alone | (rng.random(len(batch.audio)) < config["speaker_absent"])
    null = torch.from_numpy(rng.random(batch.speakers.shape[:2]) < config["speaker_null"])
    positions = [() if left_out else rows for left_out, rows in zip(absent, batch.speaker_positions, strict=True)]
    placed = torch.tensor([len(rows) for rows in positions])[:, None] > torch.arange(batch.speakers.shape[1])
    return batch.speakers * (placed & ~null)[..., None], positions


class Losses(NamedTuple):
    """Mean squared errors of the predicted velocities (noise - data), and what `MiddleHeads.losses` finds of what is
    seen and what sounds. 0 where there is no picture.
    """

    video: Tensor
    audio: Tensor
    picture_labels: Tensor
    labels: Tensor

    def total(self, config: dict[str, Any]) -> Tensor:
        named = config["label_loss_weight"] * (self.picture_labels + self.labels)
        return self.video + config["audio_loss_weight"] * self.audio + named


def noise_levels(size: int, config: dict[str, Any], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Of the video and of the sound of `size` samples, (size,) each, in [0, 1].

    One level for both, as the paper has it, but for the config's share of `uneven` samples: there one stream, mostly
    the picture, has any level, and the other is nearly noise. Where both are noise neither can be told from the other,
    and where little noise is left neither needs to be: with one level alone isolated streams were predicted as well as
    joint ones, and nothing was in time. Nor was it with levels that were drawn apart, where 1 sample in 20 had a
    picture that shows what a sound of noise should be.

    The config's `time_shift` may be several, which samples have by turns of chance: a high one is for what clips are
    asked to be, a low one for how it looks and sounds.
    """
    video = shifted(rng.random(size), rng.choice(np.atleast_1d(config["time_shift"]), size))
    audio = video.copy()
    uneven, seen = rng.random(size) < config["uneven"], rng.random(size) < SEEN_SHARE
    known, noise = rng.random(size), 1 - NOISE_WIDTH * rng.random(size) ** 2
    video = np.where(uneven, np.where(seen, known, noise), video)
    audio = np.where(uneven, np.where(seen, noise, known), audio)
    return torch.from_numpy(video).float(), torch.from_numpy(audio).float()


def flow_loss(model: NanoModel, batch: Batch, config: dict[str, Any], rng: np.random.Generator) -> Losses:
    size = len(batch.audio)
    video_sigma, sigma = noise_levels(size, config, rng)
    dropped = torch.from_numpy(rng.random(size) < config["text_dropout"])
    isolated = rng.random(size) < config["isolated"]
    speakers, positions = draw_voices(batch, dropped.numpy() | isolated, config, rng)
    clean_first_frame = batch.video is not None and bool(rng.random() < config["clean_first_frame"])

    noisy_video = video_velocity = None
    if batch.video is not None:
        noise = torch.randn_like(batch.video)
        video_velocity = noise - batch.video
        video_sigma = sigma if clean_first_frame else video_sigma
        noisy_video = torch.lerp(batch.video, noise, video_sigma[:, None, None, None, None])
        if clean_first_frame:
            noisy_video = torch.cat([batch.video[:, :, :1], noisy_video[:, :, 1:]], dim=2)
    audio_noise = torch.randn_like(batch.audio)
    with common.mixed_precision(config["precision"]):
        output = model.transformer(
            noisy_video,
            torch.lerp(batch.audio, audio_noise, sigma[:, None, None]),
            sigma * 1000,
            model.text_states(batch, dropped),
            speakers,
            positions,
            isolate_modalities=isolated.tolist(),
            first_frame_is_clean=clean_first_frame,
            video_timestep=None if batch.video is None or clean_first_frame else video_sigma * 1000,
        )
    video_loss = torch.zeros(())
    if video_velocity is not None:
        start = 1 if clean_first_frame else 0
        error = (output.sample.float() - video_velocity).square()
        if batch.picture_labels is not None and batch.distances is not None:
            frames, height, width = error.shape[2:]
            classes = class_weights(config["thing_weight"], config["colour_weights"])
            error = error * error_weights(
                batch.picture_labels, batch.distances, frames, height, width, classes, config["moving_weight"]
            )
        video_loss = error[:, :, start:].mean()
    heads = model.middle_heads.losses(
        batch.picture_labels, batch.distances, batch.camera_paths, batch.cameras, batch.labels, batch.turns, speakers
    )
    audio_loss = F.mse_loss(output.audio_sample.float(), audio_noise - batch.audio)
    return Losses(video_loss, audio_loss, *heads)


class Optimizers:
    """Muon for the matrices inside the layers, AdamW for embeddings, heads, norms and biases.

    The text encoder's relative attention biases have a rate of their own: at that of the embeddings they hardly left
    their start, and a head attends to what is near by them alone.
    """

    def __init__(self, model: nn.Module, config: dict[str, Any]):
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        distances: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            inside = "transformer_blocks" in name or ".block." in name
            if "relative_attention_bias" in name:
                distances.append(parameter)
            else:
                (matrices if inside and parameter.ndim == 2 else others).append(parameter)
        decay = config["weight_decay"]
        self.muon = Muon(matrices, lr=config["matrix_learning_rate"], weight_decay=decay)
        groups = [
            {"params": others, "lr": config["learning_rate"], "weight_decay": decay},
            {"params": distances, "lr": config["distance_learning_rate"], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self.base = [[config["matrix_learning_rate"]], [group["lr"] for group in groups]]

    def step(self, factor: float) -> None:
        for optimizer, rates in zip((self.muon, self.adam), self.base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def learn(
    loss: Tensor, model: nn.Module, optimizers: Optimizers, ranks: common.Ranks, config: dict[str, Any], progress: float
) -> None:
    """One step of `model` down the ranks' mean `loss`, at the rates of `progress` in [0, 1] of the run."""
    loss.backward()
    ranks.average_gradients(list(model.parameters()))
    nn.utils.clip_grad_norm_(model.parameters(), config["gradient_clip"])
    optimizers.step(common.warmup_hold_decay(progress, config["warmup"], config["decay_share"]))


def read_captions(
    model: NanoModel, captions: WorldCaptions, config: dict[str, Any], rng: np.random.Generator, ranks: common.Ranks
) -> None:
    """Teach the text encoder and the caption head alone what captions say, for `reading_minutes`.

    A step costs a twentieth of one with clips. A backbone leaves out of its pictures what it cannot read in the states,
    and learns while it waits to do without them.
    """
    reader = nn.ModuleDict({"text_encoder": model.text_encoder, "caption_head": model.caption_head})
    optimizers = Optimizers(reader, config)
    clock, step, losses = common.RunClock(minutes=config["reading_minutes"]), 0, []
    while (progress := ranks.progress(clock, step)) < 1:
        loss = model.caption_loss(captions.draw(rng, config["captions_read"]))
        learn(loss, reader, optimizers, ranks, config, progress)
        step += 1
        losses.append(loss.item())
        if step % 200 == 0 and ranks.index == 0:
            logger.info("reading, step %d, %.0f s: %.3f", step, clock.spent, np.mean(losses))
            losses.clear()


@dataclass(frozen=True)
class _Source:
    """Where batches are drawn from, the config that they are trained with, and their share of all batches."""

    clips: CachedClips
    config: dict[str, Any]
    share: float


def _sources(
    latents: Sequence[Path],
    sound_latents: Sequence[Path],
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    bank: VoiceBank | None,
) -> list[_Source]:
    """Of clips and of sound alone, without those that have no share."""
    alone = {**config, **config["sound_alone"]} if sound_latents else {"share": 0.0}
    asked = [(latents, config, 1 - alone["share"]), (sound_latents, alone, alone["share"])]
    length = config["transformer"]["text_len"]
    return [
        _Source(CachedClips(folders, tokenizer, length, chosen["kinds"], bank), chosen, share)
        for folders, chosen, share in asked
        if share > 0
    ]


def train(
    config: dict[str, Any],
    latents: Sequence[Path],
    model_folder: Path,
    out: Path,
    resume: bool,
    start: Path | None = None,
    bank: VoiceBank | None = None,
    sound_latents: Sequence[Path] = (),
    heads: Path | None = None,
) -> None:
    """Train until the config's minutes are over; the averaged weights are saved beside the checkpoint.

    start: a folder with `transformer` and `text_encoder` to go on from with fresh optimisers, such as nava-nano itself.
    heads: the file of the heads that were trained with it, if not in that folder; with those of now it has read its
    captions. bank: of the voices in the latents; without it nothing is asked about their words. sound_latents: folders
    of sound alone, for the share of batches that the config's `sound_alone` has.
    """
    ranks = common.Ranks()
    torch.set_num_threads(config["threads"])
    torch.set_flush_denormal(True)
    common.seed_everything(config["seed"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder / "tokenizer")
    if ranks.index == 0:
        tokenizer.save_pretrained(out / "tokenizer")  # says which pieces the rows of the text encoder beside it are of
    sources = _sources(latents, sound_latents, config, tokenizer, bank)
    captions = WorldCaptions(tokenizer, config["transformer"]["text_len"], config["kinds"], bank)
    model = NanoModel(config, len(tokenizer)).train()
    if start is not None:
        model.load(start, tokenizer)
        if heads is None and (start / HEADS_FILE).exists():
            heads = start / HEADS_FILE
    has_read = heads is not None and model.load_heads(heads)
    if heads is None:  # weights whose heads are kept have begun so
        model.attend_in_time()
    checkpoint = common.load_checkpoint(out) if resume else None
    if checkpoint is None and config["reading_minutes"] and not has_read:
        read_captions(model, captions, config, np.random.default_rng([config["seed"], ranks.index]), ranks)
    optimizers, average = Optimizers(model, config), common.EMA(model, config["ema_decay"])
    step, spent = 0, 0.0
    if checkpoint is not None:
        step, spent = checkpoint["step"], checkpoint["spent"]
        for name, part in (("model", model), ("optimizers", optimizers), ("average", average)):
            part.load_state_dict(checkpoint[name])
    clock = common.RunClock(minutes=config["minutes"], spent=spent)
    log = common.MetricsLog(out / "metrics.jsonl")
    rng = np.random.default_rng([config["seed"], step, ranks.index])
    # All ranks' batches of a step are of one source and of one shape, and so take the same time.
    turns = np.random.default_rng([config["seed"], step])
    torch.manual_seed(int(rng.integers(2**31)))
    counts = " and ".join(str(len(source.clips)) for source in sources)
    logger.info("%s clips, %.2f M weights", counts, common.count_parameters([model]) / 1e6)
    losses: defaultdict[str, list[float]] = defaultdict(list)
    saved = clock.spent
    while (progress := ranks.progress(clock, step)) < 1:
        source = sources[turns.choice(len(sources), p=[source.share for source in sources])]
        batch = source.clips.draw(rng, source.config["batch_size"], source.config["empty_prompt"], turns)
        found = flow_loss(model, batch, source.config, rng)
        total = found.total(config)
        if config["captions"]:
            caption_loss = model.caption_loss(captions.draw(rng, config["captions"]))
            losses["captions"].append(caption_loss.item())
            total = total + config["label_loss_weight"] * caption_loss
        learn(total, model, optimizers, ranks, config, progress)
        average.update(model)
        step += 1
        for name, value in found._asdict().items():
            if batch.video is not None:
                losses[name].append(value.item())
            elif name in ("audio", "labels"):
                losses[f"sound_{name}"].append(value.item())
        if step % 50 == 0 and ranks.index == 0:
            means = {name: round(float(np.mean(values)), 5) for name, values in sorted(losses.items())}
            log.write(step, **means, spent=round(clock.spent, 1))
            logger.info("step %d, %.0f s: %s", step, clock.spent, means)
            losses.clear()
        if clock.spent - saved > 60 * config["save_minutes"]:
            saved = clock.spent
            for source in sources:
                source.clips.refresh()
            if ranks.index == 0:
                save(out, step, clock, model, optimizers, average)
    if ranks.index == 0:
        save(out, step, clock, model, optimizers, average)


def save(
    out: Path, step: int, clock: common.RunClock, model: NanoModel, optimizers: Optimizers, average: common.EMA
) -> None:
    """Write the checkpoint and the averaged weights: `transformer` and `text_encoder` folders, and the heads' file."""
    common.save_checkpoint(out, step, spent=clock.spent, model=model, optimizers=optimizers, average=average)
    trained = {name: value.detach().clone() for name, value in model.named_parameters()}
    average.copy_to(model)
    model.transformer.save_pretrained(out / "transformer")
    model.text_encoder.save_pretrained(out / "text_encoder")
    heads = {name: value for name, value in model.state_dict().items() if name.startswith(HEADS)}
    common.write_atomically(out / HEADS_FILE, lambda file: save_file(heads, file))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(trained[name])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train nava-nano's backbone and text encoder on cached latents.")
    parser.add_argument("--config", type=Path, default=Path("training/configs/backbone_stage2.yaml"))
    parser.add_argument("--latents", type=Path, nargs="+", default=[Path("runs/latents_stage2")])
    parser.add_argument("--sound_latents", type=Path, nargs="+", default=[], help="sound alone, for a share of batches")
    parser.add_argument("--sound_share", type=float, help="instead of the config's; 1: nothing but sound")
    parser.add_argument("--model", type=Path, default=Path("training/weights"), help="folder that holds the tokenizer")
    parser.add_argument("--out", type=Path, default=Path("runs/backbone_stage2"))
    parser.add_argument("--minutes", type=float, help="instead of the config's")
    parser.add_argument("--batch_size", type=int, help="instead of the config's, of clips with a picture")
    parser.add_argument("--weights", type=Path, help="a trained model's folder to go on from, with fresh optimisers")
    parser.add_argument("--heads", type=Path, help="the heads that were trained with --weights, if not in that folder")
    parser.add_argument("--voices", type=Path, help="the latents' voices, to ask for the words (training.voices)")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    if arguments.sound_share is not None and not arguments.sound_latents:
        parser.error(f"--sound_share {arguments.sound_share:g} is a share of --sound_latents; give their folder too")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = common.load_config(arguments.config)
    given = {"minutes": arguments.minutes, "batch_size": arguments.batch_size}
    config |= {name: value for name, value in given.items() if value is not None}
    if arguments.sound_share is not None:
        config["sound_alone"] = {**config.get("sound_alone", {}), "share": arguments.sound_share}
    bank = VoiceBank.load(arguments.voices) if arguments.voices else None
    train(
        config, arguments.latents, arguments.model, arguments.out, arguments.resume, arguments.weights, bank,
        arguments.sound_latents, arguments.heads,
    )  # fmt: skip


if __name__ == "__main__":
    main()
