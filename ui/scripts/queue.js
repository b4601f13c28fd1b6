// The queue's list: asks the server for what has changed, and turns clicks, keys and drags into actions.
// `element`, `trigger` and `server` come from Gradio.

const BUSY = 1000, IDLE = 3000, SOON = 150, EAGER_FOR = 2500, SHOWN_AT_FIRST = 20, PATIENCE = 3;
const root = element.querySelector(".nava-queue");
const part = name => root.querySelector(`.nava-queue-${name}`);
const [head, list, more, foot, offline] = ["head", "list", "more", "foot", "offline"].map(part);
const announced = root.querySelector("[role=status].nava-unseen");
const clock = new Intl.DateTimeFormat(root.dataset.language, {hour: "numeric", minute: "2-digit"});
const known = {epoch: null, seen: null};
const parts = {order: [], clocks: {}, busy: false};
let expanded = false, dragging = null, timer = null, asking = false, failures = 0, eagerUntil = 0;

// Drawing

function setHtml(place, html) {
    if (place.drawn === html) return;
    const focused = place.contains(document.activeElement) ? document.activeElement.dataset.act : null;
    place.innerHTML = place.drawn = html;
    if (focused) place.querySelector(`[data-act="${focused}"]`)?.focus();
}

function newRow(id) {
    const row = document.createElement("li");
    row.className = "nava-queue-row";
    row.dataset.id = id;
    row.innerHTML = '<div class="nava-queue-info"></div><div class="nava-queue-acts"></div>';
    return row;
}

function rowOf(id) {
    return list.querySelector(`:scope > [data-id="${CSS.escape(id)}"]`);
}

function arrange(order) {
    const focused = document.activeElement;
    const lost = list.contains(focused) ? focused.closest("li") : null;
    const neighbour = lost?.nextElementSibling ?? lost?.previousElementSibling;
    const wanted = new Set(order);
    for (const row of [...list.children]) if (!wanted.has(row.dataset.id)) row.remove();
    order.forEach((id, at) => {
        const row = rowOf(id) ?? newRow(id);
        if (list.children[at] !== row) list.insertBefore(row, list.children[at] ?? null);
    });
    if (!lost || document.activeElement === focused) return;
    // A moved row takes the focus along; that of a row that is gone goes to its neighbour.
    if (lost.isConnected) focused.focus();
    else (neighbour?.isConnected ? neighbour : list.firstElementChild)?.querySelector("button")?.focus();
}

function fold() {
    const rows = [...list.children];
    const hidden = Math.max(0, rows.length - SHOWN_AT_FIRST);
    rows.forEach((row, at) => { row.hidden = !expanded && at >= SHOWN_AT_FIRST && row.dataset.state === "queued"; });
    more.hidden = hidden === 0;
    more.ariaExpanded = String(expanded);
    const folded = rows.filter(row => row.hidden).length;
    more.textContent = expanded ? root.dataset.fewer : root.dataset.more.replace("{count}", folded);
    if (!expanded && !folded) more.hidden = true;
}

function setClocks() {
    for (const place of root.querySelectorAll("[data-clock]")) {
        const at = parts.clocks[place.dataset.clock];
        place.hidden = at === undefined;
        if (at === undefined) continue;
        const date = new Date(at * 1000);
        const shown = place.querySelector("time");
        shown.dateTime = date.toISOString();
        shown.textContent = clock.format(date);
    }
}

function draw(fresh) {
    Object.assign(parts, fresh);
    if (fresh.order) arrange(fresh.order);
    if (fresh.head !== undefined) setHtml(head, fresh.head);
    if (fresh.foot !== undefined) { foot.textContent = fresh.foot; foot.hidden = !fresh.foot; }
    for (const [name, value] of Object.entries(fresh)) {
        if (!name.startsWith("row:")) continue;
        delete parts[name];
        const row = rowOf(name.slice(4));
        if (!row) continue;
        row.dataset.state = value.state;
        setHtml(row.firstElementChild, value.info);
        setHtml(row.lastElementChild, value.acts);
    }
    fold();
    setClocks();
}

