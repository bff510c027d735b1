"""How answers change on corrupted videos: ``reading``, ``answers`` on disk, ``measures``, ``report``."""
