"""The command `lookupvit`: one subcommand for each thing to do."""

import sys
from typing import NoReturn

from lookupvit_video.commands.options import Command, run_one_of
from lookupvit_video.commands.run_command import program, run_command

COMMANDS = {
    "train": Command("train", "train", "train and test a model by config"),
    "test": Command("train", "test", "test a trained model by config"),
    "predict": Command("predict", "predict", "name what happens in videos"),
    "features": Command("inference.features", "features", "save features of videos, or search by them"),
    "timeline": Command("explain", "timeline", "name what happens when in a long video"),
    "stream": Command("inference.stream", "stream", "name what happens in live video"),
    "serve": Command("inference.serve", "serve", "answer videos over HTTP"),
    "explain": Command("explain", "explain", "show where a LookupViT looks"),
    "calibrate": Command("calibrate", "calibrate", "fit probabilities; thresholds for predict --reject, --adaptive"),
    "probe": Command("evaluation.probe", "probe", "train a linear probe of frozen weights at many learning rates"),
    "robustness": Command("evaluation.robustness", "robustness", "accuracy on corrupted videos"),
    "app": Command("app", "app", "a page to try a checkpoint"),
    "export": Command("export", "export", "write a checkpoint as torch.export program, ONNX or AOTInductor"),
    "merge-lora": Command("export", "merge_lora", "put LoRA's updates into the weights"),
    "check": Command("check", "check", "open every video of a data set and report problems"),
    "check-configs": Command("check", "check_configs", "load configs strictly and build their models"),
    "prepare": Command("prepare", "prepare", "write lists: of data sets, splits, labelling tools"),
    "flops": Command("benchmark", "flops", "count the multiply-accumulates and parameters of a config"),
    "benchmark": Command("benchmark", "benchmark", "measure speed: loader, model, block"),
    "study": Command("study", "study", "train every row of a study for every seed"),
    "compare": Command("study", "compare", "compare finished runs in one table"),
    "baselines": Command("study", "baselines", "what simple answers reach on the splits of finished runs"),
    "demo": Command("prepare", "demo", "make demo videos, train on them, predict (minutes on 2 CPU cores)"),
}
EXAMPLES = """  lookupvit demo --out demo
  lookupvit train --cfg k400_lvit DATA.PATH_TO_DATA_DIR /data/k400
  lookupvit predict --checkpoint runs/k400_lvit/model.pt video.mp4

lookupvit COMMAND --help describes a command.
"""


def main() -> NoReturn:
    """The console command."""
    if program() == "__main__.py":  # python -m lookupvit_video
        sys.argv[0] = "lookupvit"
    run_command(lambda: run_one_of(COMMANDS, "LookupViT for video: train, test and use it.", EXAMPLES, version=True))


if __name__ == "__main__":
    main()