// Asking

async function ask() {
    clearTimeout(timer);
    if (asking) return;
    asking = true;
    try {
        const answer = await server.queue_feed({...known});
        if (!answer?.epoch) throw new Error("no answer");
        failures = 0;
        offline.hidden = true;
        if (!dragging) {  // else asked again when the drag is over
            known.epoch = answer.epoch;
            known.seen = answer.revision;
            draw(answer.parts);
        }
    } catch (error) {
        failures += 1;
        offline.hidden = failures < PATIENCE;
    }
    asking = false;
    later();
}

function later() {
    clearTimeout(timer);
    if (!root.isConnected || document.hidden) return;
    const eager = performance.now() < eagerUntil;
    timer = setTimeout(ask, failures ? IDLE : eager ? SOON : parts.busy ? BUSY : IDLE);
}

function act(name, row, extra = {}) {
    const asked = {act: name, job: row?.dataset.id ?? null, ...extra};
    // What other parts of the page follow has to go through Gradio's queue: a state's change is not told otherwise.
    if (name === "watch" || name === "edit") trigger("choose", asked);
    else trigger("act", asked);
    eagerUntil = performance.now() + EAGER_FOR;
    later();
}

// Keys and clicks

function waitingRows() {
    return [...list.children].filter(row => row.dataset.state === "queued");
}

function announce(row, by) {
    const rows = waitingRows(), at = rows.indexOf(row);
    const place = {first: 0, last: rows.length - 1, up: Math.max(0, at - 1), down: Math.min(rows.length - 1, at + 1)}[by];
    say((place ?? at) + 1, rows.length);
}

function say(place, count) {
    announced.textContent = root.dataset.moved.replace("{place}", place).replace("{count}", count);
}

root.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button === more) { expanded = !expanded; fold(); return; }
    const name = button.dataset.act, row = button.closest("li");
    if (!name || name === "grip") return;
    if (["first", "up", "down"].includes(name)) announce(row, name);
    act(name, row);
});

root.addEventListener("keydown", event => {
    const grip = event.target.closest("[data-act=grip]");
    const name = {ArrowUp: "up", ArrowDown: "down", Home: "first", End: "last"}[event.key];
    if (!grip || !name) return;
    event.preventDefault();
    announce(grip.closest("li"), name);
    act(name, grip.closest("li"));
});

// Dragging, by mouse, pen or finger

root.addEventListener("pointerdown", event => {
    const grip = event.target.closest("[data-act=grip]");
    if (!grip || event.button !== 0) return;
    const row = grip.closest("li");
    dragging = {row, next: row.nextElementSibling};
    row.dataset.dragged = "";
});

// On the document: a pointer may leave the list, and a row that changes places loses its capture.
document.addEventListener("pointermove", event => {
    if (!dragging) return;
    const {row} = dragging;
    const others = waitingRows().filter(other => other !== row && !other.hidden);
    const below = others.find(other => {
        const box = other.getBoundingClientRect();
        return event.clientY < box.top + box.height / 2;
    });
    const place = below ?? others.at(-1)?.nextElementSibling ?? null;
    if (place !== row && row.nextElementSibling !== place) list.insertBefore(row, place);
});

function drop(keep) {
    if (!dragging) return;
    const {row, next} = dragging;
    dragging = null;
    delete row.dataset.dragged;
    if (!keep) list.insertBefore(row, next);
    else if (row.nextElementSibling !== next) {
        const rows = waitingRows(), at = rows.indexOf(row);
        say(at + 1, rows.length);
        act("place", row, {before: rows[at + 1]?.dataset.id ?? ""});
        setTimeout(() => { if (!dragging) arrange(parts.order); }, EAGER_FOR);  // in case it was refused
    }
    later();
}

document.addEventListener("pointerup", () => drop(true));
document.addEventListener("pointercancel", () => drop(false));
root.addEventListener("keydown", event => { if (event.key === "Escape") drop(false); });
document.addEventListener("visibilitychange", () => document.hidden ? clearTimeout(timer) : ask());
ask();
