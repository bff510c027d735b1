"""A streaming LookupViT: steps are its unrolled graph, streams do not see each other, a state is a plain tensor."""

import io

import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.errors import UserError
from lookupvit_video.models.blocks import PLAIN
from lookupvit_video.models.build import build_model, model_spec
from lookupvit_video.models.complexity import measured_macs
from lookupvit_video.models.streaming.model import LONGEST, Memory, StreamingLookupViT
from tests.models.test_models import SMALL, STREAMING, small_model

LONG = "DATA.NUM_FRAMES 8"


def streaming(overrides=LONG, name="streaming"):
    """Return a model whose gates depend on what they see, as after training."""
    model = small_model(name, overrides).eval()
    with torch.no_grad():
        for gate in (model.memory.cut, model.memory.gate_new, model.memory.gate_state):
            gate.weight.normal_(std=0.2)
    return model


def video(batch=3, frames=8, seed=1):
    return torch.randn(batch, 3, frames, 32, 32, generator=torch.Generator().manual_seed(seed))


def steps(model, clip, state=None):
    """Logits (B, K) after each tubelet, and the last state."""
    state = model.start_state(len(clip)) if state is None else state
    answers = []
    with torch.no_grad():
        for tubelet in clip.split(2, dim=2):
            logits, state = model.step(tubelet, state)
            answers.append(logits)
    return answers, state


@pytest.mark.parametrize("name", ["streaming", "streaming rotary"])
def test_steps_are_the_unrolled_graph_of_training_and_test(name):
    model = streaming(name=name)
    answers, state = steps(model, video())
    with torch.no_grad():
        torch.testing.assert_close(model(video()), answers[-1], rtol=0, atol=1e-5)
        torch.testing.assert_close(model.forward_features(video()).compressed, state[:, :4], rtol=0, atol=1e-5)
        trained = model.train()(video(batch=1))  # one clip: no half of the batch to begin from
    torch.testing.assert_close(list(trained), steps(model.eval(), video(batch=1))[0], rtol=0, atol=1e-5)
    assert len({tuple(answer.flatten().tolist()) for answer in answers}) == len(answers) == 4


@pytest.mark.parametrize("batch", [4, 5])
def test_in_training_the_second_half_begins_where_the_first_ended_without_its_gradients(batch):
    model, clip = streaming().train(), video(batch)
    outputs = model(clip)
    assert [tuple(logits.shape) for logits in outputs] == [(batch, 5)] * 4
    model.eval()
    first, state = steps(model, clip[:2])
    begun = torch.cat([state, model.start_state(batch - 4)])
    second, _ = steps(model, clip[2:], begun)
    wanted = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    torch.testing.assert_close(list(outputs), wanted, rtol=0, atol=1e-5)
    clip.requires_grad_()
    model.train()(clip)[-1][2:].sum().backward()
    assert clip.grad[2:].abs().amax((1, 2, 3, 4)).gt(0).all()
    assert not clip.grad[:2].any()


def test_a_batch_of_streams_is_single_streams_and_starts_may_differ():
    model = streaming()
    together, states = steps(model, video())
    for i in range(3):
        alone, state = steps(model, video()[i : i + 1])
        torch.testing.assert_close(torch.cat(alone), torch.stack(together)[:, i], rtol=0, atol=1e-5)
        torch.testing.assert_close(state, states[i : i + 1], rtol=0, atol=1e-5)


def test_a_saved_state_continues_as_if_nothing_had_happened():
    model = streaming()
    whole, _ = steps(model, video())
    _, state = steps(model, video()[:, :, :4])
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    rest, _ = steps(model, video()[:, :, 4:], torch.load(file, weights_only=True))
    assert torch.equal(torch.stack(rest), torch.stack(whole[2:]))


def test_the_state_reaches_back_unless_it_is_reset():
    other = video()
    other[:, :, :2] = 0
    for reset in (False, True):
        model = streaming(f"{LONG} MODEL.STREAM_RESET {reset}")
        same = torch.allclose(steps(model, video())[0][-1], steps(model, other)[0][-1], rtol=0, atol=1e-6)
        assert same == reset


def test_any_number_of_tubelets_is_a_clip():
    model = streaming()
    assert model(video(frames=2)).shape == model(video(frames=20)).shape == (3, 5)
    with pytest.raises(UserError, match="a clip of 7 frames cannot be cut into tubelets of 2 frames"):
        model(video(frames=7))
    with pytest.raises(UserError, match="attention is of one tubelet at a time"):
        model.forward_features(video(), return_attention=True)


