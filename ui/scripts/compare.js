// Variations that play together (ui/compare.py draws them): one transport for all, the sound of one at a time.
const clips = () => [...element.querySelectorAll("figure video, figure audio")];
const frame = () => 1 / Number(element.querySelector(".nava-compare")?.dataset.fps ?? 24);
let heard = 0;
let playing = false;
let drawing = false;

function length() {
  const known = clips().map((clip) => clip.duration).filter(Number.isFinite);
  return known.length ? Math.min(...known) : 0;
}

function choose(index) {
  if (!clips()[index]) return;
  heard = index;
  clips().forEach((clip, place) => {
    clip.muted = place !== heard;
    const figure = clip.closest("figure");
    figure.toggleAttribute("data-heard", place === heard);
    figure.querySelector(".nava-listen").setAttribute("aria-pressed", String(place === heard));
  });
}

function seek(seconds) {
  const to = Math.min(Math.max(seconds, 0), length());
  for (const clip of clips()) clip.currentTime = to;
  draw();
}

async function play() {
  playing = true;
  seek(clips()[heard].currentTime >= length() - frame() ? 0 : clips()[heard].currentTime);
  await Promise.allSettled(clips().map((clip) => clip.play()));
  follow();
}

function pause() {
  playing = false;
  for (const clip of clips()) {
    clip.pause();
    clip.playbackRate = 1;
  }
  if (clips().length) seek(clips()[heard].currentTime);
}

// The one that is heard is the clock. The others catch up by their speed, which nobody sees, or by a jump when they
// are far away.
function keepTogether() {
  const clock = clips()[heard];
  clips().forEach((clip, place) => {
    if (place === heard) {
      clip.playbackRate = 1;
      return;
    }
    const ahead = clip.currentTime - clock.currentTime;
    if (Math.abs(ahead) > 0.25) clip.currentTime = clock.currentTime;
    clip.playbackRate = Math.abs(ahead) < frame() / 4 ? 1 : Math.min(Math.max(1 - ahead * 4, 0.5), 1.5);
    if (clip.paused && playing && !clip.ended) clip.play();
  });
}

function draw() {
  const button = element.querySelector("[data-play]");
  const clock = clips()[heard];
  if (!button || !clock) return;
  button.textContent = playing ? button.dataset.wordsPause : button.dataset.wordsPlay;
  const bar = element.querySelector("input[type=range]");
  bar.value = length() ? clock.currentTime / length() : 0;
  const words = `${clock.currentTime.toFixed(1)} / ${length().toFixed(1)} s`;
  bar.setAttribute("aria-valuetext", words);
  element.querySelector(".nava-clock").textContent = words;
}

function follow() {
  if (drawing) return;
  drawing = true;
  const next = () => {
    drawing = playing && element.isConnected && clips().length > 0;
    if (drawing) {
      if (clips()[heard].ended || clips()[heard].currentTime >= length() - 0.01) play();
      keepTogether();
      requestAnimationFrame(next);
    }
    draw();
  };
  requestAnimationFrame(next);
}

element.addEventListener("click", (event) => {
  const figure = event.target.closest("figure");
  if (event.target.closest("[data-play]")) playing ? pause() : play();
  else if (event.target.closest("[data-take]")) {
    pause();
    trigger("select", { id: figure.dataset.id });
  } else if (figure && event.target.closest(".nava-stage")) choose(clips().indexOf(figure.querySelector("video, audio")));
});
element.addEventListener("input", (event) => event.target.type === "range" && seek(event.target.value * length()));
element.addEventListener("loadedmetadata", draw, true);

// Keys also count while nothing has the focus. Each appearance of the panel has its own listener, until it is gone.
document.addEventListener("keydown", function key(event) {
  if (!element.isConnected) return document.removeEventListener("keydown", key);
  if (event.target !== document.body && !event.target.closest("#compare")) return;
  if (event.ctrlKey || event.metaKey || event.altKey || !clips().length) return;
  const onControl = event.target.closest("button, a");
  const onBar = event.target.closest("input");
  const now = clips()[heard].currentTime;
  if (/^[1-4]$/.test(event.key)) choose(Number(event.key) - 1);
  else if (event.key === "k" || (event.key === " " && !onControl)) playing ? pause() : play();
  else if (event.key === "ArrowLeft" && !onBar) seek(now - (event.shiftKey ? 1 : frame()));
  else if (event.key === "ArrowRight" && !onBar) seek(now + (event.shiftKey ? 1 : frame()));
  else return;
  event.preventDefault();
});

const renew = () => {
  playing = false;
  choose(0);
  draw();
};
renew();
watch("value", renew);
