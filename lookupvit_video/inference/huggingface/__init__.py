"""The model as transformers' own calls load it: registered classes, and code that travels in a saved folder."""
