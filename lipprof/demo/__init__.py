"""The demonstration: a character-level GPT trained with AMOS under the profiler."""
