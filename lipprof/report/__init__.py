"""What a person sees of a run; reads the run file only, never a model."""
