"""How `lookupvit serve` holds up: many requests at once, some of them hostile, next to `lookupvit predict`."""
