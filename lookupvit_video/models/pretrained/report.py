"""What happened to the weights of a source."""

import re
from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

State = dict[str, Tensor]


@dataclass
class Report:
    """What happened to the weights; each parameter of the model is ``loaded``, ``made``, ``resized`` or ``fresh``."""

    kind: str
    """Whose weights they are, by their names."""
    loaded: list[str] = field(default_factory=list)
    """Unchanged from the source."""
    made: dict[str, str] = field(default_factory=dict)
    """Derived -> how."""
    resized: dict[str, str] = field(default_factory=dict)
    """Resized -> from what to what."""
    fresh: list[str] = field(default_factory=list)
    """What keeps its initialization."""
    left_out: list[str] = field(default_factory=list)
    """Keys of the source that were not used."""
    warnings: list[str] = field(default_factory=list)
    """Why the model computes something else than the source, and the setting that fixes it."""

    preprocessing: str = ""
    """The settings of the pixels that others' weights were trained on."""

    def __str__(self) -> str:
        lines = [f"initialized from {self.kind}"]
        for title in ("loaded", "made", "resized", "fresh", "left_out"):
            entries = getattr(self, title)
            how = entries if isinstance(entries, dict) else dict.fromkeys(entries, "")
            groups = Counter((re.sub(r"(blocks|layers?)\.\d+\.", r"\1.*.", name), text) for name, text in how.items())
            counted = [(name + (f" x{n}" if n > 1 else ""), text) for (name, text), n in groups.items()]
            each = [f"{name} ({text})" if text else name for name, text in counted]
            lines.append(f"  {title.replace('_', ' ')} {len(entries)}: {', '.join(each) or '-'}")
        if self.preprocessing:
            lines.append(f"  trained on pixels as {self.preprocessing}")
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])
