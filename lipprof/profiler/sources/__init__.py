"""Where the loss that is measured comes from, and the hooks that get hold of it."""
