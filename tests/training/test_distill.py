"""The distillation loss beside plain arithmetic, what a teacher must be, and whole runs with one."""

import itertools
import math

import pytest
import torch
import transformers

from lookupvit_video.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.log import read_json_lines
from lookupvit_video.models.build import build_model
from lookupvit_video.models.contract import Features
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.models.vit import ViT
from lookupvit_video.training import distill as distill_module
from lookupvit_video.training import run as run_module
from lookupvit_video.training import step as step_module
from lookupvit_video.training.distill import Answer, Teacher, distill, load_teacher
from tests.models.test_models import SMALL
from tests.models.vits import saved
from tests.small import run_net, settings

CPU = torch.device("cpu")
CLASSES = ["a", "b", "c", "d", "e"]
FACTORISED = "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [2,2]"


def config(overrides=""):
    return load_config(None, [*SMALL, *overrides.split()])


def mixed_by(cfg, *arguments):
    weights = cfg.DISTILL
    return distill(*arguments, weight=weights.WEIGHT, temperature=weights.TEMPERATURE,
                   feature_weight=weights.FEATURE_WEIGHT, block_weight=weights.BLOCK_WEIGHT)  # fmt: skip


def softmax(values, temperature):
    shares = [math.exp(value / temperature) for value in values]
    return [share / sum(shares) for share in shares]


def divergence(teacher, student, temperature):
    """KL(teacher || student) of two rows of logits."""
    pairs = zip(softmax(teacher, temperature), softmax(student, temperature), strict=True)
    return sum(p * math.log(p / q) for p, q in pairs)


def example():
    torch.manual_seed(0)
    logits = tuple(torch.randn(4, 5, requires_grad=True) for _ in range(2))
    return logits, torch.randn(4, 5), torch.tensor([True, False, True, True])


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.5), (3.0, 0.25), (0.5, 1.0), (2.0, 0.0)])
def test_soft_targets_are_mixed_in(temperature, weight):
    logits, answer, valid = example()
    cfg = config(f"DISTILL.TEMPERATURE {temperature} DISTILL.WEIGHT {weight}")
    distances = [
        divergence(answer[clip].tolist(), head[clip].tolist(), temperature) for head in logits for clip in (0, 2, 3)
    ]
    expected = (1 - weight) * 1.75 + weight * temperature**2 * sum(distances) / 8
    found = mixed_by(cfg, torch.tensor(1.75), logits, None, Answer(answer, None, None), valid)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_classes_of_several_labels_are_compared_each_by_its_sigmoid():
    logits, answer, valid = example()
    weights = {"weight": 0.25, "temperature": 3.0, "feature_weight": 0.0}
    expected = 0.75 * 1.75
    for head, clip, label in itertools.product(logits, (0, 2, 3), range(5)):
        p, q = (1 / (1 + math.exp(-value[clip, label] / 3)) for value in (answer, head.detach()))
        distance = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        expected += 0.25 * 9 * distance / 5 / 8  # classes, clips and heads
    given = (torch.tensor(1.75), logits, None, Answer(answer, None, None), valid)
    assert distill(*given, **weights, multi_label=True).item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(distill(*given, **weights), distill(*given, **weights, multi_label=False))


def test_the_teachers_own_logits_leave_nothing_to_learn():
    _, answer, valid = example()
    logits = tuple(answer.clone().requires_grad_() for _ in range(2))
    cfg = config("DISTILL.TEMPERATURE 2.0 DISTILL.WEIGHT 1.0")
    on_labels = torch.nn.functional.cross_entropy(logits[0], torch.tensor([0, 1, 2, 3]))
    total = mixed_by(cfg, on_labels, logits, None, Answer(answer, None, None), valid)
    total.backward()
    assert total.item() == pytest.approx(0, abs=1e-6)
    for head in logits:
        torch.testing.assert_close(head.grad, torch.zeros(4, 5), rtol=0, atol=1e-7)


def test_answers_in_16_bits_are_compared_in_32():
    logits, answer, valid = example()
    tokens, compressed = torch.randn(4, 8, 6).bfloat16(), torch.randn(4, 2, 6).bfloat16()
    cfg = config("DISTILL.TEMPERATURE 3.0 DISTILL.WEIGHT 0.5 DISTILL.FEATURE_WEIGHT 0.7 DISTILL.TEACHER x.pt")
    losses = []
    for kind in (torch.Tensor.bfloat16, torch.Tensor.float):
        features = Features(torch.zeros(4, 8, 6), (2, 2, 2), None, kind(compressed), (2, 1, 1))
        heads = [kind(head.detach().bfloat16()) for head in logits]
        theirs = Answer(kind(answer.bfloat16()), kind(tokens), (2, 2, 2))
        losses.append(mixed_by(cfg, torch.tensor(1.75), heads, features, theirs, valid))
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)


