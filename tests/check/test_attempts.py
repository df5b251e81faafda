"""Answers as learners write them, right and wrong, and what the checks say to them: `attempts/NAME.txt`.

Plain text in sections, each begun by a line with `%%`:

    %% setup
    from collections import Counter          names that the chapter has at this place; once, at the top
    %% merge_step wrong: ties go to the pair met first
    #: before=WRONG                          what the check said before it was mended: named, generic, WRONG or passed
    #: after=named                           what it says now
    #: told=the pair met first               a part of the sentence that it says
    def merge_step(words):
        ...
    %% merge_step right: with a Counter
    def merge_step(words):
        ...

The title is `EXERCISE wrong|right: what was done`. The answer is the last function or class that the section defines, or
the names in a line `#: answer=NAME, NAME`. A wrong one must fail, with every `told` in its verdict; a right one must pass.
`python tests/check/test_attempts.py` prints the labels, counted for each exercise.
"""

import ast
import contextlib
import inspect
import io
import linecache
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from course import check

FOLDER = Path(__file__).with_name("attempts")
TITLE = re.compile(r"(\w+) (wrong|right): (.+)")


@dataclass
class Attempt:
    """One section of a file: `source` begins in line `line`."""

    file: Path
    line: int
    exercise: str
    right: bool
    title: str
    setup: str
    source: str = ""
    notes: dict[str, list[str]] = field(default_factory=dict)

    def answer(self):
        """What the section defines, its lines known to tracebacks as a notebook's are."""
        name = f"<{self.file.stem}.txt, line {self.line}>"
        space = {"__name__": "attempt"}
        exec(compile(self.setup, f"<{self.file.stem}.txt, setup>", "exec"), space)
        linecache.cache[name] = (
            len(self.source),
            None,
            self.source.splitlines(True),
            name,
        )
        exec(compile(self.source, name, "exec"), space)
        if "answer" in self.notes:
            return [space[name] for name in self.notes["answer"][0].split(", ")]
        body = ast.parse(self.source).body
        made = [x for x in body if isinstance(x, ast.FunctionDef | ast.ClassDef)]
        return [space[made[-1].name]]

    def verdict(self):
        """What the check says to it; what the answer prints is left aside."""
        with contextlib.redirect_stdout(io.StringIO()):
            return getattr(check, self.exercise)(*self.answer())


def read(file: Path) -> list[Attempt]:
    """The sections of a file."""
    setup, attempts = "", []
    into = None
    for number, line in enumerate(file.read_text().splitlines(True), 1):
        if line.startswith("%%"):
            title = line[2:].strip()
            into = title
            if title != "setup":
                match = TITLE.fullmatch(title)
                assert match, f"{file.name}:{number}: not a title: {title}"
                exercise, right, what = match.groups()
                attempts.append(
                    Attempt(file, number, exercise, right == "right", what, setup)
                )
        elif into == "setup":
            setup += line
        elif line.startswith("#: "):
            key, _, value = line[3:].strip().partition("=")
            assert key in ("before", "after", "told", "answer"), f"{file}:{number}"
            attempts[-1].notes.setdefault(key, []).append(value)
        elif into is not None:
            attempts[-1].source += line
    return attempts


ATTEMPTS = [a for file in sorted(FOLDER.glob("*.txt")) for a in read(file)]


@pytest.mark.parametrize(
    "attempt", ATTEMPTS, ids=lambda a: f"{a.file.stem}:{a.line} {a.exercise}"
)
def test_attempt(attempt):
    verdict = attempt.verdict()
    assert verdict.passed == attempt.right, f"{attempt.title}: {verdict}"
    for words in attempt.notes.get("told", []):
        assert words in verdict.message, f"{attempt.title}: {verdict}"


EXERCISES = sorted({a.exercise for a in ATTEMPTS})


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_stub_and_what_is_no_function_are_told_apart(exercise):
    def stub(*arguments, **keywords):
        raise NotImplementedError("your turn")

    judge = getattr(check, exercise)
    n = len(inspect.signature(judge).parameters)
    assert "still the stub" in judge(*[stub] * n).message
    verdict = judge(*[None] * n)
    assert not verdict.passed and "stumbles" not in verdict.message


def test_each_exercise_was_tried_often_enough():
    tried = Counter((a.exercise, a.right) for a in ATTEMPTS)
    few = {key: n for key, n in tried.items() if n < (5 if key[1] else 15)}
    assert not few, few


def table() -> str:
    """The labels before and after, counted for each exercise."""
    labels = ("named", "generic", "WRONG", "passed")
    lines = [f"{'':24}{'before':>33}{'after':>34}".rstrip()]
    head = "".join(f"{label:>8}" for label in labels)
    lines += [f"{'exercise':18}{'wrong':>6} {head}  {head}   right, refused"]
    for name in dict.fromkeys(a.exercise for a in ATTEMPTS):
        ours = [a for a in ATTEMPTS if a.exercise == name]
        wrong, right = [a for a in ours if not a.right], [a for a in ours if a.right]
        row = f"{name:18}{len(wrong):6} "
        for when in ("before", "after"):
            counts = Counter(a.notes.get(when, ["?"])[0] for a in wrong)
            row += "".join(f"{counts[label]:8}" for label in labels) + "  "
        refused = [
            sum(a.notes.get(when, [""])[0] == "refused" for a in right)
            for when in ("before", "after")
        ]
        lines.append(f"{row} {len(right):3}  {refused[0]} → {refused[1]}")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["verdicts"]:  # every verdict, to be judged by eye
        for one in ATTEMPTS:
            print(f"{one.file.stem}:{one.line} {one.exercise}: {one.title}")
            print(f"    {one.verdict()}\n")
    print(table())
