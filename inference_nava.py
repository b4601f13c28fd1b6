"""Batch generation: a clip for each line of a text or JSONL file. Run with --help, or see scripts/inference.sh."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, get_args

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nava_core.batch import BadLine, BatchLine, clip_seed, output_name, read_batch
from nava_core.ffmpeg import MediaError
from nava_core.options import add_layout_flags, add_shortcut_flags, layout_of, shortcuts_of
from nava_core.request import GenerationRequest, Guidance, Modality, RequestError

if TYPE_CHECKING:
    from nava_core.pipeline import NavaPipeline

logger = logging.getLogger("inference_nava")

USAGE_ERROR, SOME_FAILED, INTERRUPTED = 2, 1, 130
COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # ranks load a model at different speeds, and rank 0 alone writes files
# Axis of Guidance -> the published name in its flag.
AXES = {
    "video": "video",
    "audio": "audio",
    "video_align": "video_align",
    "audio_align": "audio_align",
    "timbre": "timbre_align",
}
AXIS_HELP = {
    "video": "picture: towards the prompt, away from the negative prompt",
    "audio": "sound: the same",
    "video_align": "picture: towards the sound",
    "audio_align": "sound: towards the picture",
    "timbre": "sound: towards the voice references",
}
# Fields of a request that a flag sets for all lines, so that an error about them is about the command.
FLAG_OF_FIELD = {
    "width": "--width",
    "height": "--height",
    "num_frames": "--frames",
    "seconds": "--duration or --frames",
    "fps": "--fps",
    "num_inference_steps": "--steps",
    "guidance": "--..._guidance_scale",
    "seed": "--seed",
    "modality": "--modality",
    "shortcuts": "--step_cache",
    "loras": "--lora",
}

EPILOG = """\
data formats
  txt    a prompt a line
  jsonl  an object a line ("json" means the same):
           {"prompt": "...", "image_path": "first frame.png", "spk_wavs": ["anna.wav", null]}
         prompt (or text) is the scene; image_path and spk_wavs may be absent or null, line by line. The i-th
         reference is the voice of the i-th spoken line. Relative paths count from the file's folder, then
         from the working directory.
  Spoken lines stand between ~~ marks: He says ~~Hello there~~ and waves. <S>...<E> means the same.

outputs
  OUT_DIR/idx{line}_{first 20 letters}-av-{turn}.mp4, .wav for sound alone; lines count from 0, blank ones too.
  Each file holds its whole recipe. What exists already is skipped, so the same command resumes a stopped run.
  The paths of the clips made go to stdout, all else to stderr.

seeds
  Line 0, turn 0 has --seed itself; line i, turn t has seed + (i + t)(i + t + 1)/2 + t.

exit code
  0 all clips exist, 1 some lines failed (each is reported with its number), 2 the command cannot be run.

several devices (torchrun)
  Each rank makes its share of the lines; with --use_sp all ranks make each clip together, and rank 0 writes it.
  See docs/distributed.md, also for several hosts.