def test_tokens_are_compared_only_where_both_have_them():
    logits, answer, valid = example()
    cfg = config("DISTILL.FEATURE_WEIGHT 0.7 DISTILL.TEACHER x.pt")
    tokens = torch.randn(4, 8, 6)
    features = Features(tokens, (2, 2, 2), None, torch.randn(4, 2, 6), (2, 1, 1))
    without = mixed_by(cfg, torch.tensor(1.0), logits, None, Answer(answer, None, None), valid)
    for own, theirs in ((None, Answer(answer, tokens, (2, 2, 2))), (features, Answer(answer, None, None)),
                        (features, Answer(answer, tokens, None))):  # fmt: skip
        assert torch.equal(mixed_by(cfg, torch.tensor(1.0), logits, own, theirs, valid), without)
    assert mixed_by(cfg, torch.tensor(1.0), logits, features, Answer(answer, tokens, (2, 2, 2)), valid) > without


def test_where_no_clip_is_valid_nothing_is_learned():
    logits, answer, _ = example()
    mixed_by(config(), torch.tensor(0.0), logits, None, Answer(answer, None, None), torch.zeros(4).bool()).backward()
    assert all(head.grad.eq(0).all() for head in logits)


def normalised(rows):
    mean = sum(rows) / len(rows)
    spread = math.sqrt(sum((value - mean) ** 2 for value in rows) / len(rows) + 1e-5)
    return [(value - mean) / spread for value in rows]


def test_compressed_tokens_are_compared_with_the_teachers_resized_ones():
    logits, answer, valid = example()
    tokens, compressed = torch.randn(4, 8, 6), torch.randn(4, 2, 6, requires_grad=True)  # 2 x 2 x 2 and 2 x 1 x 1
    features = Features(torch.zeros(4, 8, 6), (2, 2, 2), None, compressed, (2, 1, 1))
    errors = []
    for clip in (0, 2, 3):
        for time in range(2):
            target = normalised(tokens[clip, 4 * time : 4 * time + 4].mean(0).tolist())
            own = normalised(compressed[clip, time].tolist())
            errors += [(a - b) ** 2 for a, b in zip(own, target, strict=True)]
    loss = torch.tensor(1.75)
    parts = {}
    for weight in (0.0, 0.7):
        cfg = config(f"DISTILL.WEIGHT 0.25 DISTILL.FEATURE_WEIGHT {weight} DISTILL.TEACHER x.pt")
        parts[weight] = mixed_by(cfg, loss, logits, features, Answer(answer, tokens, (2, 2, 2)), valid)
    expected = 0.7 * sum(errors) / len(errors) * 3 / 4
    assert (parts[0.7] - parts[0.0]).item() == pytest.approx(expected, rel=1e-4)
    parts[0.7].backward()
    assert compressed.grad[1].eq(0).all()
    assert compressed.grad[[0, 2, 3]].ne(0).any((1, 2)).all()


def test_lookup_tokens_are_compared_with_the_teachers_after_the_same_block():
    """Two blocks of the teacher's three; the second works on half of the tokens, in groups of one time index."""
    logits, answer, valid = example()
    tokens = [torch.randn(4, 8, 6, requires_grad=True), torch.randn(8, 2, 6, requires_grad=True)]
    kept = torch.tensor([[0, 3], [1, 2]] * 4)  # of four tokens a time index
    theirs = [torch.randn(4, 8, 6), torch.randn(8, 4, 6), torch.randn(4, 8, 6)]
    features = Features(torch.zeros(4, 8, 6), (2, 2, 2), by_block=[(tokens[0], None), (tokens[1], kept)])
    errors = [[], []]
    for clip in (0, 2, 3):
        for place in range(8):
            own, target = (normalised(part[clip, place].tolist()) for part in (tokens[0], theirs[0]))
            errors[0] += [(a - b) ** 2 for a, b in zip(own, target, strict=True)]
        for group in (2 * clip, 2 * clip + 1):
            for number, place in enumerate(kept[group].tolist()):
                own, target = (
                    normalised(part.tolist()) for part in (tokens[1][group, number], theirs[1][group, place])
                )
                errors[1] += [(a - b) ** 2 for a, b in zip(own, target, strict=True)]
    parts = {}
    for weight in (0.0, 0.7):
        cfg = config(f"DISTILL.WEIGHT 0.25 DISTILL.BLOCK_WEIGHT {weight} DISTILL.TEACHER x.pt")
        found = Answer(answer, None, None, theirs)
        parts[weight] = mixed_by(cfg, torch.tensor(1.75), logits, features, found, valid)
    expected = 0.7 * sum(sum(part) / len(part) for part in errors) / 2 * 3 / 4
    assert (parts[0.7] - parts[0.0]).item() == pytest.approx(expected, rel=1e-4)
    parts[0.7].backward()
    assert tokens[0].grad[1].eq(0).all()
    assert tokens[1].grad[[2, 3]].eq(0).all()
    assert tokens[1].grad[[0, 1, 4, 5, 6, 7]].ne(0).any((1, 2)).all()


