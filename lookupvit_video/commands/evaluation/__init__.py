"""Commands that measure a checkpoint."""
