"""Commands that use a trained model on many videos, or on live ones."""
