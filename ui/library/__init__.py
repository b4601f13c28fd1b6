"""What a person keeps beside the queue, on disk, until it is deleted: voices and clips. No gradio, no torch."""
