"""What the studio keeps for people beside the queue: no gradio, no torch."""
