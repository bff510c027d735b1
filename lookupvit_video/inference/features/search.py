"""Search in saved features: the clips whose pooled features point most in the same direction."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from lookupvit_video.errors import UserError
from lookupvit_video.inference.features.extract import VideoFeatures
from lookupvit_video.inference.features.store import SavedFeatures


class FeatureSearch:
    """Saved features, ready to be searched by cosine similarity, exactly.

    Args:
        about: of the features that will be looked for, see ``SavedFeatures``.

    Raises:
        UserError: the saved features are of another model or kind, or there are none.
    """

    def __init__(self, saved: SavedFeatures, about: Mapping[str, Any], name: str):
        for key in ("tokens", "model", "grid"):
            if saved.about.get(key) != about[key]:
                raise UserError(
                    f"{name}: its features have {key} {saved.about.get(key)}, those looked for have {about[key]}; "
                    "use the checkpoint and options that it was made with"
                )
        if saved.rows.ndim != 2 or not len(saved.rows):
            raise UserError(f"{name}: a search needs pooled features, of one clip at least")
        self.saved = saved
        self._neighbors = NearestNeighbors(metric="cosine", algorithm="brute").fit(np.asarray(saved.rows, np.float32))

    def nearest(self, video: VideoFeatures, count: int) -> list[dict[str, Any]]:
        """Return for each clip of a video its ``count`` nearest saved clips, ready for JSON."""
        count = min(count, len(self.saved.rows))
        distances_RK, found_RK = self._neighbors.kneighbors(video.rows, count)
        return [
            {
                "path": video.path,
                **_span(times),
                "nearest": [
                    {
                        "path": self.saved.paths[row],
                        **_span(self.saved.times[row]),
                        "similarity": round(1 - float(distance), 6),
                    }
                    for row, distance in zip(found, distances, strict=True)
                ],
            }
            for times, found, distances in zip(video.times, found_RK, distances_RK, strict=True)
        ]


def _span(times: np.ndarray) -> dict[str, float]:
    return {"start": round(float(times[0]), 3), "end": round(float(times[1]), 3)}
