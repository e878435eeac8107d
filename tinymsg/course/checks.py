"""Exercise checks: the learner's function is held against the library's own, so there is no second solution."""

import textwrap
from collections.abc import Callable

import torch
from torch import Tensor


def check(mine: Callable, reference: Callable, *inputs: tuple, hints: dict[str, Callable] | None = None) -> bool:
    """Compare the learner's function with the library's, the solution, on each tuple of arguments.

    hints: {message: a function that makes the mistake which the message explains}.
    Returns: True if it matches, False if it raises NotImplementedError: not attempted yet, and the notebook runs on.
    Raises: AssertionError that says on which input, by how much, and, for a known mistake, why.
    """
    for number, arguments in enumerate(inputs, start=1):
        expected = reference(*arguments)
        try:
            actual = mine(*arguments)
        except NotImplementedError:
            print(f"○ {mine.__name__}: not attempted yet")
            return False
        if problem := _difference(actual, expected):
            mistakes = (hints or {}).items()
            known = [message for message, mistake in mistakes if not _difference(actual, mistake(*arguments))]
            raise AssertionError("\n".join([f"{mine.__name__}, input {number} of {len(inputs)}: {problem}", *known]))
    owner = "tinymsg's " if (reference.__module__ or "").startswith("tinymsg") else ""  # else the lesson's own
    print(f"✓ {mine.__name__} does what {owner}{reference.__name__} does, on {len(inputs)} input(s)")
    return True


def check_value(
    mine: float | None,
    expected: float,
    tolerance: float,
    name: str = "your answer",
    hints: dict[str, float] | None = None,
) -> bool:
    """Compare a number the learner worked out. None counts as not attempted. Raises AssertionError if it is off.

    hints: {message: the wrong value which the message explains}.
    """
    if mine is None:
        print(f"○ {name}: not attempted yet")
        return False
    if abs(mine - expected) > tolerance:
        direction = "too large" if mine > expected else "too small"
        known = [message for message, value in (hints or {}).items() if abs(mine - value) <= tolerance]
        raise AssertionError("\n".join([f"{name}: {mine:g} is {direction} (allowed difference {tolerance:g})", *known]))
    print(f"✓ {name}: {mine:g} (here: {expected:.4g})")
    return True


def check_choice(mine, expected, mistakes: dict, name: str = "your answer") -> bool:
    """Compare an answer chosen from a few. mistakes: {wrong answer: why it is wrong}. None counts as not attempted."""
    if mine is not None and mine != expected:
        why = mistakes.get(mine, f"choose one of {', '.join(map(str, sorted([expected, *mistakes])))}")
        raise AssertionError(f"{name}: not {mine}: {why}")
    print(f"○ {name}: not attempted yet" if mine is None else f"✓ {name}: {mine}")
    return mine is not None


def reveal(guess, answer, explanation: str) -> None:
    """Hold a prediction, made before the cell ran, against what happened."""
    verdict = "as you predicted" if guess == answer else f"you predicted {guess}"
    said = f"What happened: {answer} ({verdict}). {explanation}"
    if guess is None:
        said = f"No prediction was made. What happened: {answer}. {explanation}"
    # GitHub does not wrap what is printed
    print(textwrap.fill(said, 92, break_long_words=False, break_on_hyphens=False))


def _difference(actual, expected) -> str:
    """Empty if equal within float32 rounding, else one sentence."""
    if isinstance(expected, (tuple, list)):
        if not isinstance(actual, (tuple, list)) or len(actual) != len(expected):
            return f"expected {len(expected)} values, got {type(actual).__name__}"
        return next(filter(None, map(_difference, actual, expected)), "")
    if actual is None:
        return "the function returned nothing; is a `return` missing?"
    if isinstance(expected, Tensor) and not isinstance(actual, Tensor):
        return f"expected a tensor, got {type(actual).__name__}"
    actual, expected = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    if actual.shape != expected.shape:
        return f"expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
    if torch.allclose(actual, expected, rtol=1e-4, atol=1e-5):
        return ""
    return f"the result differs by up to {(actual - expected).abs().max():.3g}"
