"""What the processes of test_parallel.py do. Each writes what it saw to `rank{n}.json`; the test judges."""

from __future__ import annotations

import faulthandler
import json
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor

from nava_core import passes
from nava_core.engine import parallel
from nava_core.engine.parallel import (
    RankFailure,
    parallelism,
    parallelize,
    run_together,
    save_together,
    unparallelize,
)
from nava_core.engine.rank_plan import RankPlan
from nava_core.engine.split_decode import SplitDecode
from nava_core.models.transformer_nava import NavaTransformer3DModel
from nava_core.pipeline import GivenTensors, NavaPipeline
from nava_core.request import GenerationCancelled, GenerationRequest, Guidance, Shortcuts

GOLDEN = Path(__file__).parent / "golden"
STEPS = 3
HANGS_AFTER = float(os.environ.get("HANGS_AFTER", "900"))  # seconds: where everybody waits is then told


def start(ranks: int, folder: Path, work: Callable[[int, Path], dict[str, Any]]) -> list[dict[str, Any]]:
    """Run `work` in `ranks` gloo processes; returns what each of them wrote."""
    mp.start_processes(_process, (ranks, str(folder), work), nprocs=ranks, start_method="forkserver")
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def _process(rank: int, ranks: int, folder: str, work: Callable[[int, Path], dict[str, Any]]) -> None:
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=timedelta(seconds=240)
    )
    try:
        result = work(rank, Path(folder))
    except BaseException:  # noqa: BLE001 (reported, and the process ends)
        traceback.print_exc()  # the parent shows one rank's error alone, which may be a follower's
        os._exit(1)
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(result))
    os._exit(0)  # a group that has lost a rank does not close


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).abs().max() / expected.abs().max()).item()


def rms_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).square().mean().sqrt() / expected.double().std()).item()


class Tiny:
    """A golden model and guided runs on it."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32):
        self.settings = json.loads((GOLDEN / f"{name}.json").read_text())
        self.io = load_file(GOLDEN / f"{name}_io.safetensors")
        weights = load_file(GOLDEN / f"{name}_weights.safetensors")
        model = NavaTransformer3DModel.from_official(weights, self.settings["config"], dtype=dtype)
        self.pipeline = NavaPipeline(model)
        self.pipeline.set_progress_bar_config(disable=True)

    def case(self, case: str) -> tuple[GenerationRequest, GivenTensors]:
        io, modality = self.io, "audio_video"
        video, audio, speakers, guidance = io["video"], io["audio"], False, Guidance(**self.settings["scales"])
        image = None
        shortcuts = Shortcuts()
        if case in ("timbre", "image", "audio", "cached", "intervals"):
            speakers = True
        if case == "cached":
            shortcuts = Shortcuts(step_cache=1.0)
        if case == "intervals":  # four passes, then two, then one
            shortcuts = Shortcuts(negative=(0.0, 0.5), align=(0.0, 0.3), timbre=(0.0, 0.3))
        if case == "image":
            image = io["first_frame"]
        if case == "audio":
            modality, video = "audio", None
        if case == "video":
            modality, audio = "video", None
        if case == "odd":  # 3 x 3 x 5 video and 7 audio tokens
            noise = torch.Generator().manual_seed(1)
            video, audio = torch.randn(8, 3, 6, 10, generator=noise), torch.randn(7, 6, generator=noise)
        if case == "plain":
            guidance = Guidance(video=0, audio=0, video_align=0, audio_align=0, timbre=0)
        if case == "isolated":  # the joint passes weigh nothing but the conditional one
            guidance = Guidance(video=0, audio=0, video_align=3, audio_align=2, timbre=0)
        request = GenerationRequest(
            prompt="",
            speakers=tuple(io["speakers"]) if speakers else (),
            num_inference_steps=STEPS,
            guidance=guidance,
            modality=modality,
            seed=0,
            shortcuts=shortcuts,
        )
        positions = self.settings["speaker_positions"] if speakers else None
        return request, GivenTensors(video, audio, image, io["text"], io["negative_text"], positions)

    def run(self, case: str, **kwargs: Any) -> dict[str, Tensor]:
        output = run_together(self.pipeline, *self.case(case), **kwargs)
        streams = {"video": output.latents, "audio": output.audio_latents}
        return {name: latents for name, latents in streams.items() if latents is not None}


@contextmanager
def shared_by_ranks(pipeline: NavaPipeline, plan: RankPlan | None = None) -> Iterator[Any]:
    parallelize(pipeline, plan=plan)
    try:
        yield parallelism(pipeline)
    finally:
        unparallelize(pipeline)


def compare(tiny: Tiny, name: str, case: str, plans: Sequence[RankPlan | None]) -> list[dict[str, Any]]:
    """One row for each plan: how far its run is from one process's, and what it took."""
    expected = tiny.run(case)
    rows = []
    for plan in plans:
        with shared_by_ranks(tiny.pipeline, plan) as state:
            actual = tiny.run(case)
        rows.append(
            {
                "model": name,
                "case": case,
                "plan": None if plan is None else [plan.groups, plan.sequence_ranks],
                "error": max(relative_error(actual[stream], expected[stream]) for stream in expected),
                "traffic": vars(state.traffic),
                "layers": len(tiny.pipeline.transformer.transformer_blocks),
                "checksums": [float(latents.double().sum()) for latents in actual.values()],
            }
        )
    return rows


