// The gallery's cards: hover and focus play a clip without sound, a button tells Python what was pressed on which card.
// Gradio renders the cards anew in place, so everything is found from the root and nothing is kept on a card.
const still = window.matchMedia("(prefers-reduced-motion: reduce)");
const hovering = window.matchMedia("(hover: hover)");
let playing = null;
let opened = null;
let focused = null;
let drawn = null;
let timer = null;
const LOOK_INTERVAL = 1500;

const cardOf = (node) => node?.closest?.(".nava-clip");
const cardWith = (id) => [...element.querySelectorAll(".nava-clip")].find((card) => card.dataset.id === id);

function play(card) {
  const frame = card?.querySelector("button.nava-clip-frame");
  if (!frame || still.matches || card.dataset.kind !== "mp4" || !card.dataset.src) return;
  if (playing?.parentElement === frame && playing.getAttribute("src") === card.dataset.src) return;
  stop();
  playing = document.createElement("video");
  Object.assign(playing, { muted: true, loop: true, playsInline: true, src: card.dataset.src });
  playing.setAttribute("src", card.dataset.src);
  playing.setAttribute("aria-hidden", "true");
  playing.addEventListener("playing", (event) => event.target.classList.add("nava-playing"));
  frame.append(playing);
  playing.play().catch(() => {}); // a file that does not play keeps its poster
}

function stop() {
  if (!playing) return;
  playing.pause();
  playing.remove();
  playing = null;
}

function openMenu(menu) {
  for (const other of element.querySelectorAll("details[open]")) if (other !== menu) other.open = false;
  opened = menu ? cardOf(menu).dataset.id : null;
  if (!menu) return;
  const list = menu.querySelector("[role=menu]");
  list.removeAttribute("data-side");
  const place = list.getBoundingClientRect();
  if (place.left < 8) list.dataset.side = "left";
}

function close(menu, back) {
  menu.open = false;
  if (back) menu.querySelector("summary").focus();
}

element.addEventListener("pointerover", (event) => {
  if (hovering.matches && event.pointerType !== "touch") play(cardOf(event.target));
});
element.addEventListener("pointerout", (event) => {
  if (playing && cardOf(event.relatedTarget) !== cardOf(playing)) stop();
});
element.addEventListener("focusin", (event) => {
  const card = cardOf(event.target);
  const action = event.target.dataset?.action || event.target.tagName;
  focused = card && { id: card.dataset.id, action };
  if (event.target.matches(".nava-clip-frame:focus-visible")) play(card);
});
element.addEventListener("focusout", (event) => {
  if (playing && cardOf(event.relatedTarget) !== cardOf(playing) && !cardOf(playing)?.matches(":hover")) stop();
  const menu = event.target.closest("details[open]");
  if (menu && event.relatedTarget && !menu.contains(event.relatedTarget)) close(menu, false);
});

element.addEventListener("toggle", (event) => {
  if (event.target.open) openMenu(event.target);
  else if (opened === cardOf(event.target)?.dataset.id) opened = null;
}, true);

document.addEventListener("pointerdown", (event) => {
  const menu = element.querySelector("details[open]");
  if (menu && !menu.contains(event.target)) close(menu, false);
});

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-action]");
  const card = cardOf(button);
  if (!button || !card) return;
  const { action } = button.dataset;
  const detail = { action, id: card.dataset.id, stack: card.dataset.stack || "" };
  if (action === "favourite") {
    detail.on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(detail.on));
  }
  const menu = button.closest("details[open]");
  if (menu) close(menu, true);
  if (action === "open") stop();
  trigger("act", detail);
});

element.addEventListener("keydown", (event) => {
  const menu = event.target.closest("details[open]");
  const steps = { ArrowDown: 1, ArrowUp: -1 };
  if (menu && event.key === "Escape") {
    event.stopPropagation();
    close(menu, true);
  } else if (menu && event.key in steps) {
    event.preventDefault();
    const entries = [...menu.querySelectorAll("[role=menuitem]")];
    const at = entries.indexOf(document.activeElement);
    entries.at(at < 0 ? Math.min(steps[event.key], 0) : (at + steps[event.key]) % entries.length).focus();
  } else if (!menu && event.target.matches(".nava-clip-frame") && event.key === "Delete") {
    const entry = cardOf(event.target).querySelector("[data-action^=delete]");
    if (entry) entry.click();
  } else if (event.target.matches(".nava-clip-frame") && ["ArrowRight", "ArrowLeft"].includes(event.key)) {
    event.preventDefault();
    const frames = [...element.querySelectorAll("button.nava-clip-frame")];
    frames[frames.indexOf(event.target) + (event.key === "ArrowRight" ? 1 : -1)]?.focus();
  }
});

// A card may have moved under the pointer, the focus or an open menu.
watch("value", () => {
  if (playing && !playing.isConnected) playing = null;
  const menu = opened && cardWith(opened)?.querySelector("details");
  if (menu && !menu.open) menu.open = true;
  const active = cardOf(document.activeElement);
  if (focused && active && element.contains(active) && active.dataset.id !== focused.id) {
    const { action } = focused;
    const card = cardWith(focused.id);
    card?.querySelector(action === "SUMMARY" ? "summary" : `[data-action="${action}"]`)?.focus({ preventScroll: true });
  }
});

// The cards are drawn anew when the gallery has changed.
async function look() {
  clearTimeout(timer);
  if (!element.isConnected || document.hidden) return;
  try {
    const version = await server.gallery_version();
    if (version !== drawn) {
      drawn = version;
      trigger("stale");
    }
  } catch {}  // the server is away: the page says so elsewhere
  clearTimeout(timer);
  timer = setTimeout(look, LOOK_INTERVAL);
}
document.addEventListener("visibilitychange", look);
look();