def test_an_exit_before_any_block_that_changes_lookup_tokens_learns_from_the_rest():
    logits, answer, valid = example()
    features, theirs = Features(torch.zeros(4, 8, 6), (2, 2, 2)), Answer(answer, None, None, [torch.randn(4, 8, 6)])
    cfg = config("DISTILL.BLOCK_WEIGHT 1 DISTILL.TEACHER x.pt")
    alone = mixed_by(cfg, torch.tensor(1.0), logits, None, Answer(answer, None, None), valid)
    assert torch.equal(mixed_by(cfg, torch.tensor(1.0), logits, features, theirs, valid), alone)


# The teacher ------------------------------------------------------------------------------------------------------


def write_teacher(folder, overrides=""):
    cfg = config(overrides)
    torch.manual_seed(2)
    save_checkpoint(folder / "teacher.pt", cfg=cfg, classes=CLASSES, model=build_model(cfg))
    return f"DISTILL.TEACHER {folder / 'teacher.pt'} "


@pytest.mark.parametrize(("overrides", "grid"), [
    ("MODEL.ARCH vit", (2, 4, 4)), ("MODEL.ARCH vit MODEL.POOL class", (2, 4, 4)), (FACTORISED, (2, 4, 4)),
    ("MODEL.ARCH vit MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [2,2] MODEL.DEPTH 1", (2, 4, 4)),
    ("MODEL.TUBELET [1,4,4]", (4, 8, 8)), ("MODEL.DROP_PATH 0.9 MODEL.DROPOUT_RATE 0.9", (2, 4, 4)),
])  # fmt: skip
def test_a_teacher_answers_with_logits_and_all_its_tokens(tmp_path, overrides, grid):
    cfg = config(write_teacher(tmp_path, overrides) + "DISTILL.FEATURE_WEIGHT 1")
    teacher = load_teacher(cfg, CLASSES, CPU)
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    clips = torch.randn(2, 3, 4, 32, 32)
    answer = teacher.answer(clips)
    assert not answer.logits.requires_grad
    with torch.inference_mode():  # other kernels than with gradients
        assert torch.equal(answer.logits, teacher.model(clips))
        features = teacher.model.forward_features(clips)
    assert answer.grid == grid
    assert answer.tokens.shape == (2, math.prod(grid), 24)
    assert torch.equal(answer.tokens, features.tokens)
    logits_only = load_teacher(config(f"DISTILL.TEACHER {tmp_path / 'teacher.pt'}"), CLASSES, CPU).answer(clips)
    assert torch.equal(logits_only.logits, answer.logits)
    assert (logits_only.tokens, logits_only.grid) == (None, None)


@pytest.mark.parametrize(("overrides", "shape"), [
    ("", (2, 32, 24)), ("MODEL.POOL class MODEL.REGISTERS 3", (2, 32, 24)),
    ("MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [2,2]", (4, 16, 24)),
])  # fmt: skip
@pytest.mark.parametrize("feature_weight", [0, 1])
def test_a_teacher_answers_with_its_tokens_after_each_block(tmp_path, overrides, shape, feature_weight):
    weights = f"DISTILL.BLOCK_WEIGHT 1 DISTILL.FEATURE_WEIGHT {feature_weight}"
    teacher = load_teacher(config(write_teacher(tmp_path, f"MODEL.ARCH vit {overrides}") + weights), CLASSES, CPU)
    after, clips = [], torch.randn(2, 3, 4, 32, 32)
    for block in teacher.model.blocks:
        block.register_forward_hook(lambda block, given, tokens: after.append(tokens))
    answer = teacher.answer(clips)
    assert (answer.tokens is None) == (answer.grid is None) == (feature_weight == 0)
    assert [tuple(tokens.shape) for tokens in answer.by_block] == [shape] * 2
    for tokens, whole in zip(answer.by_block, after, strict=True):
        assert torch.equal(tokens, whole[:, -shape[1] :])  # the class token and registers come first
    with torch.no_grad():
        assert torch.equal(answer.logits, teacher.model(clips))


