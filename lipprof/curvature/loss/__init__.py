"""The loss as a function of the parameters: closures, replays, and the loss elsewhere."""
