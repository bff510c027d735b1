"""Commands that measure complete processes."""
