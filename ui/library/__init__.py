"""What a person keeps: voices, on disk, until they are deleted. Knows neither gradio nor torch."""
