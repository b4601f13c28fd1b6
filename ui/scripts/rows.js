// A list made in Python: what is pressed or changed in it goes to a handler as {action, ...}; when the list is made
// anew, what was open stays open and what had the focus keeps it.
const keyed = (key) => element.querySelector(`[data-key="${CSS.escape(key)}"]`);
const opened = new Set();
let focused = null;

element.addEventListener('toggle', (event) => {
    if (event.target.dataset?.key) opened[event.target.open ? 'add' : 'delete'](event.target.dataset.key);
}, true);
element.addEventListener('focusin', (event) => { focused = event.target.dataset.key || null; });
element.addEventListener('focusout', (event) => { if (event.relatedTarget) focused = null; });

const restore = () => {
    for (const key of opened) keyed(key)?.setAttribute('open', '');
    if (focused && (document.activeElement === document.body || !document.activeElement)) keyed(focused)?.focus();
};
watch('value', restore);
