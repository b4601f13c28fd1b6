/* What the page does in the browser alone: regions, theme, disclosures, the form that is kept, the examples. */

window.nava = (() => {
  const THEME_KEY = "nava-studio-theme";
  // These suit any model; the rest of the form is only kept once the model's choices are known.
  const WORDS = ["prompt", "image", "seed", "random_seed", "variations"];
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const tasks = [];
  let shown = false, known = false, waiting = false;

  const set = (element, name, value) => {
    if (element && element.getAttribute(name) !== value) element.setAttribute(name, value);
  };

  /* Runs each task now and whenever elements came or went; a task may run at any time and changes only what differs. */
  function tend(task) {
    tasks.push(task);
    look();
  }
  function look() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; tasks.forEach(task => task()); });
  }

  function theme() {
    const chosen = localStorage.getItem(THEME_KEY);
    return chosen === "dark" || chosen === "light" ? chosen : system.matches ? "dark" : "light";
  }
  function applyTheme() {
    if (!document.body) return;
    const dark = theme() === "dark";
    if (document.body.classList.contains("dark") !== dark) document.body.classList.toggle("dark", dark);
    set(document.documentElement, "data-theme", dark ? "dark" : "light");
    document.querySelectorAll("[data-nava-theme]").forEach(button => set(button, "aria-pressed", String(dark)));
  }

  /* Gradio's containers cannot be given roles from Python: the header says which they have. */
  function regions() {
    document.querySelectorAll("[data-nava-region]").forEach(note => {
      const place = document.getElementById(note.dataset.navaRegion);
      set(place, "role", note.dataset.role);
      set(place, "aria-label", note.dataset.label);
    });
    if (document.getElementById("studio")) {
      document.querySelectorAll("main").forEach(main => set(main, "role", "presentation"));
    }
    // Gradio names them in its own words, which are not those that one sees.
    document.querySelectorAll("#studio button.upload-container, #studio .upload-container > button").forEach(button => {
      if (button.innerText.trim()) set(button, "aria-label", button.innerText.trim());
    });
    const language = document.querySelector("[data-nava-language]")?.dataset.navaLanguage;
    if (language) set(document.documentElement, "lang", language);
  }

  /* The shapes of the sizes, drawn by styles/studio.css. */
  function sizes() {
    document.querySelectorAll("#size label").forEach(label => {
      const found = /(\d+)\D+(\d+)/.exec(label.innerText);
      const ratio = found ? String(found[1] / found[2]) : "";
      if (found && label.style.getPropertyValue("--ratio") !== ratio) label.style.setProperty("--ratio", ratio);
    });
  }

  function pressed(event) {
    const button = event.target.closest?.("[data-nava-theme], [data-nava-discloses], [data-nava-skip]");
    if (!button) return;
    if ("navaTheme" in button.dataset) {
      localStorage.setItem(THEME_KEY, theme() === "dark" ? "light" : "dark");
      applyTheme();
    } else if ("navaSkip" in button.dataset) {
      event.preventDefault();
      document.querySelector("#prompt textarea")?.focus();
    } else {
      const open = button.getAttribute("aria-expanded") !== "true";
      set(button, "aria-expanded", String(open));
      document.getElementById(button.dataset.navaDiscloses)?.toggleAttribute("data-open", open);
    }
  }

  /* Posters that play while the pointer or the focus is on them; `trigger` tells the page which was chosen. */
  function examples(element, trigger) {
    const film = event => event.target.closest?.(".nava-example")?.querySelector("video");
    const play = event => { if (!calm.matches) film(event)?.play().catch(() => {}); };
    const rest = event => {
      const video = film(event);
      if (video && !event.relatedTarget?.closest?.(".nava-example")?.contains(video)) { video.pause(); video.load(); }
    };
    element.addEventListener("pointerover", play);
    element.addEventListener("focusin", play);
    element.addEventListener("pointerout", rest);
    element.addEventListener("focusout", rest);
    element.addEventListener("click", event => {
      const card = event.target.closest(".nava-example");
      if (card) trigger("select", {index: Number(card.dataset.index)});
    });
  }

  function keptForm(names, kept, values) {
    if (!shown) return kept;
    const form = {...kept};
    names.forEach((name, index) => { if (known || WORDS.includes(name)) form[name] = values[index]; });
    return form;
  }

  function showFirstError() {
    const error = document.querySelector('.nava-message-place .nava-message[data-kind="error"]');
    if (!error) return;
    const closed = error.closest("#bar-settings:not([data-open])");
    if (closed && !error.checkVisibility()) document.querySelector('[data-nava-discloses="bar-settings"]')?.click();
    error.scrollIntoView({behavior: calm.matches ? "auto" : "smooth", block: "center"});
  }

  /* On a narrow screen the stage is further down than the buttons that fill it. */
  function toTheStage() {
    const stage = document.getElementById("stage");
    if (!stage || document.querySelector('.nava-message-place .nava-message[data-kind="error"]')) return;
    const place = stage.getBoundingClientRect();
    if (place.top >= 0 && place.top < window.innerHeight / 2) return;
    stage.scrollIntoView({behavior: calm.matches ? "auto" : "smooth", block: "start"});
  }

  /* What was asked for now stands in the form. */
  function toTheForm() {
    document.getElementById("scene")?.scrollIntoView({behavior: calm.matches ? "auto" : "smooth", block: "start"});
  }

  document.addEventListener("click", pressed);
  system.addEventListener("change", applyTheme);
  new MutationObserver(look).observe(document.documentElement, {childList: true, subtree: true});
  tend(regions);
  tend(sizes);
  tend(applyTheme);
  const watchBody = () =>
    new MutationObserver(applyTheme).observe(document.body, {attributes: true, attributeFilter: ["class"]});
  document.body ? watchBody() : document.addEventListener("DOMContentLoaded", watchBody);
  applyTheme();

  return {
    set, tend, look, examples, keptForm, showFirstError, toTheStage, toTheForm,
    formIsShown: () => { shown = true; },
    modelIsKnown: () => { known = true; },
  };
})();