CASES = ("timbre", "image", "odd", "isolated", "audio", "video", "plain", "cached", "intervals")
ALL_WAYS = ("timbre", "odd", "audio", "cached", "intervals")


def equality(rank: int, folder: Path) -> dict[str, Any]:
    """Every case with the sequence shared, and the other ways of sharing where they differ; then decoding."""
    ranks = dist.get_world_size()
    ulysses, others = {2: (RankPlan(1, 2), [RankPlan(2, 1)]), 4: (RankPlan(1, 4), [RankPlan(2, 2), RankPlan(3, 1)])}[
        ranks
    ]
    tiny = Tiny("tiny")
    rows = []
    for case in CASES:
        rows += compare(
            tiny,
            "tiny",
            case,
            [ulysses, *(others if case in ("timbre", "odd", "audio", "cached", "intervals") else [])],
        )
    rows += compare(tiny, "tiny", "timbre", [None])
    rows += compare(Tiny("tiny_split"), "tiny_split", "timbre", [ulysses])
    batch_below, passes.BATCH_BELOW_TOKENS, parallel.BATCH_BELOW_TOKENS = passes.BATCH_BELOW_TOKENS, 0, 0
    rows += compare(tiny, "one by one", "timbre", [ulysses, *others])
    passes.BATCH_BELOW_TOKENS = parallel.BATCH_BELOW_TOKENS = batch_below
    half = half_precision(ulysses) if ranks == 2 else None
    return {"rows": rows, "half": half, "decode": [decoding(*size) for size in SIZES]}


def half_precision(plan: RankPlan) -> dict[str, list[float]]:
    """Errors of bfloat16 against float32 over whole runs, alone and shared."""
    exact, rounded = Tiny("tiny"), Tiny("tiny", torch.bfloat16)
    errors: dict[str, list[float]] = {"alone": [], "shared": []}
    for case in ("timbre", "image"):
        expected = exact.run(case)
        alone = rounded.run(case)
        with shared_by_ranks(rounded.pipeline, plan):
            shared = rounded.run(case)
        for stream, latents in expected.items():
            errors["alone"].append(rms_error(alone[stream], latents))
            errors["shared"].append(rms_error(shared[stream], latents))
    return errors


SIZES = ((3, 3, 7), (2, 6, 3), (1, 2, 3))  # latent frames, height, width


def decoding(frames: int, height: int, width: int) -> dict[str, Any]:
    """A clip's decode split over all ranks, against one rank's."""
    from nava_core.decode import decode_clip

    vae = tiny_vae()
    latents = torch.randn(48, frames, height, width, generator=torch.Generator().manual_seed(3))
    alone = decode_clip(vae, latents)
    tiny = Tiny("tiny")
    with shared_by_ranks(tiny.pipeline) as state:
        decode = SplitDecode(state, vae, latents)
        if state.rank == 0:
            with decode:
                together = torch.cat(list(decode(vae, latents)))
        else:
            decode.help()
            together = None
        halos = state.traffic.halos
    if together is None:
        return {"halos": halos}
    difference = (together - alone).double()
    psnr = -10 * difference.square().mean().clamp(min=1e-20).log10().item()
    return {"largest": difference.abs().max().item(), "psnr": psnr, "halos": halos, "shape": list(together.shape)}


_VAES: list[Any] = []


def tiny_vae() -> Any:
    from nava_core.official import load_video_vae

    if not _VAES:
        bundle = GOLDEN / "official_tiny" / "Wan2.2-TI2V-5B" / "Wan2.2_VAE.pth"
        _VAES.append(load_video_vae(bundle, torch.float32))
    return _VAES[0]


