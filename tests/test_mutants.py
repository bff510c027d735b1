"""The list of faults is the same at every call, and each fault is one that Python can run."""

import ast

import pytest

from tests.mutants import MODULES, covering_files, edits_of, mutants_of, sample


def faults(text):
    source = text.encode()
    return {(source[: edit.start] + edit.new.encode() + source[edit.end :]).decode() for edit in edits_of(text)}


@pytest.mark.parametrize(
    ("sound", "faulty"),
    [
        ("x = a < b", "x = a <= b"),
        ("x = (a) - (b)", "x = (a) + (b)"),
        ("x = a and b", "x = a or b"),
        ("x = not a", "x = a"),
        ("x = 3", "x = 4"),
        ("x = 0.5", "x = 1.0"),
        ("x = True", "x = False"),
        ("if a:\n    pass", "if False:\n    pass"),
        ("if a:\n    pass", "if True:\n    pass"),
        ("f(a)", "pass"),
        ("x = f(a, b)", "x = f(a)"),
        ("x = f(a, b=c)", "x = f(a)"),
        ("x = y[order]", "x = y"),
        ("x += 1", "x = 1"),
        ("x = any(y)", "x = all(y)"),
        ("x = torch.bfloat16", "x = torch.float16"),
        ("x = 'ü' if a > b else c", "x = 'ü' if a >= b else c"),
    ],
)
def test_kinds_of_fault(sound, faulty):
    assert faulty in faults(sound)


@pytest.mark.parametrize("text", ["logger.info('x', 1)", "raise ValueError(1)", "def f(x: 'int | 3'):\n    '''1'''"])
def test_messages_and_annotations_are_left_alone(text):
    assert faults(text) == set()


def test_the_list_follows_from_the_seed_and_covers_150_faults():
    drawn = sample(list(MODULES), seed=0, per_module=6)
    assert drawn == sample(list(MODULES), seed=0, per_module=6) != sample(list(MODULES), seed=1, per_module=6)
    assert len(drawn) >= 150
    assert {mutant.module for mutant in drawn} == set(MODULES)
    for mutant in drawn:
        ast.parse(mutant.text)


def test_every_module_has_tests():
    assert [module for module in MODULES if not covering_files(module)] == []


def test_a_fault_is_named_by_its_line():
    mutant = next(m for m in mutants_of("files") if "os.fsync" in m.before and m.after == "pass")
    assert mutant.text.splitlines()[mutant.line - 1].strip() == "pass"
