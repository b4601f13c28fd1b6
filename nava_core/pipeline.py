"""The story of a clip: request -> speech -> conditioning -> latents -> denoise with guidance -> frames and sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, UniPCMultistepScheduler
from diffusers.utils import BaseOutput
from torch import Tensor

from nava_core.conditioning.image import load_first_frame
from nava_core.conditioning.speaker import embed_speakers
from nava_core.conditioning.text import TextConditioning, encode_prompt
from nava_core.decode import decode_audio, decode_clip, encode_video, sampling_rate
from nava_core.execution import Execution
from nava_core.guidance import GuidancePlan, Pass, combine, plan_guidance, step_plans
from nava_core.latents import LatentGeometry, draw_noise, pixel_frames, pixel_size, token_seconds
from nava_core.lora import NavaLoraLoaderMixin
from nava_core.passes import PassRunner, PromptEncodings
from nava_core.placement import room_to_decode
from nava_core.request import GenerationRequest, Guidance, Modality, ModelSpec, RequestError, ResolvedRequest, Shortcuts
from nava_core.sampling import DEFAULT_SHIFT, StreamSampler, flow_sigmas, make_scheduler
from nava_core.step_cache import caching_steps

StepCallback = Callable[["NavaPipeline", int, Tensor, dict[str, Any]], dict[str, Any] | None]
OUTPUT_TYPES = ("pt", "np", "latent")
KEPT_TEXTS = 8


@dataclass
class NavaPipelineOutput(BaseOutput):
    """What a call made. frames: (frames, height, width, 3) in [0, 1]; audio: (channels, samples) at sampling_rate Hz.

    With output_type "latent": latents (channels, frames, height, width), audio_latents (tokens, channels). None for
    what was not asked for. seed: the one that was used.
    """

    frames: Tensor | np.ndarray | None = None
    audio: Tensor | np.ndarray | None = None
    sampling_rate: int | None = None
    latents: Tensor | None = None
    audio_latents: Tensor | None = None
    seed: int | None = None


@dataclass(frozen=True)
class GivenTensors:
    """What a caller brings instead of having it made: noise (which fixes the sizes), encodings, positions."""

    latents: Tensor | None = None
    audio_latents: Tensor | None = None
    image_latents: Tensor | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    speaker_positions: Sequence[int] | None = None
    generator: torch.Generator | None = None

    def check(self, modality: Modality, channels: int, audio_channels: int, text_dim: int) -> None:
        """Raises RequestError for a tensor of another form than the model's, or of a stream that the clip lacks."""
        forms: dict[str, tuple[str, tuple[int | str, ...]]] = {  # name -> its stream, its shape
            "latents": ("video", (channels, "frames", "height", "width")),
            "image_latents": ("video", (channels, 1, "height", "width")),
            "audio_latents": ("audio", ("tokens", audio_channels)),
            "prompt_embeds": (modality, ("rows", text_dim)),
            "negative_prompt_embeds": (modality, ("rows", text_dim)),
        }
        for name, (stream, form) in forms.items():
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if modality not in (stream, "audio_video"):
                raise RequestError(name, f"{name} were given, but a clip of modality {modality!r} has no {stream}")
            shape = tuple(tensor.shape)
            fits = len(shape) == len(form) and all(
                size == expected or isinstance(expected, str) for size, expected in zip(shape, form, strict=True)
            )
            if not fits:
                raise RequestError(name, f"{name} have the shape {shape}; give ({', '.join(map(str, form))})")


