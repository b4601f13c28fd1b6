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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from nava_core.models.transformer_nava import NavaTransformer3DModel
from nava_core.sampling import shifted
from training import common
from training.caption_head import CaptionHead, Captions
from training.clips import Batch, CachedClips, WorldCaptions
from training.middle_heads import MiddleHeads
from training.muon import Muon
from training.picture_labels import thing_weights
from training.voices import VoiceBank

logger = logging.getLogger(__name__)
HEADS, HEADS_FILE = ("middle_heads.", "caption_head."), "heads.safetensors"
# The last linear layers of attention and feed-forward network, in the backbone's layers and in the text encoder's.
RESULTS = ("o", "o_audio", "2", "wo")
# A head that attends in time: its rotary pairs of 1, 0.2, 2 and 4 radians a latent frame, and how much each counts.
IN_TIME = {0: 4.8, 1: 2.0, 4: 3.0, 5: 3.0}
# Of the samples with streams of unequal noise, those whose picture is known; the least level of what is nearly noise.
SEEN_SHARE, NOISE_WIDTH = 0.7, 0.15


class NanoModel(nn.Module):
    """The backbone, the text encoder that learns with it, and the heads that ask both what the clip is of."""

    def __init__(self, config: dict[str, Any], vocabulary: int):
        super().__init__()
        self.transformer = NavaTransformer3DModel(**config["transformer"])
        text_config = UMT5Config(vocab_size=vocabulary, tie_word_embeddings=False, **config["text_encoder"])
        self.text_encoder = UMT5EncoderModel(text_config)
        self.middle_heads = MiddleHeads(self.transformer)
        self.caption_head = CaptionHead(text_config.d_model)
        self._initialise()

    def _initialise(self) -> None:
        """Gates, heads and null token start at zero, so that each layer begins as the identity."""
        transformer = self.transformer
        for block in transformer.transformer_blocks:
            for name, module in block.named_children():
                if name.startswith("modulation"):
                    nn.init.zeros_(module.modulation)
        for projection in (transformer.time_projection[1], transformer.head.head, transformer.head_audio.head):
            nn.init.normal_(projection.weight, std=1e-3)
            nn.init.zeros_(projection.bias)
        for embedding in (transformer.text_embedding, transformer.time_embedding):
            for layer in (embedding[0], embedding[2]):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)

    def load(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """Take the weights of a trained model of the same widths; of another vocabulary, the pieces that both know.

        The rows of new pieces are drawn with the old rows' mean and spread. Layers that the trained model lacks begin
        as the identity, and where it has one set of weights for both streams, each begins with a copy of it.
        """
        transformer = NavaTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        own = self.transformer
        take_layers(own.transformer_blocks, transformer.transformer_blocks, transformer.config.num_layers)
        transformer.transformer_blocks = own.transformer_blocks
        own.load_state_dict(transformer.state_dict())
        trained = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        take_layers(self.text_encoder.encoder.block, trained.encoder.block, len(trained.encoder.block))
        trained.encoder.block = self.text_encoder.encoder.block
        old = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer") if (folder / "tokenizer").exists() else None
        if old is None or old.get_vocab() == tokenizer.get_vocab():
            self.text_encoder.load_state_dict(trained.state_dict())
            return
        rows = trained.shared.weight.detach()
        mean, spread = rows.mean(0), rows.std(0)
        moved = mean + spread * torch.randn(len(tokenizer), rows.shape[1])
        known = old.get_vocab()
        for piece, number in tokenizer.get_vocab().items():
            if piece in known:
                moved[number] = rows[known[piece]]
        logger.info("%d of %d pieces are new", len(set(tokenizer.get_vocab()) - set(known)), len(tokenizer))
        state = trained.state_dict()
        state |= {name: moved for name in ("shared.weight", "encoder.embed_tokens.weight") if name in state}
        self.text_encoder.load_state_dict(state)

    @torch.no_grad()
    def attend_in_time(self, layers: int = 3) -> None:
        """Let the last head of the layers after the middle begin by attending to its own moment, of both streams.

        Its queries and keys become nearly constant before the rotary turn, which then favours what is near in time. To
        find that out is slow: until a head attends to the right moment there is nothing to be read there, and until
        something can be read there is no reason to.
        """
        blocks = self.transformer.transformer_blocks
        for block in blocks[len(blocks) // 2 :][:layers]:
            attention = block.self_attn
            rows = slice(-(attention.q.out_features // attention.heads), None)
            own = ("q", "k") if block.streams == 1 else ("q", "k", "q_audio", "k_audio")
            for layer in map(attention.get_submodule, own):
                spread = layer.weight.square().sum(1).mean().sqrt()  # of its results, of an input with spread 1
                layer.weight[rows] *= 0.3
                layer.bias[rows] = 0.0
                for pair, strength in IN_TIME.items():
                    layer.bias[rows][2 * pair] = strength * spread

    def load_heads(self, path: Path) -> bool:
        """Take the heads in the file `path`, which a shipped model is without; whether all of today's were there."""
        missing, _ = self.load_state_dict(load_file(path), strict=False)
        return not any(name.startswith(HEADS) for name in missing)

    def caption_loss(self, captions: Captions) -> Tensor:
        """Cross entropy of what the captions say and where, read from their states alone."""
        states = self.text_encoder(captions.ids, attention_mask=captions.mask).last_hidden_state
        return self.caption_head.loss(states, captions)

    def text_states(self, batch: Batch, dropped: Tensor) -> Tensor:
        """Text states with zeros for padding and for whole texts that are dropped, as the pipeline pads them.

        Of sound alone they are given: the encoder learns beside pictures, and its gradient is a third of such a step.
        """
        with torch.set_grad_enabled(batch.video is not None):
            states = self.text_encoder(batch.ids, attention_mask=batch.mask).last_hidden_state
        return states * (batch.mask * ~dropped[:, None])[..., None]


@torch.no_grad()
def take_layers(layers: Sequence[nn.Module], trained: Sequence[nn.Module], first: int) -> None:
    """Give `layers` the weights of the `trained` ones; let those that are more, after the `first`, add nothing to what
    passes them. The sound's own weights, where a trained layer has none, are those that both streams share there.
    """
    more = len(layers) - len(trained)
    for number, layer in enumerate(layers):
        if first <= number < first + more:
            for name, parameter in layer.named_parameters():
                if name.split(".")[-2] in RESULTS:
                    nn.init.zeros_(parameter)
            continue
        weights = trained[number if number < first else number - more].state_dict()
        shared = {name: name.replace("_audio", "") for name in layer.state_dict() if name not in weights}
        layer.load_state_dict(weights | {name: weights[source] for name, source in shared.items()})


def draw_voices(
    batch: Batch, alone: np.ndarray, config: dict[str, Any], rng: np.random.Generator
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The speakers' embeddings and the text rows that they take, per sample, as the guidance passes will have them.

    alone: samples whose pass has no speakers (negative and modality-isolated ones). Of the others some have none either
    (a prompt without references), and single speakers become the null token (a span without a reference).
    """
    absent = alone | (rng.random(len(batch.audio)) < config["speaker_absent"])
    null = torch.from_numpy(rng.random(batch.speakers.shape[:2]) < config["speaker_null"])
    positions = [() if left_out else rows for left_out, rows in zip(absent, batch.speaker_positions, strict=True)]
    return batch.speakers * ~null[..., None], positions


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
        if batch.picture_labels is not None:
            frames, height, width = error.shape[2:]
            error = error * thing_weights(batch.picture_labels, frames, height, width, config["thing_weight"])
        video_loss = error[:, :, start:].mean()
    heard = torch.tensor([len(rows) for rows in positions])[:, None] > torch.arange(speakers.shape[1])
    heads = model.middle_heads.losses(
        batch.picture_labels, batch.heights, batch.cameras, batch.labels, batch.turns, speakers * heard[..., None]
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
    sound_latents: Path | None,
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    bank: VoiceBank | None,
) -> list[_Source]:
    """Of clips and of sound alone, without those that have no share."""
    alone = {**config, **config["sound_alone"]} if sound_latents is not None else {"share": 0.0}
    sound = [sound_latents] if sound_latents is not None else []
    asked = [(latents, config, 1 - alone["share"]), (sound, alone, alone["share"])]
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
    sound_latents: Path | None = None,
    heads: Path | None = None,
) -> None:
    """Train until the config's minutes are over; the averaged weights are saved beside the checkpoint.

    start: a folder with `transformer` and `text_encoder` to go on from with fresh optimisers, such as nava-nano itself.
    heads: the file of the heads that were trained with it, if not in that folder; with those of now it has read its
    captions. bank: of the voices in the latents; without it nothing is asked about their words. sound_latents: a folder
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
    parser.add_argument("--sound_latents", type=Path, help="a cache of sound alone, for a share of the batches")
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
    if arguments.sound_share is not None and arguments.sound_latents is None:
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
