"""Figures of all kinds: colors of classes, fonts for any script, and the pictures of a run."""