class NavaPipeline(DiffusionPipeline, NavaLoraLoaderMixin):
    """Video and stereo sound from one prompt, in one denoising trajectory. What a call does not need may be missing.

    defaults: what `ModelSpec` says of this model (sizes, seconds, steps, guidance, negative prompts, hint) and the
    schedule's `shift`; kept in `model_index.json`.
    """

    model_cpu_offload_seq = "text_encoder->speaker_encoder->transformer->vae->audio_vae->vocoder"
    _optional_components = [  # noqa: RUF012 (the library's contract)
        "scheduler",
        "text_encoder",
        "tokenizer",
        "vae",
        "audio_vae",
        "vocoder",
        "speaker_encoder",
    ]
    pass_runner: Callable[..., Any] = PassRunner
    """What runs the passes of a step; made anew for each clip. Several ranks have another one."""
    execution: Execution = Execution()
    """How it runs them."""
    profile: str | None = None
    """The name of the layout on the device, see `nava_core.placement`."""
    decodes_alone: bool = False
    """Whether the backbone leaves the device while a clip is decoded."""

    def __init__(
        self,
        transformer: Any,
        scheduler: UniPCMultistepScheduler | None = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        vae: Any = None,
        audio_vae: Any = None,
        vocoder: Any = None,
        speaker_encoder: Any = None,
        defaults: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler if scheduler is not None else make_scheduler(),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            vae=vae,
            audio_vae=audio_vae,
            vocoder=vocoder,
            speaker_encoder=speaker_encoder,
        )
        self.register_to_config(defaults=dict(defaults or {}))
        self._encoded: dict[tuple[int, str], TextConditioning] = {}

    @property
    def spec(self) -> ModelSpec:
        """What this model can do and does by default."""
        values = dict(self.config.defaults)
        known = {item.name for item in fields(ModelSpec)}
        if isinstance(values.get("guidance"), Mapping):
            values["guidance"] = Guidance(**values["guidance"])
        if "sizes" in values:
            values["sizes"] = tuple(tuple(size) for size in values["sizes"])
        spec = ModelSpec(**{"name": "NAVA"} | {key: value for key, value in values.items() if key in known})
        return replace(
            spec,
            max_text_tokens=self.transformer.config.text_len,
            accepts_speakers=self.speaker_encoder is not None and self.transformer.config.speaker_dim is not None,
            places_speakers=self.transformer.config.keep_speaker_text,
            accepts_images=self.vae is not None,
        )

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        image: Any = None,
        speakers: Sequence[Any] = (),
        width: int | None = None,
        height: int | None = None,
        num_frames: int | None = None,
        seconds: float | None = None,
        fps: int | None = None,
        num_inference_steps: int | None = None,
        guidance: Guidance | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        latents: Tensor | None = None,
        audio_latents: Tensor | None = None,
        image_latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        speaker_positions: Sequence[int] | None = None,
        modality: Modality = "audio_video",
        shortcuts: Shortcuts = Shortcuts(),  # noqa: B008 (frozen)
        loras: Sequence[tuple[str, float]] = (),
        callback_on_step_end: StepCallback | None = None,
        output_type: str = "pt",
    ) -> NavaPipelineOutput:
        """Make one clip. None means the model's default (`spec`).

        Args:
            prompt: the scene, spoken lines between `~~` marks. negative_prompt: what to keep away from.
            image: the first frame (path, PIL image or array), or `image_latents` (channels, 1, height, width).
            speakers: for each speech span a path, a waveform (16 kHz, or `(samples, rate)`), an embedding, or None.
            width, height: pixels. num_frames: pixel frames, 4n+1; or `seconds`.
            guidance: the five axes. seed, or a CPU `generator`: where the noise comes from.
            latents, audio_latents: the noise itself, (channels, frames, height, width) and (tokens, channels), which
                then fix the sizes.
            prompt_embeds, negative_prompt_embeds: (rows, text_dim) instead of text, with `speaker_positions`: the row
                of each speaker, which for a text are found in it.
            shortcuts: ways to be faster that change the clip. loras: (file, scale) of each LoRA to use.
            callback_on_step_end: called as `f(pipeline, step, timestep, tensors)` after each step; may raise
                `GenerationCancelled`.
            output_type: "pt" tensors, "np" arrays, or "latent" for no decoding.

        Raises:
            RequestError: the input cannot be used; the message says why and what to do.
        """
        request = GenerationRequest(
            prompt=prompt or "",
            negative_prompt=negative_prompt,
            image=image,
            speakers=() if speakers is None else tuple(speakers),
            width=width,
            height=height,
            num_frames=num_frames,
            seconds=seconds,
            fps=fps,
            num_inference_steps=num_inference_steps,
            guidance=guidance,
            seed=seed,
            modality=modality,
            shortcuts=shortcuts,
            loras=tuple(loras),
        )
        given = GivenTensors(
            latents=latents,
            audio_latents=audio_latents,
            image_latents=image_latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            speaker_positions=speaker_positions,
            generator=generator,
        )
        return self.run(request, given, callback_on_step_end, output_type)

    @torch.no_grad()
    def run(
        self,
        request: GenerationRequest,
        given: GivenTensors | None = None,
        callback_on_step_end: StepCallback | None = None,
        output_type: str = "pt",
    ) -> NavaPipelineOutput:
        """Make the clip that `request` asks for; see `__call__`."""
        if output_type not in OUTPUT_TYPES:
            raise RequestError(
                "output_type", f"output_type is {output_type!r}; choose one of {', '.join(OUTPUT_TYPES)}"
            )
        given = given or GivenTensors()
        resolved = self.resolve(request, given)
        self.use_loras(resolved.loras)
        plan = plan_guidance(resolved.guidance, resolved.modality, resolved.has_references)
        encodings = self.encode_prompts(resolved, given, plan)
        first_frame = self.encode_first_frame(resolved, given)
        video_noise, audio_noise = self.draw_noise(resolved, given)
        with caching_steps(self.transformer, resolved.shortcuts.step_cache):
            latents, audio_latents = self.denoise(
                resolved, plan, encodings, first_frame, video_noise, audio_noise, callback_on_step_end
            )
        output = NavaPipelineOutput(latents=latents, audio_latents=audio_latents, seed=resolved.seed)
        return output if output_type == "latent" else self.decode(output, output_type)

    def resolve(self, request: GenerationRequest, given: GivenTensors | None = None) -> ResolvedRequest:
        """The request with every blank filled; tensors that the caller brings decide over numbers asked for."""
        given = given or GivenTensors()
        config = self.transformer.config
        given.check(request.modality, config.in_channels, config.audio_in_channels, config.text_dim)
        if given.latents is not None:
            _, frames, height, width = given.latents.shape
            width, height = pixel_size(width, height)
            request = replace(request, num_frames=pixel_frames(frames), seconds=None, width=width, height=height)
        elif given.audio_latents is not None and (
            request.modality == "audio" or (request.num_frames is None and request.seconds is None)
        ):
            request = replace(request, num_frames=None, seconds=token_seconds(given.audio_latents.shape[0]))
        if given.generator is not None:
            seed = given.generator.initial_seed()
            if request.seed not in (None, seed):
                raise RequestError(
                    "seed", f"seed is {request.seed}, but the generator's is {seed}; give one of the two"
                )
            request = replace(request, seed=seed)
        return request.resolve(self.spec, encoded=given.prompt_embeds is not None)

    def encode_prompts(self, request: ResolvedRequest, given: GivenTensors, plan: GuidancePlan) -> PromptEncodings:
        """Text states and speaker rows that the plan's passes ask for."""
        positive, positions = given.prompt_embeds, given.speaker_positions
        if positive is None:
            conditioning = self._encode_text(request.prompt)
            positive = conditioning.embeds
            positions = conditioning.speaker_positions if positions is None else positions
        negative = None
        if Pass.NEGATIVE in plan.passes:
            negative = given.negative_prompt_embeds
            negative = self._encode_text(request.negative_prompt).embeds if negative is None else negative
        speakers = None
        if request.has_references:
            slots = _speaker_slots(request.speakers, len(positions or ()))
            speakers = embed_speakers(self.speaker_encoder, slots).to(self._execution_device)
        device = self._execution_device
        return PromptEncodings(
            positive=positive.to(device),
            negative=None if negative is None else negative.to(device),
            speakers=speakers,
            speaker_positions=() if speakers is None else tuple(positions or ()),
        )

    def encode_first_frame(self, request: ResolvedRequest, given: GivenTensors) -> Tensor | None:
        """The given image as latents (channels, 1, height, width), float32; None without one."""
        if given.image_latents is not None:
            width, height = pixel_size(given.image_latents.shape[-1], given.image_latents.shape[-2])
            if (width, height) != (request.width, request.height):
                raise RequestError(
                    "image_latents",
                    f"image_latents are of a picture of {width}x{height}, the clip is {request.width}x{request.height}",
                )
            return given.image_latents.to(self._execution_device, torch.float32)
        if request.image is None:
            return None
        pixels = load_first_frame(request.image, request.width, request.height)
        return encode_video(self.vae, pixels).to(self._execution_device, torch.float32)

    def draw_noise(self, request: ResolvedRequest, given: GivenTensors) -> tuple[Tensor | None, Tensor | None]:
        """Noise for both streams: what the caller brings, else drawn from the request's seed."""
        geometry = LatentGeometry.for_clip(
            request.modality, request.width, request.height, request.num_frames, request.seconds
        )
        config = self.transformer.config
        generator = given.generator or torch.Generator().manual_seed(request.seed)
        video, audio = draw_noise(geometry, config.in_channels, config.audio_in_channels, generator)
        video = given.latents if given.latents is not None else video
        audio = given.audio_latents if given.audio_latents is not None else audio
        device = self._execution_device
        return None if video is None else video.to(device), None if audio is None else audio.to(device)

    def denoise(
        self,
        request: ResolvedRequest,
        plan: GuidancePlan,
        encodings: PromptEncodings,
        first_frame: Tensor | None,
        video_noise: Tensor | None,
        audio_noise: Tensor | None,
        callback_on_step_end: StepCallback | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Walk both streams from noise to latents in `num_inference_steps` guided steps."""
        sigmas = flow_sigmas(request.num_inference_steps, self.config.defaults.get("shift", DEFAULT_SHIFT))
        video = None if video_noise is None else StreamSampler(self.scheduler, video_noise, sigmas)
        audio = None if audio_noise is None else StreamSampler(self.scheduler, audio_noise, sigmas)
        streams = [stream for stream in (video, audio) if stream is not None]
        tokens = self.transformer.token_count(video_noise, audio_noise)
        predict = self.pass_runner(
            self.transformer, plan, encodings, tokens, first_frame is not None, execution=self.execution
        )

        timesteps = streams[0].timesteps
        plans = step_plans(request)
        with self.progress_bar(total=len(timesteps)) as progress:
            for index, (timestep, step_plan) in enumerate(zip(timesteps, plans, strict=True)):
                if video is not None:
                    video.place_first_frame(first_frame)
                video_velocities, audio_velocities = predict(_latents(video), _latents(audio), timestep, step_plan)
                if video is not None:
                    video.step(index, combine(step_plan.video, video_velocities))
                if audio is not None:
                    audio.step(index, combine(step_plan.audio, audio_velocities))
                progress.update()
                if callback_on_step_end is not None:
                    callback_on_step_end(self, index, timestep, _callback_tensors(video, audio))
        if video is not None:
            video.place_first_frame(first_frame)
        return _latents(video), _latents(audio)

    def decode(self, output: NavaPipelineOutput, output_type: str = "pt") -> NavaPipelineOutput:
        """Frames and sound of an output that holds latents."""
        frames = audio = rate = None
        with room_to_decode(self, output.latents):
            if output.latents is not None:
                frames = decode_clip(self._part("vae"), output.latents)
            if output.audio_latents is not None:
                vocoder = self._part("vocoder")
                audio = decode_audio(self._part("audio_vae"), vocoder, output.audio_latents, self.spec.phase_rounds)
                rate = sampling_rate(vocoder)
        as_asked = _to_numpy if output_type == "np" else lambda tensor: tensor
        return NavaPipelineOutput(frames=as_asked(frames), audio=as_asked(audio), sampling_rate=rate, seed=output.seed)

    def _encode_text(self, text: str) -> TextConditioning:
        """Of the last few texts the states are kept, in host memory: the negative prompt is the same for all clips."""
        encoder = self._part("text_encoder")
        key = (id(encoder), text)
        if key not in self._encoded:
            made = encode_prompt(self._part("tokenizer"), encoder, text, self.transformer.config.text_len)
            self._encoded[key] = replace(made, embeds=made.embeds.cpu())
            while len(self._encoded) > KEPT_TEXTS:
                del self._encoded[next(iter(self._encoded))]
        self._encoded[key] = self._encoded.pop(key)  # the last used is the last to go
        return self._encoded[key]

    def _part(self, name: str) -> Any:
        part = getattr(self, name)
        if part is None:
            raise RequestError(
                name, f"this pipeline was built without its {name}, which this call needs; load a complete model"
            )
        return part


def _speaker_slots(speakers: Sequence[Any], num_positions: int) -> tuple[Any, ...]:
    """One entry for each speaker position; those beyond the last reference are empty."""
    given = max(index for index, speaker in enumerate(speakers) if speaker is not None) + 1
    if given > num_positions:
        raise RequestError(
            "speakers",
            f"voice references for {given} speakers, but {num_positions} speaker positions; give speaker_positions, "
            "a row of prompt_embeds for each speaker",
        )
    return (*speakers[:given], *[None] * (num_positions - given))


def _latents(stream: StreamSampler | None) -> Tensor | None:
    return None if stream is None else stream.latents


def _callback_tensors(video: StreamSampler | None, audio: StreamSampler | None) -> dict[str, Any]:
    return {
        "latents": _latents(video),
        "audio_latents": _latents(audio),
        "denoised": None if video is None else video.denoised,
        "denoised_audio": None if audio is None else audio.denoised,
    }


def _to_numpy(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.float().cpu().numpy()
