"""Corruptions of videos, as pure functions of (frames, severity, seed); ``table`` lists them with their strengths."""
