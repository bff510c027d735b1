"""From a folder of videos, and nothing else, to a config: ``find``, ``split``, ``facts``, ``rules``, ``choose``."""
