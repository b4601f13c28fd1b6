const act = (control, more = {}) => {
    const voice = control.dataset.voice || control.closest('[data-voice]')?.dataset.voice;
    trigger('select', {action: control.dataset.action, voice, ...more});
};
const edges = (box) => ['start', 'end'].map((edge) => box.querySelector(`[data-edge="${edge}"]`));

element.addEventListener('click', (event) => {
    const button = event.target.closest('button[data-action]');
    if (!button) return;
    const {action} = button.dataset;
    if (action === 'play') play(button);
    else if (action === 'recolour') act(button, {colour: Number(button.dataset.colour)});
    else if (action === 'trim') {
        const ranges = edges(button.closest('.nava-trim'));
        const [start, end] = ranges.map((range) => Number(range.value));
        sent(...ranges);
        act(button, {start, end});
    } else act(button);
});

// Names are sent when they are finished: on Enter, or when the field is left.
element.addEventListener('change', (event) => {
    if (event.target.dataset.action !== 'rename') return;
    sent(event.target);
    act(event.target, {name: event.target.value});
});
element.addEventListener('keydown', (event) => {
    if (event.target.dataset.action !== 'rename') return;
    if (event.key === 'Enter') event.target.blur();
    if (event.key === 'Escape') {
        sent(event.target);
        event.target.value = event.target.defaultValue;
        event.target.blur();
    }
});

// The edges of a cut do not pass one another; the waveform shows the part while they are dragged.
element.addEventListener('input', (event) => {
    const {edge} = event.target.dataset;
    if (!edge) return;
    const box = event.target.closest('.nava-trim');
    const [start, end] = edges(box);
    if (edge === 'start' && +start.value > +end.value - 0.1) start.value = +end.value - 0.1;
    if (edge === 'end' && +end.value < +start.value + 0.1) end.value = +start.value + 0.1;
    for (const range of [start, end]) range.nextElementSibling.value = Number(range.value).toFixed(2);
    box.querySelector('[data-action="trim"]').disabled = false;
    const bars = box.closest('.nava-voice-card').querySelectorAll('.nava-wave rect');
    bars.forEach((bar, index) => {
        const middle = (index + 0.5) / bars.length * Number(start.max);
        bar.classList.toggle('nava-unused', middle < +start.value || middle > +end.value);
    });
});

// One voice sounds at a time. Its sound is asked for once, and comes into the player beside this list.
let wanted = null;
const player = () => document.querySelector('#cast-player audio');
const show = () => {
    const audio = player();
    for (const card of element.querySelectorAll('.nava-voice-card')) {
        const button = card.querySelector('.nava-play');
        const sounds = Boolean(audio) && !audio.paused && audio.dataset.file === card.dataset.file;
        button.toggleAttribute('data-playing', sounds);
        button.ariaLabel = sounds ? button.dataset.stop : button.dataset.play;
    }
};
const start = (audio) => {
    for (const event of ['play', 'pause', 'ended']) audio.addEventListener(event, show);
    audio.currentTime = 0;
    audio.play().catch(show); // a browser may want another press first
};
function play(button) {
    const audio = player();
    const {file} = button.closest('.nava-voice-card').dataset;
    if (audio && audio.dataset.file === file) {
        if (audio.paused) start(audio); else audio.pause();
        return;
    }
    audio?.pause();
    wanted = file;
    act(button);
}
document.addEventListener('nava-sound', () => {
    const audio = player();
    if (!audio || audio.dataset.file !== wanted || !element.isConnected) return;
    wanted = null;
    start(audio);
});
watch('value', show);
