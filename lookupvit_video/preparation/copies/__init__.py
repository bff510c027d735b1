"""Videos that are copies of one another: re-encoded, rescaled, cut, mirrored, with bars, at another speed."""
