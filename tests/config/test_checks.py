"""What does not fit together is an error that names the key."""

import pytest

from lookupvit_video.config import load_config, token_grid
from lookupvit_video.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("MODEL.NUM_CLASSES 0", r"MODEL\.NUM_CLASSES is 0; it must be at least 1"),
        ("MODEL.NUM_CLASSES -4", r"MODEL\.NUM_CLASSES is -4"),
        ("MODEL.COMPRESSED_GRID [9,7,7]", r"MODEL\.COMPRESSED_GRID: \[9, 7, 7\] is larger than .* \[8, 14, 14\]"),
        ("TEST.GRIDS [[4,7,7],[4,15,7]]", r"TEST\.GRIDS: \[4, 15, 7\] is larger than .* \[8, 14, 14\]"),
        ("MODEL.COMPRESSED_GRIDS [[7,7]]", r"MODEL\.COMPRESSED_GRIDS: \[7, 7\] has 2 numbers; .* takes t x h x w"),
        ("MODEL.EXITS [4,12]", r"MODEL\.EXITS is \[4, 12\]; write rising numbers of blocks below the model's 12"),
        ("MODEL.EXITS [4,4]", r"MODEL\.EXITS is \[4, 4\]; write rising"),
        ("MODEL.DEPTH 4 MODEL.EXITS [4]", r".*below the model's 4"),
        ("MODEL.LOOKUP_CONV [3,2,3]", r"MODEL\.LOOKUP_CONV is \[3, 2, 3\]; write \[t, h, w\], each odd"),
        ("MODEL.ARCH vit MODEL.LOOKUP_CONV [3,3,3] MODEL.POOL class", r"MODEL\.LOOKUP_CONV .* needs the complete grid"),
        (
            "MODEL.ARCH vit MODEL.LOOKUP_CONV [3,3,3] MODEL.TOKENS random",
            r"MODEL\.LOOKUP_CONV .* MODEL\.TOKENS all",
        ),
        (
            "MODEL.TOKENIZER convolutional MODEL.TUBELET [2,16,14]",
            r"MODEL\.TOKENIZER convolutional: .* MODEL\.TUBELET \[2, 16, 14\] must be divisible by 4",
        ),
        (
            "MODEL.TOKENIZER convolutional MODEL.TUBELET [2,14,16]",
            r"MODEL\.TOKENIZER convolutional: .* must be divisible by 4",
        ),
        (
            "MODEL.TOKENIZER convolutional TRAIN.TASK masked TEST.ENABLE False",
            r"TRAIN\.TASK is masked; set MODEL\.TOKENIZER 'linear': tokens of shown tubelets would see",
        ),
        (
            "TRAIN.TASK moving TEST.ENABLE False AUG.NUM_SAMPLE 2",
            r"TRAIN\.TASK is moving; set DATA\.RANDOM_FLIP False: all clips of a video have to look alike",
        ),
        (
            "TRAIN.TASK moving TEST.ENABLE False DATA.RANDOM_FLIP False DATA.NUM_FRAMES 2 "
            "MODEL.COMPRESSED_GRID [1,7,7]",
            r"TRAIN\.TASK moving tells what moves from .* frames of a video, 2 x 1 now: raise AUG\.NUM_SAMPLE",
        ),
        ("MODEL.LOOKUP_CONV [3,3]", r"MODEL\.LOOKUP_CONV is \[3, 3\]; write \[t, h, w\]"),
        (
            "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [7,7] MODEL.LOOKUP_CONV [3,3,3]",
            r"MODEL\.LOOKUP_CONV is \[3, 3, 3\]; factorised, .* write 1 for t",
        ),
        ("MODEL.KEEP [0.5]", r"MODEL\.KEEP: \[0\.5\] must begin with 1"),
        ("MODEL.KEEPS [[1],[1,0.5,0.7]]", r"MODEL\.KEEPS: \[1.*, 0\.5, 0\.7\] must not rise"),
        ("MODEL.KEEPS [[]]", r"MODEL\.KEEPS: \[\] has 0 shares; write 1 to 12"),
        ("MODEL.DEPTH 1 MODEL.KEEP [1,0.5]", r"MODEL\.KEEP: .* has 2 shares; write 1 to 1,"),
        ("MODEL.ENCODER factorised", r"MODEL\.COMPRESSED_GRID: \[4, 7, 7\] has 3 numbers; .* takes h x w"),
        (
            "MODEL.COMPRESSED_GRIDS [[1,7,7]] MODEL.COMPRESSED_GRID_WEIGHTS [1,2]",
            r"MODEL\.COMPRESSED_GRID_WEIGHTS has 2",
        ),
        ("MODEL.ARCH vit TEST.GRIDS [[1,7,7]]", r"TEST\.GRIDS .* is only for MODEL\.ARCH lookupvit"),
        ("MODEL.ARCH vit MODEL.TOKENS resize MODEL.COMPRESSED_GRID [9,7,7]", r"MODEL\.COMPRESSED_GRID: \[9, 7, 7\] is"),
        ("MODEL.TOKENS random", r"MODEL\.TOKENS random is only for MODEL\.ARCH vit"),
        (
            "MODEL.ARCH vit MODEL.ENCODER factorised MODEL.TOKENS merge MODEL.COMPRESSED_GRID [7,7]",
            r"MODEL\.TOKENS merge is only for",
        ),
        ("MODEL.POOL class", r"MODEL\.POOL class is only for MODEL\.ARCH vit"),
        ("MODEL.HEADS [lookup] MODEL.INFERENCE_HEAD compressed", r"MODEL\.INFERENCE_HEAD is compressed, .* not among"),
        ("MODEL.ARCH mvit MODEL.VARIANT S", r"MODEL\.VARIANT is 'S'; for MODEL\.ARCH mvit choose one of Ti, B$"),
        ("MODEL.VARIANT M", r"MODEL\.VARIANT is 'M'; for MODEL\.ARCH lookupvit choose one of Ti, S, B, L$"),
        (
            "MODEL.ARCH x3d MODEL.VARIANT M MODEL.DROP_PATH 0.1",
            r"MODEL\.DROP_PATH 0\.1 is only for MODEL\.ARCH",
        ),
        ("MODEL.FREEZE_ENCODER True MODEL.DROP_PATH 0.1", r"MODEL\.FREEZE_ENCODER needs MODEL\.DROP_PATH 0"),
        ("DISTILL.FEATURE_WEIGHT 1", r"DISTILL\.FEATURE_WEIGHT needs DISTILL\.TEACHER"),
        ("DISTILL.BLOCK_WEIGHT 1", r"DISTILL\.BLOCK_WEIGHT needs DISTILL\.TEACHER"),
        (
            "DISTILL.BLOCK_WEIGHT 1 DISTILL.TEACHER x.pt MODEL.DEPTH 1 MODEL.HEADS ['compressed'] "
            "MODEL.INFERENCE_HEAD compressed",
            r"DISTILL\.BLOCK_WEIGHT needs blocks that change lookup tokens; .* so raise MODEL\.DEPTH or add lookup",
        ),
        ("MODEL.COMPRESSED_GRID [4,7,15]", r"MODEL\.COMPRESSED_GRID"),
        ("DATA.NUM_FRAMES 15", r"DATA\.NUM_FRAMES is 15; it must be divisible by MODEL\.TUBELET's 2"),
        ("DATA.TRAIN_CROP_SIZE 220", r"DATA\.TRAIN_CROP_SIZE is 220; it must be divisible by MODEL\.TUBELET's 16"),
        ("MODEL.TUBELET [2,16,13]", r"DATA\.TRAIN_CROP_SIZE is 224; it must be divisible by MODEL\.TUBELET's 13"),
        ("DATA.TEST_CROP_SIZE 256", r"DATA\.TEST_CROP_SIZE is 256 and DATA\.TRAIN_CROP_SIZE 224"),
        ("DATA.TEST_SHORT_SIDE 200", r"DATA\.TEST_SHORT_SIDE is 200"),
        ("MODEL.DIM 100 MODEL.NUM_HEADS 3", r"MODEL\.DIM is 100; it must be divisible by MODEL\.NUM_HEADS 3"),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE [0.9,0.5]", r"DATA\.TRAIN_JITTER_SCALES_RELATIVE is \[0\.9, 0\.5\]"),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE [0,0.5]", r"DATA\.TRAIN_JITTER_SCALES_RELATIVE"),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE [0.5,1.5]", r"DATA\.TRAIN_JITTER_SCALES_RELATIVE"),
        ("DATA.TRAIN_JITTER_ASPECT_RELATIVE [2,1]", r"DATA\.TRAIN_JITTER_ASPECT_RELATIVE is \[2\.0, 1\.0\]"),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE [] DATA.TRAIN_JITTER_SCALES [200,320]", r"DATA\.TRAIN_JITTER_SCALES is"),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE [] DATA.TRAIN_JITTER_SCALES [320,256]", r"DATA\.TRAIN_JITTER_SCALES is"),
        ("TRAIN.ACCUMULATION_STEPS 3", r"TRAIN\.BATCH_SIZE is 64; .*ACCUMULATION_STEPS x AUG\.NUM_SAMPLE = 3"),
        ("TRAIN.ACCUMULATION_STEPS 4 AUG.NUM_SAMPLE 3", r"TRAIN\.BATCH_SIZE is 64; it must be divisible by .* = 12"),
        ("MIXUP.ENABLE True MIXUP.ALPHA 0 MIXUP.CUTMIX_ALPHA 0", r"MIXUP\.ENABLE is True with MIXUP\.ALPHA"),
        ("SOLVER.WARMUP_EPOCHS 30", r"SOLVER\.WARMUP_EPOCHS is 30\.0; it must be below SOLVER\.MAX_EPOCH 30"),
        ("TEST.METRICS [top5]", r"TEST\.METRICS is \['top5'\]; add top1"),
        ("TRAIN.BEST_METRIC nll", r"TRAIN\.BEST_METRIC is 'nll'; add it to TEST\.METRICS, or choose one of"),
        ("SOLVER.MAX_EPOCH 3", r"SOLVER\.WARMUP_EPOCHS is 5\.0; it must be below SOLVER\.MAX_EPOCH 3"),
    ],
)
def test_what_does_not_fit_together(overrides, message):
    with pytest.raises(UserError, match=f"^{message}"):
        load_config(None, overrides.split())