def test_a_fresh_memory_forgets_at_rates_from_one_step_to_the_longest():
    memory = Memory(4, PLAIN)
    state, new = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    with torch.no_grad():
        kept = memory.keep(state, new)
        share_D = ((kept - state) / (memory.norm_new(new) - state))[0, 0]
    torch.testing.assert_close(1 / share_D, LONGEST ** torch.tensor([0.125, 0.375, 0.625, 0.875]), rtol=1e-3, atol=0)


def test_a_memory_that_learned_cuts_empties_the_state_there():
    memory = Memory(4, PLAIN)
    state, before = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    seen = before.clone()
    seen[1] += 2  # a cut, of the second stream only
    with torch.no_grad():
        torch.testing.assert_close(
            memory.forget(state, seen, before), torch.full_like(state, 0.98201), rtol=0, atol=1e-4
        )
        memory.cut.weight.fill_(-2.0)
        left = memory.forget(state, seen, before)
    assert left[0].min() > 0.999
    assert left[1].max() < 0.001


@pytest.mark.parametrize("changes", [
    "", "MODEL.POOL attentive", "MODEL.LOOKUP_CONV [1,3,3]", "MODEL.DEPTH 3 MODEL.TOKENIZER convolutional",
])  # fmt: skip
def test_the_closed_form_is_what_is_measured(changes):
    cfg = load_config(None, [*SMALL, *STREAMING.split(), *LONG.split(), *changes.split()])
    spec, model = model_spec(cfg), build_model(cfg)
    assert isinstance(model, StreamingLookupViT)
    assert sum(spec.macs().values()) == measured_macs(model, video(batch=1))
    assert sum(spec.step_macs().values()) == measured_macs(_Step(model), video(batch=1, frames=2))


class _Step(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tubelet):
        return self.model.step(tubelet, self.model.start_state(len(tubelet)))


def test_a_step_of_the_base_model_costs_a_fifth_of_a_window():
    heads = "MODEL.HEADS ['compressed'] MODEL.INFERENCE_HEAD compressed".split()
    window = load_config(None, ["MODEL.COMPRESSED_GRID", "[2,7,7]", *heads])
    stream = load_config(None, ["MODEL.COMPRESSED_GRID", "[1,7,7]", *STREAMING.split()])
    ratio = sum(model_spec(window).macs().values()) / sum(model_spec(stream).step_macs().values())
    assert ratio == pytest.approx(5.314, abs=1e-3)


REFUSED = {
    "MODEL.ARCH vit": "MODEL.ARCH 'lookupvit'",
    "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [2,2]": "MODEL.ENCODER 'joint'",
    "MODEL.HEADS ['compressed','lookup']": r"MODEL.HEADS \['compressed'\]",
    "DATA.SAMPLING segments": "DATA.SAMPLING 'clip'",
    "TRAIN.TASK masked TEST.ENABLE False": "TRAIN.TASK 'classify'",
    "MODEL.COMPRESSED_GRIDS [[1,1,1]]": r"MODEL.COMPRESSED_GRIDS \[\]",
    "TEST.GRIDS [[1,1,1]]": r"TEST.GRIDS \[\]",
    "MODEL.EXITS [1]": r"MODEL.EXITS \[\]",
    "MODEL.KEEP [1,0.5]": r"MODEL.KEEP \[\]",
    "MODEL.KEEPS [[1,0.5]]": r"MODEL.KEEPS \[\]",
    "MODEL.ADAPTER lora": "MODEL.ADAPTER 'none'",
    "MODEL.FREEZE_ENCODER True": "MODEL.FREEZE_ENCODER False",
    "TRAIN.FINETUNE all": "TRAIN.FINETUNE 'none'",
    "DISTILL.TEACHER x.pt": "DISTILL.TEACHER ''",
    "TEST.ADAPT True": "TEST.ADAPT False",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_does_not_go_with_streaming_is_named_with_its_fix(overrides):
    with pytest.raises(UserError, match=f"^MODEL.STREAMING True: set {REFUSED[overrides]}: "):
        load_config(None, [*SMALL, *STREAMING.split(), *overrides.split()])


def test_grids_and_kernels_are_of_one_time_index():
    with pytest.raises(UserError, match=r"COMPRESSED_GRID: \[2, 2, 2\] is larger than .* \[1, 4, 4\]"):
        load_config(None, [*SMALL, *STREAMING.split(), "MODEL.COMPRESSED_GRID", "[2,2,2]"])
    with pytest.raises(UserError, match=r"LOOKUP_CONV is .* streaming, blocks see one time index"):
        load_config(None, [*SMALL, *STREAMING.split(), "MODEL.LOOKUP_CONV", "[3,3,3]"])
    with pytest.raises(UserError, match=r"^MODEL.STREAM_RESET is only for MODEL.STREAMING True$"):
        load_config(None, ["MODEL.STREAM_RESET", "True"])