@pytest.mark.parametrize("overrides", [
    "MODEL.ARCH mvit MODEL.VARIANT Ti", "MODEL.ARCH x3d MODEL.VARIANT XS", "MODEL.ARCH vit MODEL.TOKENS merge",
    "MODEL.ARCH vit MODEL.DIM 48",
])  # fmt: skip
def test_logits_can_be_learned_from_any_model(tmp_path, overrides):
    teacher = load_teacher(config(write_teacher(tmp_path, overrides)), CLASSES, CPU)
    assert teacher.answer(torch.randn(2, 3, 4, 32, 32)).logits.shape == (2, 5)


@pytest.mark.parametrize(("theirs", "own", "message"), [
    ("DATA.NUM_FRAMES 8", "", r"its DATA\.NUM_FRAMES is 8, the student's 4; both see the same clips"),
    ("DATA.TRAIN_CROP_SIZE 48 DATA.TEST_CROP_SIZE 48", "", r"its DATA\.TRAIN_CROP_SIZE is 48, the student's 32"),
    ("DATA.MEAN [0.5,0.5,0.5]", "", r"its DATA\.MEAN is \[0\.5, 0\.5, 0\.5\], the student's \[0\.485"),
    ("DATA.STD [0.5,0.5,0.5]", "", r"its DATA\.STD is"),
    ("MODEL.DIM 48", "DISTILL.FEATURE_WEIGHT 1", "the teacher's width is 48, the student's 24"),
    ("MODEL.ARCH vit MODEL.TOKENS random", "DISTILL.FEATURE_WEIGHT 1", "must keep all its tokens"),
    ("MODEL.ARCH vit MODEL.TOKENS merge", "DISTILL.FEATURE_WEIGHT 1", "must keep all its tokens"),
    ("MODEL.ARCH vit MODEL.TOKENS resize", "DISTILL.FEATURE_WEIGHT 1", "must keep all its tokens"),
    ("MODEL.ARCH x3d MODEL.VARIANT XS", "DISTILL.FEATURE_WEIGHT 1", "must keep all its tokens"),
    ("MODEL.ARCH mvit MODEL.VARIANT Ti", "DISTILL.FEATURE_WEIGHT 1", "must keep all its tokens"),
    ("MODEL.TUBELET [4,16,16] MODEL.COMPRESSED_GRID [1,1,1]", "DISTILL.FEATURE_WEIGHT 1 MODEL.COMPRESSED_GRID [1,3,2]",
     r"token grid \(1, 2, 2\) is smaller than \(1, 3, 2\)"),
    ("MODEL.TUBELET [4,8,8]", "DISTILL.FEATURE_WEIGHT 1 MODEL.COMPRESSED_GRIDS [[1,2,2],[2,2,2]]",
     r"token grid \(1, 4, 4\) is smaller than \(2, 2, 2\)"),
    ("MODEL.TUBELET [4,8,8]", f"DISTILL.FEATURE_WEIGHT 1 {FACTORISED}",
     r"token grid \(1, 4, 4\) is smaller than \(2, 2, 2\)"),
    ("", "DISTILL.BLOCK_WEIGHT 1", r"BLOCK_WEIGHT: the teacher must be a dense ViT, it is MODEL\.ARCH lookupvit"),
    ("MODEL.ARCH vit MODEL.DIM 48", "DISTILL.BLOCK_WEIGHT 1", "teacher's width is 48, the student's 24"),
    ("MODEL.ARCH vit MODEL.TOKENS merge", "DISTILL.BLOCK_WEIGHT 1", "BLOCK_WEIGHT: the teacher must keep"),
    ("MODEL.ARCH mvit MODEL.VARIANT Ti", "DISTILL.BLOCK_WEIGHT 1", "BLOCK_WEIGHT: the teacher must keep"),
    ("MODEL.ARCH vit MODEL.DEPTH 3", "DISTILL.BLOCK_WEIGHT 1", r"3 blocks, the student 2; set MODEL\.DEPTH alike"),
    ("MODEL.ARCH vit MODEL.TUBELET [1,8,8]", "DISTILL.BLOCK_WEIGHT 1",
     r"token grid is \(4, 4, 4\), the student's \(2, 4, 4\); set MODEL\.TUBELET alike"),
])  # fmt: skip
def test_a_teacher_that_does_not_fit_is_refused(tmp_path, theirs, own, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_teacher(config(write_teacher(tmp_path, theirs) + own), CLASSES, CPU)
    assert "DISTILL." in str(caught.value)


@pytest.mark.parametrize(("theirs", "own"), [
    ("MODEL.TUBELET [4,16,16] MODEL.COMPRESSED_GRID [1,1,1]", "MODEL.COMPRESSED_GRID [1,2,2]"),
    ("", "MODEL.COMPRESSED_GRIDS [[2,4,4],[1,2,2]]"),
    ("", "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [4,4]"),
])  # fmt: skip
def test_a_teachers_grid_may_be_as_small_as_the_compressed_one(tmp_path, theirs, own):
    cfg = config(write_teacher(tmp_path, theirs) + f"DISTILL.FEATURE_WEIGHT 0.5 {own}")
    assert load_teacher(cfg, CLASSES, CPU).with_tokens


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    cfg = config(write_teacher(tmp_path))
    with pytest.raises(ValueError, match=r"DISTILL\.TEACHER .*teacher\.pt: its classes are not those of the data"):
        load_teacher(cfg, CLASSES[::-1], CPU)


# Runs -------------------------------------------------------------------------------------------------------------


def run(data, folder, **changes):
    options = {"SOLVER__MAX_EPOCH": 1, "SOLVER__WARMUP_EPOCHS": 0, "TEST__ENABLE": False}
    done = run_net(settings(data, folder, **options, **changes))
    assert done.returncode == 0, done.stderr
    return load_checkpoint(folder / "model.pt"), read_json_lines(folder / "log.jsonl", "train")


def test_a_weight_of_nothing_changes_nothing(data, vit, tmp_path):
    alone, _ = run(data, tmp_path / "alone")
    beside, _ = run(data, tmp_path / "beside", DISTILL__TEACHER=vit / "model.pt", DISTILL__WEIGHT=0)
    assert all(torch.equal(value, beside.model[name]) for name, value in alone.model.items())


@pytest.mark.parametrize("feature_weight", [0, 0.5])
def test_a_run_with_a_teacher(data, vit, tmp_path, monkeypatch, feature_weight):
    """The teacher sees the very clips of the student, stays as it is, and the loss is what ``distill`` says."""
    teachers, clips_seen, losses = [], {"student": [], "teacher": []}, []
    plain_load, plain_answer, plain_distill = run_module.load_teacher, Teacher.answer, step_module.distill
    plain_forward = LookupViT.forward

    def load(*arguments):
        teachers.append(plain_load(*arguments))
        return teachers[-1]

    def answer(teacher, clips):
        clips_seen["teacher"].append(clips)
        assert not teacher.model.training
        return plain_answer(teacher, clips)

    def forward(model, clips, *arguments, **options):
        if model.training:
            clips_seen["student"].append(clips)
        return plain_forward(model, clips, *arguments, **options)

    def mixed(loss, logits, features, found, valid, **weights):
        assert (features is None) == (found.tokens is None) == (feature_weight == 0)
        assert len(logits) == 2
        losses.append(plain_distill(loss, logits, features, found, valid, **weights))
        return losses[-1]

    monkeypatch.setattr(run_module, "load_teacher", load)
    monkeypatch.setattr(Teacher, "answer", answer)
    monkeypatch.setattr(LookupViT, "forward", forward)
    monkeypatch.setattr(step_module, "distill", mixed)
    student, log = run(data, tmp_path, DISTILL__TEACHER=vit / "model.pt", DISTILL__WEIGHT=0.7,
                       DISTILL__FEATURE_WEIGHT=feature_weight, MIXUP__ENABLE=True, AUG__NUM_SAMPLE=2)  # fmt: skip
    assert len(clips_seen["teacher"]) == len(clips_seen["student"]) == len(log) == 4
    for own, theirs in zip(clips_seen["student"], clips_seen["teacher"], strict=True):
        assert torch.equal(own, theirs)
    assert [entry["loss"] for entry in log] == pytest.approx([loss.item() for loss in losses], rel=1e-4)
    (teacher,) = teachers
    source = load_checkpoint(vit / "model.pt").model
    assert all(torch.equal(value, source[name]) for name, value in teacher.model.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert student.model.keys() == build_model(student.config).state_dict().keys()  # the teacher is not in it


def test_tokens_come_nearer_to_the_teachers(data, vit, tmp_path, monkeypatch):
    """With exits and kept tokens, whatever the budget of the step."""
    errors, plain = [], distill_module._distance
    monkeypatch.setattr(distill_module, "_distance", lambda *pair: errors.append(plain(*pair)) or errors[-1])
    options = {"MODEL__EXITS": "[1]", "MODEL__KEEPS": "[[1],[1,0.5]]", "DISTILL__BLOCK_WEIGHT": 10,
               "SOLVER__BASE_LR": 3e-3, "SOLVER__MAX_EPOCH": 8, "TEST__ENABLE": False}  # fmt: skip
    done = run_net(settings(data, tmp_path, DISTILL__TEACHER=vit / "model.pt", **options))
    assert done.returncode == 0, done.stderr
    means = [error.mean().item() for error in errors]
    assert sum(means[-6:]) < 0.7 * sum(means[:6])


def test_a_lookupvit_teaches_a_dense_vit(data, tmp_path):
    run(data, tmp_path / "teacher")
    _, log = run(data, tmp_path / "student", MODEL__ARCH="vit", DISTILL__WEIGHT=1,
                 DISTILL__TEACHER=tmp_path / "teacher" / "model.pt")  # fmt: skip
    assert len(log) == 2
    assert all(0 < entry["loss"] < 0.2 for entry in log)  # both are near even answers; from the labels it is log 3


def test_others_weights_teach_by_their_tokens(tmp_path):
    """With their own pixels and positions, whatever the student's are."""
    config_of = transformers.SiglipVisionConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=256, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    theirs = transformers.SiglipVisionModel(config_of).eval()
    path = saved(tmp_path / "siglip.safetensors", theirs)
    sizes = "MODEL.DIM 64 MODEL.NUM_HEADS 2 DISTILL.FEATURE_WEIGHT 1"
    cfg = config(f"{sizes} DISTILL.WEIGHT 0 DISTILL.TEACHER {path}")
    teacher = load_teacher(cfg, CLASSES, CPU)
    raw = torch.rand(2, 3, 4, 32, 32)
    mean, std = (torch.tensor(part).view(1, 3, 1, 1, 1) for part in (cfg.DATA.MEAN, cfg.DATA.STD))
    answer = teacher.answer((raw - mean) / std)
    assert answer.logits is None
    assert answer.grid == (4, 4, 4)
    with torch.no_grad():
        images = ((raw - 0.5) / 0.5).transpose(1, 2).flatten(0, 1)
        expected = theirs(images).last_hidden_state.reshape(2, 64, 64)
        assert isinstance(teacher.model, ViT)
        torch.testing.assert_close(teacher.model.frame_norm(answer.tokens), expected, rtol=1e-4, atol=1e-4)
    logits, _, valid = example()
    student = Features(torch.zeros(4, 16, 64), (2, 2, 4), compressed=torch.randn(4, 4, 64), compressed_grid=(1, 2, 2))
    four = Answer(None, answer.tokens.repeat(2, 1, 1), answer.grid)
    assert mixed_by(cfg, torch.tensor(1.0), logits, None, four, valid) == 1.0
    assert mixed_by(cfg, torch.tensor(1.0), logits, student, four, valid) > 1.5
    tubelet = "MODEL.TUBELET [1,8,8] DISTILL.FEATURE_WEIGHT 0 DISTILL.BLOCK_WEIGHT 1 DISTILL.WEIGHT 0"
    by_block = load_teacher(config(f"{sizes} {tubelet} DISTILL.TEACHER {path}"), CLASSES, CPU).answer(
        (raw - mean) / std
    )
    assert (by_block.logits, by_block.tokens) == (None, None)
    assert torch.equal(by_block.by_block[-1].reshape(2, 64, 64), answer.tokens)
    with pytest.raises(ValueError, match=r"do not know the classes; set DISTILL\.WEIGHT 0"):
        load_teacher(config(f"{sizes} DISTILL.TEACHER {path}"), CLASSES, CPU)
    with pytest.raises(ValueError, match="the teacher's width is 64, the student's 24"):
        load_teacher(config(f"DISTILL.FEATURE_WEIGHT 1 DISTILL.WEIGHT 0 DISTILL.TEACHER {path}"), CLASSES, CPU)
