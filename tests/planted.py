"""How many wrong labels that were planted in a list `lookupvit check --model` finds, and how far up.

python -m tests.planted --checkpoint runs/demo_motion/model.pt datasets/moving_digits/data/motion/test.csv
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score

from lookupvit_video.commands.evaluation.doctor import features_of
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.log import setup_logging
from lookupvit_video.preparation.check import rows_of_path
from lookupvit_video.preparation.doctor.labels import label_margins, likely_errors, out_of_fold


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Plant wrong labels in a list, and look for them.")
    parser.add_argument("list", type=Path, help="labels that are right")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--share", type=float, default=0.05, help="of the labels")
    parser.add_argument("--count", type=int, default=480, help="rows of the list, chosen by the first seed")
    parser.add_argument("--seeds", type=int, default=5, help="draws of the wrong labels")
    arguments = parser.parse_args()
    setup_logging()
    rows = rows_of_path(str(arguments.list))
    rows = [rows[i] for i in sorted(np.random.default_rng(0).permutation(len(rows))[: arguments.count])]
    features = np.array(features_of(load_model(arguments.checkpoint, "cpu"), rows))
    names = sorted({row.label for row in rows})
    right = np.array([names.index(row.label) for row in rows])
    groups = [row.video.path for row in rows]
    print("| draw | wrong labels | average precision | named by check | of these wrong |\n|---|---|---|---|---|")
    for seed in range(arguments.seeds):
        draw = np.random.default_rng(seed)
        planted = draw.permutation(len(rows))[: round(arguments.share * len(rows))]
        labels = right.copy()
        labels[planted] = (labels[planted] + draw.integers(1, len(names), len(planted))) % len(names)
        answers = out_of_fold(features, labels, groups)
        is_wrong = labels != right
        precision = average_precision_score(is_wrong, label_margins(answers, labels))
        found = [suspect.row for suspect in likely_errors(answers, labels)]
        print(f"| {seed} | {len(planted)} | {precision:.3f} | {len(found)} | {is_wrong[found].sum()} |", flush=True)
    print(f"\n{len(rows)} videos, {len(names)} classes")


if __name__ == "__main__":
    main()
