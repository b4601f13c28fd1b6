// A list made in Python: what is pressed or changed in it goes to a handler as {action, ...}; when the list is made
// anew, what was open stays open, what had the focus keeps it, and what was filled in and not sent yet stays filled in.
const keyed = (key) => element.querySelector(`[data-key="${CSS.escape(key)}"]`);
const opened = new Set();
const drafts = new Map();
const sent = (...controls) => controls.forEach((control) => drafts.delete(control.dataset.key));
let focused = null;

element.addEventListener('toggle', (event) => {
    if (event.target.dataset?.key) opened[event.target.open ? 'add' : 'delete'](event.target.dataset.key);
}, true);
element.addEventListener('focusin', (event) => { focused = event.target.dataset.key || null; });
element.addEventListener('focusout', (event) => { if (event.relatedTarget) focused = null; });
element.addEventListener('input', ({target}) => {
    if (target.matches('input[data-key]')) drafts.set(target.dataset.key, target.value);
});

const restore = () => {
    for (const [key, value] of drafts) {
        const control = keyed(key);
        if (!control) continue;
        control.value = value; // which it may have kept, while all that follows from it is new
        control.dispatchEvent(new Event('input', {bubbles: true}));
    }
    for (const key of opened) keyed(key)?.setAttribute('open', '');
    if (focused && (document.activeElement === document.body || !document.activeElement)) keyed(focused)?.focus();
};
watch('value', restore);
