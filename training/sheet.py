"""Pictures for people: clips as rows of frames, each with its waveform and spectrogram."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

TEXT_HEIGHT = 14
SOUND_WIDTH = 360
SECOND_MARKS = (0.5, 1.0, 1.5)
CHART_SIZE = (560, 260, 44)
LEGEND_STEP = 130
CHART_COLOURS = ("#7ec8ff", "#ffc27e", "#9be39b", "#ff9bb5")


def clip_row(frames: np.ndarray, audio: np.ndarray | None, rate: int, label: str, shown: int = 13) -> Image.Image:
    """One clip as a picture: `shown` frames of uint8 (frames, height, width, 3), then the sound (channels, samples)."""
    picks = np.linspace(0, len(frames) - 1, shown).round().astype(int)
    strip = np.concatenate([np.pad(frames[i], ((0, 0), (0, 2), (0, 0))) for i in picks], axis=1)
    height = strip.shape[0]
    row = Image.new("RGB", (strip.shape[1] + SOUND_WIDTH, height + TEXT_HEIGHT), "black")
    row.paste(Image.fromarray(strip), (0, TEXT_HEIGHT))
    if audio is not None:
        row.paste(_sound_picture(audio, rate, height), (strip.shape[1], TEXT_HEIGHT))
    ImageDraw.Draw(row).text((4, 1), label, fill="white")
    return row


def stack_rows(rows: Iterable[Image.Image]) -> Image.Image:
    """Rows under one another."""
    rows = list(rows)
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height + 4 for row in rows)), "black")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + 4
    return sheet


def line_chart(
    title: str, places: Sequence[float], lines: Mapping[str, Sequence[float]], marks: Sequence[float] | None = None
) -> Image.Image:
    """`lines` of a number at each of `places`, joined from one to the next; one that is NaN is left out.

    marks: the places that are written below; all of them without it.
    """
    width, height, margin = CHART_SIZE
    chart = Image.new("RGB", (width, height), "black")
    draw = ImageDraw.Draw(chart)
    values = [value for line in lines.values() for value in line if value == value]
    low, high = min([0.0, *values]), max([0.0, *values])

    def pixel(place: float, value: float) -> tuple[float, float]:
        across = (place - min(places)) / max(max(places) - min(places), 1e-9)
        up = (value - low) / max(high - low, 1e-9)
        return margin + across * (width - 2 * margin), height - margin - up * (height - 2 * margin)

    draw.text((margin, 4), title, fill="white")
    for value in sorted({low, 0.0, high}):
        draw.line((pixel(min(places), value), pixel(max(places), value)), fill="#555555")
        draw.text((4, pixel(0, value)[1] - 6), f"{value:.2f}", fill="white")
    for place in places if marks is None else marks:
        draw.text((pixel(place, 0)[0] - 3, height - margin + 6), f"{place:g}", fill="white")
    for number, (name, line) in enumerate(lines.items()):
        colour = CHART_COLOURS[number % len(CHART_COLOURS)]
        points = [pixel(place, value) for place, value in zip(places, line, strict=True) if value == value]
        draw.line(points, fill=colour, width=2)
        draw.text((margin + LEGEND_STEP * (number + 1), 4), name, fill=colour)
    return chart


def scene_sheet(clips: int, seed: int) -> Image.Image:
    """`clips` fresh scenes of the world, of all pairs."""
    from training import world

    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(clips):
        scene = world.sample_scene(rng, "all")
        hits = " ".join(f"{hit.time:.2f}s" for hit in world.contacts(scene))
        label = f"{scene.colour} {scene.shape}, {scene.size}, {scene.column}, {scene.drop}, {scene.release}: {hits}"
        rows.append(clip_row(world.render_frames(scene), world.render_sound(scene), 48_000, label))
    return stack_rows(rows)


def _sound_picture(audio: np.ndarray, rate: int, height: int) -> Image.Image:
    """Waveform of both channels over the log spectrogram to 8 kHz, -80 dB to 0 dB."""
    wave_height = height // 3
    window, columns = 1024, SOUND_WIDTH
    starts = np.linspace(0, max(audio.shape[1] - window, 0), columns).astype(int)
    mono = np.pad(audio.mean(axis=0), (0, window))
    pieces = np.stack([mono[start : start + window] for start in starts]) * np.hanning(window)
    power = 20 * np.log10(np.abs(np.fft.rfft(pieces)).T / (window / 4) + 1e-8)
    top_bin = int(8000 / rate * window)
    shade = np.clip((power[:top_bin][::-1] + 80) / 80, 0, 1) * 255
    spectrum = Image.fromarray(shade.astype(np.uint8)).resize((columns, height - 2 * wave_height))
    picture = Image.new("RGB", (columns, height), "black")
    picture.paste(spectrum, (0, 2 * wave_height))
    draw = ImageDraw.Draw(picture)
    for channel, colour in ((0, "#7ec8ff"), (1, "#ffc27e")):
        middle = wave_height * channel + wave_height // 2
        samples = audio[min(channel, len(audio) - 1)]
        peaks = [np.abs(part).max() if len(part) else 0.0 for part in np.array_split(samples, columns)]
        for column, peak in enumerate(peaks):
            reach = min(peak, 1.0) * wave_height / 2
            draw.line((column, middle - reach, column, middle + reach), fill=colour)
    for second in SECOND_MARKS:
        column = second * rate / audio.shape[1] * columns
        draw.line((column, 0, column, height), fill="#555555")
    return picture
