// What is below the player (ui/waveform.py draws it): seeking in the sound, the lines, loop and subtitles.
// Runs each time that it appears. Listeners stand on the stage itself, which stays, and look things up when they are
// called: what is inside comes and goes with the clips.
const stage = element.closest("#stage");
stage.navaStage ??= connect(stage);
stage.navaStage.renew();
watch("value", stage.navaStage.renew);

function connect(root) {
  const media = () => root.querySelector("#clip video, #sound audio");
  const timeline = () => root.querySelector(".nava-timeline");
  const length = () => {
    const known = media()?.duration;
    return Number.isFinite(known) && known > 0 ? known : Number(timeline()?.dataset.seconds ?? 0);
  };
  let dragging = null;
  let drawing = false;

  function seek(seconds) {
    const player = media();
    if (!player) return;
    player.currentTime = Math.min(Math.max(seconds, 0), length());
    draw();
  }

  function playOrPause() {
    const player = media();
    if (player?.paused) player.play();
    else player?.pause();
  }

  // Loop and subtitles stay as somebody set them, for this clip and the next.
  const wanted = (kind) => localStorage.getItem(`nava-stage-${kind}`) === "on";

  function toggle(kind) {
    localStorage.setItem(`nava-stage-${kind}`, wanted(kind) ? "off" : "on");
    apply();
  }

  function apply() {
    const player = media();
    for (const button of root.querySelectorAll("[data-toggle]")) {
      button.setAttribute("aria-pressed", String(wanted(button.dataset.toggle)));
    }
    if (!player) return;
    player.loop = wanted("loop");
    for (const track of player.textTracks) track.mode = wanted("subtitles") ? "showing" : "hidden";
  }

  function addSubtitles() {
    const player = media();
    const address = timeline()?.dataset.vtt;
    if (!player || player.querySelector("track")?.getAttribute("src") === address) return;
    player.querySelector("track")?.remove();
    if (!address || player.tagName !== "VIDEO") return;
    const track = document.createElement("track");
    track.kind = "subtitles";
    track.label = root.querySelector('[data-toggle="subtitles"]')?.innerText ?? "";
    track.src = address;
    player.append(track);
  }

  function draw() {
    const player = media();
    const below = timeline();
    if (!player || !below) return;
    const total = length();
    const now = player.currentTime;
    const share = total ? Math.min(now / total, 1) : 0;
    const words = `${now.toFixed(1)} / ${total.toFixed(1)} s`;
    below.querySelector(".nava-clock").textContent = words;
    const wave = below.querySelector(".nava-wave");
    if (wave) {
      wave.style.setProperty("--position", `${(share * 100).toFixed(2)}%`);
      wave.toggleAttribute("data-begun", now > 0.01 || !player.paused);
      wave.setAttribute("aria-valuenow", now.toFixed(2));
      wave.setAttribute("aria-valuetext", words);
    }
    let said = "";
    for (const cue of below.querySelectorAll(".nava-cue")) {
      const current = now >= Number(cue.dataset.start) && now < Number(cue.dataset.end) && now > 0.01;
      cue.toggleAttribute("data-now", current);
      if (current) said = cue.innerText;
    }
    const place = root.querySelector(".nava-said");
    if (place && place.textContent !== said) place.textContent = said;
  }

  function follow() {
    if (drawing) return;
    drawing = true;
    const next = () => {
      draw();
      drawing = Boolean(media() && !media().paused && root.isConnected);
      if (drawing) requestAnimationFrame(next);
    };
    requestAnimationFrame(next);
  }

  function seekTo(event) {
    const place = dragging.getBoundingClientRect();
    seek(((event.clientX - place.left) / place.width) * length());
  }

  function waveKey(event) {
    const step = event.shiftKey ? 1 : 0.1;
    const now = media()?.currentTime ?? 0;
    const places = {
      ArrowLeft: now - step, ArrowDown: now - step, ArrowRight: now + step, ArrowUp: now + step,
      PageDown: now - 1, PageUp: now + 1, Home: 0, End: length(),
    };
    if (event.key in places) seek(places[event.key]);
    else if (event.key === " " || event.key === "Enter") playOrPause();
    else return false;
    return true;
  }

  function stageKey(event) {
    const frame = 1 / Number(timeline()?.dataset.fps ?? 24);
    const actions = {
      k: playOrPause, l: () => toggle("loop"), c: () => toggle("subtitles"),
      ",": () => seek(media().currentTime - frame), ".": () => seek(media().currentTime + frame),
    };
    const action = actions[event.key.toLowerCase()];
    action?.();
    return Boolean(action);
  }

  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !media() || !timeline()) return;
    if (event.target.closest("input, textarea, select, [contenteditable=true]")) return;
    if (event.target.closest(".nava-wave") && waveKey(event)) event.preventDefault();
    else if (stageKey(event)) event.preventDefault();
  });
  root.addEventListener("click", (event) => {
    const button = event.target.closest("[data-toggle]");
    const cue = event.target.closest(".nava-cue");
    if (button) toggle(button.dataset.toggle);
    if (cue) {
      seek(Number(cue.dataset.start));
      media()?.play();
    }
  });
  root.addEventListener("pointerdown", (event) => {
    dragging = event.button === 0 ? event.target.closest(".nava-wave") : null;
    if (!dragging) return;
    dragging.setPointerCapture(event.pointerId);
    seekTo(event);
  });
  root.addEventListener("pointermove", (event) => dragging && seekTo(event));
  for (const end of ["pointerup", "pointercancel"]) root.addEventListener(end, () => (dragging = null));
  // Events of media do not bubble, but they can be caught on their way down.
  for (const name of ["play", "playing"]) root.addEventListener(name, follow, true);
  for (const name of ["pause", "ended", "seeked", "timeupdate"]) root.addEventListener(name, draw, true);

  const renew = () => {
    addSubtitles();
    apply();
    draw();
  };
  root.addEventListener("loadedmetadata", renew, true);
  return { renew };
}
