"""Which trial starts, goes on, stops or pauses, and when the sweep ends."""
