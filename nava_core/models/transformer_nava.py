"""The NAVA backbone: an Align-then-Fuse transformer that denoises video and audio latents together.

Source: the NAVA paper and the released weights (`WanAVModel`). Alignment layers keep video and audio parameters apart
and attend jointly; fusion layers share one set for both. Official tensor names are kept, but for the three lists of
blocks, which are one list here (`transformer_blocks`), as the library's caching and offloading hooks expect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from einops import rearrange
from torch import Tensor, nn

from nava_core.models.attention_nava import NavaTextContext, TokenLayout, join
from nava_core.models.block_nava import FFN_CHUNK_SIZE, NavaFeedForward, NavaHead, NavaTransformerBlock
from nava_core.models.embeddings_nava import (
    NavaAudioPatchEmbed,
    NavaRotaryPosEmbed,
    NavaSpeakerEmbedding,
    sinusoidal_embedding,
)
from nava_core.models.official_config import renamed_blocks, transformer_config
from nava_core.weights import backbone_tensors, empty_weights, load_strictly


@dataclass
class NavaTransformerOutput(BaseOutput):
    """Velocities (noise - data), None for an absent stream.

    sample: (batch, channels, frames, height, width); audio_sample: (batch, tokens, channels).
    """

    sample: Tensor | None = None
    audio_sample: Tensor | None = None


class NavaTransformer3DModel(ModelMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin, CacheMixin):
    """The 6.3B backbone by default. See `forward` for shapes.

    num_layers alignment layers, num_single_layers fusion layers, then num_final_layers alignment layers.
    audio_rope_scale puts audio tokens (25/s) on the clock of latent frames (6/s). time_rope_frequencies, in radians a
    latent frame, takes the place of the released model's, of which heads of few channels have one that tells
    neighbouring audio tokens apart, and it by 0.24 radians. split_ffn gives the alignment layers a feed-forward network
    for each stream (the released weights share it). speaker_dim None: no speaker tokens. keep_speaker_text adds a
    speaker to its text row, which the released model's replaces: cross-attention knows no positions, so that nothing
    then tells whose row it is, and references that change places change nothing.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["NavaTransformerBlock"]  # noqa: RUF012 (the library's contract)
    _repeated_blocks = ["NavaTransformerBlock"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = (  # small, and at the edges where precision shows
        "patch_embedding",
        "text_embedding",
        "time_",
        "speaker_embedding",
        "norm",
        "modulation",
        "head",
    )

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 24,
        attention_head_dim: int = 128,
        in_channels: int = 48,
        out_channels: int = 48,
        audio_in_channels: int = 128,
        audio_out_channels: int = 128,
        text_dim: int = 4096,
        text_len: int = 512,
        freq_dim: int = 256,
        ffn_dim: int = 14336,
        num_layers: int = 10,
        num_single_layers: int = 20,
        num_final_layers: int = 0,
        eps: float = 1e-6,
        audio_rope_scale: float = 0.24,
        speaker_dim: int | None = 192,
        split_ffn: bool = False,
        time_rope_frequencies: tuple[float, ...] | None = None,
        keep_speaker_text: bool = False,
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        patch = (patch_size[0], patch_size[1], patch_size[2])  # a list when it comes from a config file
        self.patch_embedding = nn.Conv3d(in_channels, dim, kernel_size=patch, stride=patch)
        self.patch_embedding_audio = NavaAudioPatchEmbed(audio_in_channels, dim)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.speaker_embedding = NavaSpeakerEmbedding(speaker_dim, dim) if speaker_dim else None
        self.rope = NavaRotaryPosEmbed(attention_head_dim, audio_rope_scale, time_frequencies=time_rope_frequencies)
        kinds = [(2, split_ffn)] * num_layers + [(1, False)] * num_single_layers + [(2, split_ffn)] * num_final_layers
        self.transformer_blocks = nn.ModuleList(
            NavaTransformerBlock(dim, ffn_dim, num_attention_heads, eps, streams, split) for streams, split in kinds
        )
        self.head = NavaHead(dim, out_channels * math.prod(patch_size), eps)
        self.head_audio = NavaHead(dim, audio_out_channels, eps)
        self.gradient_checkpointing = False

    def forward(
        self,
        hidden_states: Tensor | None = None,
        audio_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        encoder_hidden_states: Tensor | NavaTextContext | None = None,
        speaker_embeds: Tensor | None = None,
        speaker_positions: Sequence[Sequence[int]] | None = None,
        isolate_modalities: bool | Sequence[bool] = False,
        first_frame_is_clean: bool = False,
        video_timestep: Tensor | None = None,
        return_dict: bool = True,
    ) -> NavaTransformerOutput | tuple[Tensor | None, Tensor | None]:
        """Predict the velocities of one pass.

        Args:
            hidden_states: video latents (batch, channels, latent frames, height, width); left out for audio alone.
            audio_hidden_states: audio latents (batch, tokens, channels); left out for video alone.
                Streams of batch 1 with a text of batch n are the same latents in n passes, embedded once.
            timestep: diffusion times 0..1000, (batch,); one value of shape (1,) for all is the cheaper way.
            encoder_hidden_states: text states (batch, rows, text_dim), or the result of `encode_context`, which lets
                many passes share one projection of the text.
            speaker_embeds, speaker_positions: see `encode_context`.
            isolate_modalities: keep video and audio from attending to each other, for all or for each sample.
            first_frame_is_clean: latent frame 0 is a given image, at diffusion time 0.
            video_timestep: the video's diffusion times, shaped like `timestep`, where they are other than the sound's.
                NAVA itself always denoises both together; a model that is trained with both learns what each says of
                the other (Bao et al., "One Transformer Fits All Distributions in Multi-Modal Diffusion", 2023).

        Raises:
            ValueError: no stream, no timestep or no text given, or a shape that does not fit the config.
        """
        if timestep is None or encoder_hidden_states is None:
            raise ValueError("every pass needs a timestep and encoder_hidden_states")
        context = encoder_hidden_states
        if not isinstance(context, NavaTextContext):
            context = self.encode_context(context, speaker_embeds, speaker_positions)
        self._check_inputs(hidden_states, audio_hidden_states, context, timestep)
        if video_timestep is not None and (
            hidden_states is None or first_frame_is_clean or video_timestep.shape != timestep.shape
        ):
            raise ValueError(
                f"video_timestep {tuple(video_timestep.shape)} needs a video, no clean first frame, and the shape of "
                f"timestep, {tuple(timestep.shape)}"
            )

        tokens, grid = [], (0, 0, 0)
        if hidden_states is not None:
            video_tokens = self.patch_embedding(hidden_states.to(self.dtype))
            grid = tuple(video_tokens.shape[2:])
            tokens.append(video_tokens.flatten(2).transpose(1, 2))  # (b, dim, f, h, w) -> (b, f*h*w, dim)
        if audio_hidden_states is not None:
            tokens.append(self.patch_embedding_audio(audio_hidden_states.to(self.dtype)))
        batch = context.states.shape[0]
        tokens_joined = join(tokens)
        if tokens_joined.shape[0] != batch:
            tokens_joined = tokens_joined.expand(batch, -1, -1)
        audio_count = 0 if audio_hidden_states is None else audio_hidden_states.shape[1]
        layout = TokenLayout(
            video=math.prod(grid),
            audio=audio_count,
            clean=math.prod(grid) if video_timestep is not None else grid[1] * grid[2] * first_frame_is_clean,
            isolated=self._isolated(isolate_modalities, batch),
        )
        second = torch.zeros_like(timestep) if video_timestep is None else video_timestep
        time_states, time_rows = self._embed_time(timestep, second if layout.clean else None)
        rotary = self.rope(grid, audio_count, tokens_joined.device, tokens_joined.dtype)

        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens_joined = self._gradient_checkpointing_func(
                    block, tokens_joined, context, time_rows, rotary, layout
                )
            else:
                tokens_joined = block(tokens_joined, context, time_rows, rotary, layout)

        sample = audio_sample = None
        if layout.video:
            video_layout = TokenLayout(layout.video, 0, layout.clean)
            sample = self._unpatchify(self.head(tokens_joined[:, : layout.video], time_states, video_layout), grid)
        if layout.audio:
            audio_sample = self.head_audio(tokens_joined[:, layout.video :], time_states, TokenLayout(0, layout.audio))
        if not return_dict:
            return sample, audio_sample
        return NavaTransformerOutput(sample=sample, audio_sample=audio_sample)

    def encode_context(
        self,
        encoder_hidden_states: Tensor,
        speaker_embeds: Tensor | None = None,
        speaker_positions: Sequence[Sequence[int]] | None = None,
        keep: bool = True,
    ) -> NavaTextContext:
        """Text and speaker rows that all layers attend to (NAVA.md sections 2 and 3: timbre in context).

        Args:
            encoder_hidden_states: (batch, rows <= text_len, text_dim); zero rows are added up to text_len.
            speaker_embeds: (batch, speakers, speaker_dim). A silent one (zeros) becomes the null token.
            speaker_positions: for each sample the text row that each of its speakers replaces; may be shorter.
            keep: see `NavaTextContext`.
        """
        text_dim, text_len = self.config.text_dim, self.config.text_len
        if encoder_hidden_states.ndim != 3 or encoder_hidden_states.shape[2] != text_dim:
            raise ValueError(
                f"encoder_hidden_states has the shape {tuple(encoder_hidden_states.shape)}; expected (batch, rows, "
                f"{text_dim})"
            )
        rows = encoder_hidden_states.shape[1]
        if rows > text_len:
            raise ValueError(f"{rows} text rows given, the model reads {text_len}; cut the prompt when tokenising it")
        padded = torch.nn.functional.pad(encoder_hidden_states.to(self.dtype), (0, 0, 0, text_len - rows))
        states = self.text_embedding(padded)
        if speaker_embeds is None:
            return NavaTextContext(states, keep)
        if self.speaker_embedding is None:
            raise ValueError("speaker_embeds were given, but this model was trained without speaker tokens")
        samples, embeds = _speaker_rows(speaker_embeds, speaker_positions, states.shape[:2])
        if samples[0]:
            speakers = self.speaker_embedding(embeds.to(states.device)).to(states.dtype)
            indices = tuple(torch.tensor(index, device=states.device) for index in samples)
            states = states.index_put(indices, speakers, accumulate=self.config.keep_speaker_text)
        return NavaTextContext(states, keep)

    def enable_forward_chunking(self, chunk_size: int | None = FFN_CHUNK_SIZE, dim: int = 1) -> None:
        """Rows (tokens, so `dim` is 1) that the feed-forward networks take at once; None: all. Changes no result."""
        if dim != 1 or (chunk_size is not None and chunk_size < 1):
            raise ValueError(f"chunks of {chunk_size} along axis {dim}; give 1 row or more, or None, along axis 1")
        for module in self.modules():
            if isinstance(module, NavaFeedForward):
                module.chunk_size = chunk_size

    def disable_forward_chunking(self) -> None:
        """The feed-forward networks take all rows at once."""
        self.enable_forward_chunking(None)

    def token_count(self, video: Tensor | None, audio: Tensor | None) -> int:
        """Sequence length for latents (..., frames, height, width) and (tokens, channels)."""
        video_tokens = 0 if video is None else math.prod(video.shape[-3:]) // math.prod(self.config.patch_size)
        return video_tokens + (0 if audio is None else audio.shape[-2])

    @classmethod
    def from_official(
        cls, weights: str | Mapping[str, Tensor], config: Mapping[str, Any], dtype: torch.dtype | None = None
    ) -> NavaTransformer3DModel:
        """A model from official tensors (a file or a mapping; the prefix `backbone.` is optional) and their config.

        dtype None keeps the weights' own; of several the widest, which rounds nothing. Raises ValueError that names
        each missing, surplus or misshapen tensor and each config value that this code does not do.
        """
        tensors = backbone_tensors(weights)
        settings = transformer_config(config, tensors)
        stored = {tensors.dtype_of(name) for name in tensors}
        if dtype is None and len(stored) > 1:  # an fp8 file's products are float32 beside its bfloat16
            dtype = reduce(torch.promote_types, stored)
        with empty_weights():
            model = cls(**settings)
        source = "the backbone" if isinstance(weights, Mapping) else str(weights)
        load_strictly(model, renamed_blocks(tensors, settings), dtype=dtype, source=source)
        return model.eval()

    def _check_inputs(
        self, video: Tensor | None, audio: Tensor | None, context: NavaTextContext, timestep: Tensor
    ) -> None:
        if video is None and audio is None:
            raise ValueError("both hidden_states and audio_hidden_states are None; give at least one stream")
        config, patch = self.config, self.config.patch_size
        if video is not None and (
            video.ndim != 5
            or video.shape[1] != config.in_channels
            or any(size % of_patch for size, of_patch in zip(video.shape[2:], patch, strict=True))
        ):
            raise ValueError(
                f"hidden_states has the shape {tuple(video.shape)}; expected (batch, {config.in_channels}, frames, "
                f"height, width) with the last three divisible by {', '.join(map(str, patch))}"
            )
        if audio is not None and (audio.ndim != 3 or audio.shape[2] != config.audio_in_channels):
            raise ValueError(
                f"audio_hidden_states has the shape {tuple(audio.shape)}; expected (batch, tokens, "
                f"{config.audio_in_channels})"
            )
        batch = context.states.shape[0]
        batches = {stream.shape[0] for stream in (video, audio) if stream is not None}
        if batches not in ({1}, {batch}) or timestep.shape not in {(1,), (batch,)}:
            raise ValueError(
                f"batch sizes differ: streams {sorted(batches)}, text {batch}, timestep {tuple(timestep.shape)}"
            )

    def _isolated(self, isolate_modalities: bool | Sequence[bool], batch: int) -> tuple[bool, ...]:
        if isinstance(isolate_modalities, bool):
            return (isolate_modalities,) * batch
        if len(isolate_modalities) != batch:
            raise ValueError(f"isolate_modalities has {len(isolate_modalities)} values for a batch of {batch}")
        return tuple(bool(value) for value in isolate_modalities)

    def _embed_time(self, timestep: Tensor, second: Tensor | None) -> tuple[Tensor, Tensor]:
        """e (batch or 1, rows, dim) and e0 (batch or 1, rows, 6, dim), float32; row 1, if any, is of `second`."""
        times = torch.stack([timestep] if second is None else [timestep, second], dim=1)
        embedded = self.time_embedding(sinusoidal_embedding(times, self.config.freq_dim).to(self.dtype))
        vectors = self.time_projection(embedded).unflatten(-1, (6, -1))
        compute_dtype = torch.promote_types(self.dtype, torch.float32)
        return embedded.to(compute_dtype), vectors.to(compute_dtype)

    def _unpatchify(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        frames, height, width = grid
        patch_frames, patch_height, patch_width = self.config.patch_size
        return rearrange(
            tokens,
            "b (f h w) (pf ph pw c) -> b c (f pf) (h ph) (w pw)",
            f=frames,
            h=height,
            w=width,
            pf=patch_frames,
            ph=patch_height,
            pw=patch_width,
        )


def _speaker_rows(
    speaker_embeds: Tensor, positions: Sequence[Sequence[int]] | None, states_shape: Sequence[int]
) -> tuple[tuple[list[int], list[int]], Tensor]:
    """((sample, row) indices, embeddings (n, speaker_dim)) of all speakers of a batch, one after another."""
    batch, text_len = states_shape
    if positions is None or len(positions) != batch or speaker_embeds.shape[0] != batch:
        given = None if positions is None else len(positions)
        raise ValueError(
            f"speaker_embeds has {speaker_embeds.shape[0]} and speaker_positions {given} entries for a batch of {batch}"
        )
    samples, rows, embeds = [], [], []
    for sample, sample_positions in enumerate(positions):
        if len(sample_positions) > speaker_embeds.shape[1]:
            raise ValueError(f"{len(sample_positions)} speaker positions for {speaker_embeds.shape[1]} embeddings")
        for speaker, row in enumerate(sample_positions):
            if not 0 <= row < text_len:
                raise ValueError(f"speaker position {row} is outside the {text_len} text rows")
            samples.append(sample)
            rows.append(row)
            embeds.append(speaker_embeds[sample, speaker])
    return (samples, rows), torch.stack(embeds) if embeds else speaker_embeds[:0, 0]