@pytest.mark.parametrize(
    "overrides",
    [
        "MODEL.ARCH vit MODEL.COMPRESSED_GRID [99,99,99]",  # the dense model has no compressed tokens
        "MODEL.COMPRESSED_GRID [8,14,14]",
        "MODEL.EXITS [1,11] MODEL.KEEP [1,1,0.5] MODEL.KEEPS [[1],[1,0.5,0.5,0.1]]",
        "DATA.TRAIN_JITTER_SCALES_RELATIVE [] DATA.TRAIN_JITTER_SCALES [224,224]",
        "MIXUP.ENABLE True MIXUP.ALPHA 0",
        "TRAIN.ACCUMULATION_STEPS 4 AUG.NUM_SAMPLE 2",
        "DATA.TEST_SHORT_SIDE 224",
        "SOLVER.MAX_EPOCH 1 SOLVER.WARMUP_EPOCHS 0",
        "MODEL.ARCH lookupvit MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [7,7] TEST.GRIDS [[3,3],[5,5]]",
        "MODEL.COMPRESSED_GRIDS [[4,7,7],[2,5,5]] MODEL.COMPRESSED_GRID_WEIGHTS [1,0.5]",
        "MODEL.ARCH x3d MODEL.VARIANT XS",
        "TEST.METRICS [nll,top1] TRAIN.BEST_METRIC nll",
        "AUG.RE_PROB 1 SOLVER.LAYER_DECAY 1 TEST.NUM_SPATIAL_CROPS 3",
    ],
)
def test_what_just_fits(overrides):
    load_config(None, overrides.split())


def test_token_grid():
    cfg = load_config(None, "DATA.NUM_FRAMES 12 MODEL.TUBELET [3,16,32] MODEL.COMPRESSED_GRID [4,7,7]".split())
    assert token_grid(cfg.MODEL, cfg.DATA) == (4, 14, 7)