examples
  torchrun --standalone --nproc-per-node 8 inference_nava.py --model /models/NAVA --data_file prompts.txt --use_sp
  python inference_nava.py --data_file assets/examples/prompts.jsonl
  python inference_nava.py --model /models/NAVA --data_file prompts.txt --width 1280 --height 704 --frames 37 --steps 50
  python inference_nava.py --model /models/NAVA --data_file sounds.txt --modality audio --duration 10
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_arguments(argv)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    try:
        check_arguments(args)
        lines = read_batch(args.data_file, "jsonl" if args.data_format == "json" else args.data_format)
        pipeline = load_model(args)
        template = make_template(args, pipeline)
    except (ValueError, OSError) as error:
        return fail(str(error))
    lines = lines[: args.num_samples if args.num_samples > 0 else None]
    if not args.use_sp or ranks == 1:
        return run_batch(pipeline, template, lines[rank::ranks], args)
    with all_ranks(pipeline, is_first=rank == 0):
        return run_batch(pipeline, template, lines, args)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The published flags. Leaves None where the model's own default counts."""
    parser = argparse.ArgumentParser(
        prog="inference_nava.py",
        description="Make a clip with sound for each line of a file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", help="official bundle folder, diffusers folder or hub id (default: the embedded nava-nano)"
    )
    model.add_argument(
        "--ckpt", type=Path, help="NAVA.safetensors or NAVA.ckpt of an official bundle, instead of --model"
    )
    model.add_argument("--config", type=Path, help="a nava.yaml in place of the bundle's own")
    model.add_argument(
        "--use_sp",
        action="store_true",
        help="make each clip on all ranks of torchrun together (sequence parallelism)",
    )

    add_layout_flags(model)

    data = parser.add_argument_group("data")
    data.add_argument("--data_file", type=Path, required=True, help="the prompts, see below")
    data.add_argument("--data_format", choices=("txt", "json", "jsonl"), help="default: by the file's suffix")
    data.add_argument("--out_dir", type=Path, default=Path("eval_results"), help="default: %(default)s")
    data.add_argument("--num_samples", type=int, default=-1, help="stop after so many lines; -1 (default): all")
    data.add_argument("--gen_turn", type=int, default=1, help="clips per line, each with its own seed; default: 1")
    data.add_argument("--seed", type=int, default=100, help="default: %(default)s; see below")
    data.add_argument("--save_sample", action="store_true", help="accepted and without effect: clips are always saved")

    clip = parser.add_argument_group("clip", "default: the model's own")
    clip.add_argument("--modality", choices=get_args(Modality), help="picture and sound (default), or one alone")
    clip.add_argument("--width", type=int, help="pixels, divisible by 32")
    clip.add_argument("--height", type=int, help="pixels, divisible by 32")
    clip.add_argument("--frames", type=int, help="LATENT frames: 37 are (37 - 1) * 4 + 1 = 145 frames, 6 s at 24 fps")
    clip.add_argument("--duration", type=float, help="seconds; for sound alone, and where --frames is absent")
    clip.add_argument("--fps", type=int, help="frames a second")
    clip.add_argument("--steps", type=int, help="denoising steps")

    scales = parser.add_argument_group(
        "guidance", "default: the model's own, which for a bundle stand in its nava.yaml"
    )
    for axis, name in AXES.items():
        scales.add_argument(f"--{name}_guidance_scale", type=float, metavar="SCALE", help=AXIS_HELP[axis])
    scales.add_argument(
        "--timbre_cfg",
        action=argparse.BooleanOptionalAction,
        help="whether to guide towards the voice references at all",
    )
    scales.add_argument(
        "--align_3d_cfg",
        choices=("auto", "on", "off"),
        default="auto",
        help="whether to guide picture and sound towards each other at all; auto (default): as the model says",
    )
    scales.add_argument(
        "--timbre_apart",
        choices=("auto", "on", "off"),
        default="auto",
        help="whether the voice references are followed by their own scale alone and not by those of the sound's other "
        "axes; auto (default): as the model says",
    )
    add_shortcut_flags(parser)
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> None:
    """What is wrong with the command whatever the model. Raises ValueError."""
    if args.model is not None and args.ckpt is not None:
        raise ValueError(f"--model {args.model} and --ckpt {args.ckpt} both name a model; give one of them")
    if args.num_samples == 0 or args.num_samples < -1:
        raise ValueError(f"--num_samples is {args.num_samples}; give 1 or more, or -1 for all lines")
    for name, value in (("--gen_turn", args.gen_turn), ("--frames", args.frames)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; give a whole number, 1 or more")
    if not args.data_file.is_file():
        raise ValueError(f"--data_file {args.data_file} is no file; check the path")
    args.out_dir.mkdir(parents=True, exist_ok=True)


def load_model(args: argparse.Namespace) -> NavaPipeline:
    """The pipeline that --model or --ckpt names; under torchrun on this rank's own device."""
    import torch

    from nava_core import load_pipeline

    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else None
    source = args.ckpt if args.ckpt is not None else args.model
    pipeline: Any = load_pipeline(
        source, device=device, profile=args.profile, layout=layout_of(args), settings=args.config
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def all_ranks(pipeline: NavaPipeline, is_first: bool) -> Iterator[None]:
    """The pipeline on all of torchrun's ranks together, of which the first one speaks."""
    import torch
    import torch.distributed as dist

    from nava_core.engine.parallel import RankFailure, parallelize, unparallelize

    if not is_first:
        logger.setLevel(logging.CRITICAL)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=COLLECTIVE_TIMEOUT)
    parallelize(pipeline)
    try:
        yield
    except RankFailure as failure:
        logger.critical("%s; the same command goes on from here", failure)
        os._exit(SOME_FAILED)  # an orderly end would wait for ranks that do not come
    unparallelize(pipeline)
    if started:
        dist.destroy_process_group()


def make_template(args: argparse.Namespace, pipeline: NavaPipeline) -> GenerationRequest:
    """What all lines share. Raises ValueError that names the flag where the model cannot do it."""
    from nava_core.bundle import read_settings
    from nava_core.latents import pixel_frames

    settings = {} if args.config is None else read_settings(args.config)
    modality = args.modality or settings.get("modality", "audio_video")
    by_duration = args.duration is not None and (modality == "audio" or args.frames is None)
    if args.duration is not None and args.frames is not None:
        logger.info("--%s counts for %s, not --%s", *(("duration", modality, "frames")[:: 1 if by_duration else -1]))
    try:
        template = GenerationRequest(
            prompt="any",
            width=args.width,
            height=args.height,
            num_frames=None if by_duration or args.frames is None else pixel_frames(args.frames),
            seconds=args.duration if by_duration else None,
            fps=args.fps,
            num_inference_steps=args.steps,
            guidance=make_guidance(args, pipeline.spec.guidance),
            seed=args.seed,
            modality=modality,
            shortcuts=shortcuts_of(args),
            loras=tuple(args.lora),
        )
        template.resolve(pipeline.spec)
    except RequestError as error:
        raise ValueError(f"{FLAG_OF_FIELD.get(error.field, error.field)}: {error}") from error
    return template


def make_guidance(args: argparse.Namespace, default: Guidance) -> Guidance:
    """The flags' scales over the model's own."""
    flags = {axis: getattr(args, f"{name}_guidance_scale") for axis, name in AXES.items()}
    scales = {axis: scale for axis, scale in flags.items() if scale is not None}
    if args.timbre_cfg is False:
        scales["timbre"] = 0.0
    elif args.timbre_cfg and not scales.get("timbre", default.timbre):
        scales["timbre"] = Guidance().timbre
    switches = {"align": args.align_3d_cfg, "timbre_apart": args.timbre_apart}
    return replace(default, **scales, **{name: value == "on" for name, value in switches.items() if value != "auto"})


def run_batch(
    pipeline: NavaPipeline, template: GenerationRequest, lines: Sequence[BatchLine | BadLine], args: argparse.Namespace
) -> int:
    """Make the clips of `lines` that do not exist yet, past lines that fail; returns the exit code."""
    from nava_core.engine.failures import explain, is_out_of_memory
    from nava_core.engine.parallel import RankFailure, agreed

    usable = [line for line in lines if isinstance(line, BatchLine)]
    failed = [line.index for line in lines if isinstance(line, BadLine)]
    for line in lines:
        report_reading(args.data_file, line, template.modality)
    clips = [(line, turn) for line in usable for turn in range(args.gen_turn)]
    progress = Progress(len(clips), template.resolve(pipeline.spec).num_inference_steps or 0)
    made = existing = 0
    with progress:
        for line, turn in clips:
            path = args.out_dir / output_name(line, turn, template.modality)
            if agreed(pipeline, path.exists()):
                existing += 1
                progress.skip(f"exists: {path}")
            elif line.index in failed:
                progress.skip(f"skipped after this line's failure: {path.name}")
            else:
                try:
                    make_clip(pipeline, clip_request(template, line, turn), path, progress)
                    made += 1
                except (ValueError, MediaError, OSError) as error:
                    failed.append(line.index)
                    progress.skip(f"{line_label(args.data_file, line.index)}: {error}", logging.ERROR)
                except RankFailure:
                    raise
                except RuntimeError as error:
                    # Out of memory, or a fault of the device: later and smaller clips may still succeed.
                    failed.append(line.index)
                    label = line_label(args.data_file, line.index)
                    if is_out_of_memory(error):
                        words = explain(error, template.resolve(pipeline.spec), pipeline.profile).message
                        progress.skip(f"{label}: {words}", logging.ERROR)
                    else:
                        logger.exception("")
                        progress.skip(f"{label} failed, see above", logging.ERROR)
    summary = f"{made} clips made, {existing} existed, {len(failed)} of {len(lines)} lines failed"
    logger.info("%s%s", summary, f": {', '.join(f'idx{index}' for index in sorted(failed))}" if failed else "")
    return SOME_FAILED if failed else 0


def clip_request(template: GenerationRequest, line: BatchLine, turn: int) -> GenerationRequest:
    """The request of a line and a turn, with its own seed."""
    assert template.seed is not None, "--seed has a default"
    return replace(
        template,
        prompt=line.prompt,
        image=None if template.modality == "audio" else line.image,
        speakers=line.speakers,
        seed=clip_seed(template.seed, line.index, turn),
    )


def make_clip(pipeline: NavaPipeline, request: GenerationRequest, path: Path, progress: Progress) -> None:
    """Denoise one clip, decode it into its file and say where it is."""
    from nava_core.engine.parallel import run_together, save_together

    request = request.resolve(pipeline.spec)
    with progress.clip(path.name) as on_step:
        output = run_together(pipeline, request, callback_on_step_end=on_step)
        recipe = save_together(pipeline, output, request, path)
    if recipe is not None:  # else another rank has written it
        progress.write(path)


def report_reading(data_file: Path, line: BatchLine | BadLine, modality: Modality) -> None:
    """Tell how a line was read, where that is not plain."""
    label = line_label(data_file, line.index)
    if isinstance(line, BadLine):
        logger.error("%s %s", label, line.message)
        return
    for note in line.notes:
        logger.info("%s: %s", label, note)
    if line.unknown_keys:
        logger.warning("%s: keys without a meaning here: %s", label, ", ".join(line.unknown_keys))
    if modality == "audio" and line.image is not None:
        logger.info("%s: its image_path has no use for sound alone", label)


def line_label(data_file: Path, index: int) -> str:
    return f"{data_file.name} line {index + 1} (idx{index})"


class Progress:
    """Clips and steps done: bars where stderr is a terminal, a line now and then where it is a log."""

    LINES_A_CLIP = 5

    def __init__(self, clips: int, steps: int) -> None:
        self._clips, self._steps, self._done = clips, steps, 0
        self._interactive = sys.stderr.isatty()
        self._bars = ExitStack()

    def __enter__(self) -> Self:
        self._bars.enter_context(logging_redirect_tqdm())
        self._bar = self._bars.enter_context(self._make_bar("clips", self._clips, leave=True))
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.close()

    def _make_bar(self, name: str, total: int, leave: bool) -> tqdm:
        return tqdm(total=total, desc=name, leave=leave, disable=not self._interactive, dynamic_ncols=True)

    @contextmanager
    def clip(self, name: str) -> Iterator[Callable[..., None]]:
        """The pipeline's `callback_on_step_end` for the next clip."""
        start = time.monotonic()
        every = max(1, math.ceil(self._steps / self.LINES_A_CLIP))
        if not self._interactive:
            logger.info("clip %d of %d: %s", self._done + 1, self._clips, name)
        with self._make_bar("steps", self._steps, leave=False) as bar:

            def on_step(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> None:
                bar.update()
                if not self._interactive and ((index + 1) % every == 0 or index + 1 == self._steps):
                    pace = (time.monotonic() - start) / (index + 1)
                    logger.info("  step %d of %d, %.2f s a step", index + 1, self._steps, pace)

            yield on_step
        self._advance()

    def skip(self, message: str, level: int = logging.INFO) -> None:
        """A clip that is not made, and why."""
        logger.log(level, "%s", message)
        self._advance()

    def write(self, path: Path) -> None:
        """A finished clip's path to stdout."""
        with tqdm.external_write_mode(file=sys.stdout):
            print(path, flush=True)

    def _advance(self) -> None:
        self._done += 1
        self._bar.update()


def fail(message: str) -> int:
    print(f"inference_nava.py: error: {message}", file=sys.stderr)
    return USAGE_ERROR


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
