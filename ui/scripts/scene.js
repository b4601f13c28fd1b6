/* Speech coloured as one types, by nava_core/speech.py's grammar, and the first frame with its crop drawn over it. */

(() => {
  const OPENING = /(~~<S>|~~|<S>)(?:[ \t]*<extra_id_2>)*/g;
  const NEXT = {"~~": /~~|<S>/g, "<S>": /<E>|<S>/g, "~~<S>": /<E>(?:~~)?|~~|<S>/g};
  const LINE_END = /[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]/g;
  const COLOURS = 4; // as views.SPAN_COLOURS

  function after(pattern, text, position) {
    pattern.lastIndex = position;
    return pattern.exec(text);
  }

  /* The spans of a prompt: {text, markStart, markEnd, closed}, as `parse_speech` finds them. */
  function parseSpeech(text) {
    const spans = [];
    let position = 0, opening;
    while ((opening = after(OPENING, text, position))) {
      const start = opening.index + opening[0].length;
      const next = after(NEXT[opening[1]], text, start);
      let end, markEnd, closed;
      if (next && next[0] !== "<S>") {
        [end, markEnd, closed] = [next.index, next.index + next[0].length, true];
      } else {
        const limit = next ? next.index : text.length;
        const line = after(LINE_END, text.slice(0, limit), start);
        end = markEnd = line ? line.index : limit;
        closed = false;
      }
      spans.push({text: text.slice(start, end), markStart: opening.index, markEnd, closed});
      position = markEnd;
    }
    return spans;
  }

  function colours() {
    const given = document.querySelector("#speech [data-colours]")?.dataset.colours;
    return given ? given.split(",") : [];
  }

  /* The text once more, behind the textarea and unseen but for the colours of its spans. */
  function draw(layer, text, chosen) {
    layer.replaceChildren();
    let position = 0;
    parseSpeech(text).forEach((span, index) => {
      layer.append(text.slice(position, span.markStart));
      const mark = document.createElement("mark");
      mark.dataset.colour = chosen[index] || String(index % COLOURS + 1);
      mark.toggleAttribute("data-open", !span.closed);
      mark.textContent = text.slice(span.markStart, span.markEnd);
      layer.append(mark);
      position = span.markEnd;
    });
    layer.append(`${text.slice(position)}\n`);
  }

  const COPIED = [
    "fontFamily", "fontSize", "fontWeight", "fontStyle", "letterSpacing", "lineHeight", "textAlign", "tabSize",
    "paddingTop", "paddingRight", "paddingBottom", "paddingLeft", "wordSpacing", "direction",
  ];

  function mirror(textarea) {
    const layer = document.createElement("div");
    layer.className = "nava-mirror";
    layer.setAttribute("aria-hidden", "true");
    textarea.before(layer);
    textarea.parentElement.classList.add("nava-mirrored");
    const place = () => {
      const style = getComputedStyle(textarea);
      COPIED.forEach(name => { layer.style[name] = style[name]; });
      layer.style.left = `${textarea.offsetLeft + textarea.clientLeft}px`;
      layer.style.top = `${textarea.offsetTop + textarea.clientTop}px`;
      layer.style.width = `${textarea.clientWidth}px`;
      layer.style.height = `${textarea.clientHeight}px`;
      layer.scrollTop = textarea.scrollTop;
    };
    let drawn = null;
    const show = () => {
      const chosen = colours(), now = JSON.stringify([textarea.value, chosen]);
      if (now !== drawn) { drawn = now; draw(layer, textarea.value, chosen); }
      place();
    };
    // Gradio sets the value without an event that one could listen to.
    const own = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value");
    Object.defineProperty(textarea, "value", {
      configurable: true,
      get() { return own.get.call(this); },
      set(value) { own.set.call(this, value); show(); },
    });
    textarea.addEventListener("input", show);
    textarea.addEventListener("scroll", () => { layer.scrollTop = textarea.scrollTop; });
    new ResizeObserver(place).observe(textarea);
    textarea.navaShow = show;
    show();
  }

  nava.tend(() => {
    document.querySelectorAll("#prompt textarea, #caption textarea").forEach(textarea => {
      textarea.navaShow ? textarea.navaShow() : mirror(textarea);
    });
  });

  /* What is left of a picture that covers a clip of this size and is cropped to its centre, in shares of the picture. */
  function cropOf(picture, clip) {
    const scale = Math.max(clip.width / picture.width, clip.height / picture.height);
    const width = clip.width / scale / picture.width, height = clip.height / scale / picture.height;
    return {left: (1 - width) / 2, top: (1 - height) / 2, width, height};
  }

  function chosenSize() {
    const found = /(\d+)\D+(\d+)/.exec(document.querySelector("#size label:has(input:checked)")?.innerText || "");
    return found ? {width: Number(found[1]), height: Number(found[2])} : null;
  }

  function crop() {
    const image = document.querySelector("#image img"), size = chosenSize();
    let frame = document.querySelector("#image .nava-crop");
    if (!image || !size || !image.naturalWidth) {
      frame?.remove();
      if (image && !image.naturalWidth) image.addEventListener("load", crop, {once: true});
      return;
    }
    if (!frame) {
      frame = document.createElement("div");
      frame.className = "nava-crop";
      frame.setAttribute("aria-hidden", "true");
      frame.append(document.createElement("i"));
    }
    const parent = image.parentElement;
    if (frame.parentElement !== parent) parent.append(frame);
    parent.classList.add("nava-cropped");
    // The picture is shown whole in the middle of its element.
    const shown = Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight);
    const width = image.naturalWidth * shown, height = image.naturalHeight * shown;
    const left = image.offsetLeft + (image.clientWidth - width) / 2;
    const top = image.offsetTop + (image.clientHeight - height) / 2;
    nava.set(frame, "style", `left:${left}px;top:${top}px;width:${width}px;height:${height}px`);
    const part = cropOf({width: image.naturalWidth, height: image.naturalHeight}, size);
    const share = value => `${(100 * value).toFixed(3)}%`;
    nava.set(
      frame.firstChild, "style",
      `left:${share(part.left)};top:${share(part.top)};width:${share(part.width)};height:${share(part.height)}`,
    );
  }

  nava.tend(crop);
  document.addEventListener("change", () => requestAnimationFrame(crop));
  window.addEventListener("resize", nava.look);
  Object.assign(nava, {parseSpeech, cropOf});
})();
