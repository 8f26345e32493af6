"""Training: losses, optimiser, schedule, the loop and its resumable state. Knows token rows, never text or messages."""