def raised(call: Callable[[], Any]) -> str:
    """What a call raises, as "Type: message"; "" for nothing."""
    try:
        call()
    except (RuntimeError, ValueError, OSError, GenerationCancelled) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def troubles(rank: int, folder: Path) -> dict[str, Any]:
    """What goes wrong on one rank or on all, and that the next request works; the last one loses the group."""
    parallel.SETTLE = 60.0  # where all come, the last may be late
    seen: dict[str, Any] = {}
    tiny = Tiny("tiny")
    expected, processor = tiny.run("timbre"), tiny.pipeline.transformer.transformer_blocks[0].self_attn.processor
    seen["heads"] = raised(lambda: parallelize(tiny.pipeline, plan=RankPlan(1, 3)))
    seen["ranks"] = raised(lambda: parallelize(tiny.pipeline, plan=RankPlan(2, 2)))
    parallelize(tiny.pipeline, plan=RankPlan(1, 2))
    unparallelize(tiny.pipeline)
    alone, restored = tiny.run("timbre"), tiny.pipeline.transformer.transformer_blocks[0].self_attn.processor
    seen["untouched"] = torch.equal(alone["video"], expected["video"]) and restored is processor
    parallelize(tiny.pipeline, plan=RankPlan(1, 2))
    seen["twice"] = raised(lambda: parallelize(tiny.pipeline))

    def works() -> bool:
        return relative_error(tiny.run("timbre")["video"], expected["video"]) < 1e-5

    _, given = tiny.case("timbre")
    bad = GenerationRequest(prompt="", num_inference_steps=0 if rank == 1 else 2, seed=0)
    seen["bad request on rank 1"] = raised(lambda: run_together(tiny.pipeline, bad, given)), works()

    other_noise = GivenTensors(given.latents + rank, given.audio_latents, None, given.prompt_embeds)
    plain = GenerationRequest(prompt="", num_inference_steps=2, guidance=tiny.case("plain")[0].guidance)
    seen["other noise"] = raised(lambda: run_together(tiny.pipeline, plain, other_noise)), works()

    sized = GenerationRequest(prompt="", num_inference_steps=2, width=64, height=32, num_frames=5)
    texts = GivenTensors(prompt_embeds=given.prompt_embeds, negative_prompt_embeds=given.negative_prompt_embeds)
    unseeded = run_together(tiny.pipeline, sized, texts)
    seen["no seed"] = [unseeded.seed, float(unseeded.latents.double().sum())]

    def cancel(_: Any, index: int, *__: Any) -> None:
        if index == 1:
            raise GenerationCancelled("enough")

    seen["cancelled"] = raised(lambda: tiny.run("timbre", callback_on_step_end=cancel)), works()
    seen["error on all"] = raised(lambda: with_fault(tiny, True)), works()
    seen["alone outside a run"] = alone_outside_a_run(tiny) if rank == 0 else None

    parallel.SETTLE = 3.0
    try:
        with_fault(tiny, rank == 1)
    except RankFailure as error:
        seen["error on rank 1"] = [str(error), str(error.__cause__)]
    return seen


def with_fault(tiny: Tiny, here: bool) -> None:
    """A run in whose second step this rank runs out of memory."""
    calls = []

    def fault(*_: Any) -> None:
        calls.append(1)
        if here and len(calls) == 2:
            raise torch.OutOfMemoryError("no memory left")

    hook = tiny.pipeline.transformer.transformer_blocks[2].register_forward_pre_hook(fault)
    try:
        tiny.run("timbre")
    finally:
        hook.remove()


def alone_outside_a_run(tiny: Tiny) -> bool:
    """One rank may use the model by itself, as a preview would."""
    io = tiny.io
    with torch.no_grad():
        output = tiny.pipeline.transformer(io["video"][None], None, torch.tensor([500.0]), io["text"][None])
    return bool(torch.isfinite(output.sample).all())


def files(rank: int, folder: Path) -> dict[str, Any]:
    """The command line over two ranks, and files that cannot be written."""
    import inference_nava
    from nava_core.checkpoint import load_pipeline

    pipeline = load_pipeline(GOLDEN / "official_tiny", device="cpu", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    inference_nava.load_model = lambda args: pipeline
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(dist.get_world_size()), "LOCAL_RANK": str(rank)}
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "A cafe."}\n{"prompt": "x", "image_path": "absent.png"}\n{"prompt": "A street."}\n')
    arguments = ["--data_file", str(prompts), "--out_dir", str(folder / "clips"), "--use_sp", "--width", "96"]
    arguments += ["--height", "64", "--frames", "3", "--steps", "2"]
    seen: dict[str, Any] = {"codes": [inference_nava.main(arguments), inference_nava.main(arguments)]}

    parallelize(pipeline)
    request = GenerationRequest(prompt="A cafe.", num_inference_steps=1, seed=1, width=96, height=64, num_frames=9)
    request = request.resolve(pipeline.spec)
    output = run_together(pipeline, request)

    def stop(*_: Any) -> None:
        raise OSError("the disk is full")

    seen["stopped"] = raised(lambda: save_together(pipeline, output, request, folder / "a.mp4", progress=stop))
    seen["nowhere"] = raised(lambda: save_together(pipeline, output, request, prompts / "a.mp4"))
    recipe = save_together(pipeline, output, request, folder / "b.mp4")
    seen["recipe"] = None if recipe is None else recipe["seed"]
    return seen
