element.addEventListener('change', (event) => {
    const {action, line} = event.target.dataset;
    if (action === 'assign') trigger('select', {action, line: Number(line), voice: event.target.value || null});
});
