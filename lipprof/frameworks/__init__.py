"""Callbacks for the training loops of frameworks."""
