"""The checks on the launch: each planted bug is caught with its own message."""

import pytest

from course import check


def total(gpus, name):
    hours, price = gpus[name]
    return hours * price


def choose_gpu_solution(gpus, max_dollars, max_hours):
    in_time = {
        name: hours * price
        for name, (hours, price) in gpus.items()
        if hours <= max_hours
    }
    if not in_time:
        raise ValueError(f"no GPU is done within {max_hours} hours")
    cheapest = min(in_time, key=in_time.get)
    if in_time[cheapest] > max_dollars:
        raise ValueError(
            f"the cheapest, {cheapest}, costs ${in_time[cheapest]}, above ${max_dollars}"
        )
    return cheapest


def strict(gpus, max_dollars, max_hours):
    return choose_gpu_solution(gpus, max_dollars - 0.01, max_hours)


def never_refuses(gpus, max_dollars, max_hours):
    in_time = [name for name in gpus if gpus[name][0] <= max_hours] or list(gpus)
    return min(in_time, key=lambda name: total(gpus, name))


def ignores_only_the_budget(gpus, max_dollars, max_hours):
    return min(
        (name for name in gpus if gpus[name][0] <= max_hours),
        key=lambda name: total(gpus, name),
        default="slow",
    )


def late_is_fine(gpus, max_dollars, max_hours):
    in_time = [name for name in gpus if gpus[name][0] <= max_hours]
    return choose_gpu_solution(gpus, max_dollars, max_hours if in_time else 99)


def says_nothing(gpus, max_dollars, max_hours):
    try:
        return choose_gpu_solution(gpus, max_dollars, max_hours)
    except ValueError:
        raise ValueError("too expensive") from None


def just_in_time_is_late(gpus, max_dollars, max_hours):
    return choose_gpu_solution(
        {name: each for name, each in gpus.items() if each[0] < max_hours},
        max_dollars,
        max_hours,
    )


def says_a_number_of_its_own(gpus, max_dollars, max_hours):
    try:
        return choose_gpu_solution(gpus, max_dollars, max_hours)
    except ValueError:
        raise ValueError("the cheapest costs $7.5") from None


def budget_for_the_cheapest_of_all(gpus, max_dollars, max_hours):
    cheapest = min(total(gpus, name) for name in gpus)
    if cheapest > max_dollars:
        raise ValueError(f"the cheapest costs ${cheapest}")
    return choose_gpu_solution(gpus, 1e9, max_hours)


CHOOSE_GPU_BUGS = {
    "A run of 3 hours is done within 3 hours": just_in_time_is_late,
    "of those that are in time": says_a_number_of_its_own,
    "a budget of $8 must refuse": budget_for_the_cheapest_of_all,
    "lowest price per hour": lambda g, d, h: min(g, key=lambda name: g[name][1]),
    "You chose the fastest": lambda g, d, h: min(g, key=lambda name: g[name][0]),
    "You chose 'small'": lambda g, d, h: "small",
    "only 'huge' is done": lambda g, d, h: min(g, key=lambda name: total(g, name)),
    "keeps within a budget": strict,
    "can be had for $5": ignores_only_the_budget,
    "done within an hour": late_is_fine,
    "what the cheapest choice costs": says_nothing,
    "return one of the names": lambda g, d, h: None,
}


def saved(folder):
    path = folder / "step.txt"
    return int(path.read_text()) if path.exists() else 0


def save(folder, step):
    (folder / "step.txt").write_text(str(step))


def attempt_solution(folder, steps, work, commit):
    for step in range(saved(folder), steps):
        work(step)
        save(folder, step + 1)
        commit()
    return steps


def from_zero(folder, steps, work, commit):
    for step in range(steps):
        work(step)
        save(folder, step + 1)
        commit()
    return steps


def never_commits(folder, steps, work, commit):
    for step in range(saved(folder), steps):
        work(step)
        save(folder, step + 1)
    return steps


def commits_first(folder, steps, work, commit):
    for step in range(saved(folder), steps):
        work(step)
        commit()
        save(folder, step + 1)
    return steps


def counts_first(folder, steps, work, commit):
    for step in range(saved(folder), steps):
        save(folder, step + 1)
        commit()
        work(step)
    return steps


def swallows(folder, steps, work, commit):
    try:
        return attempt_solution(folder, steps, work, commit)
    except KeyboardInterrupt:
        return saved(folder)


def one_more(folder, steps, work, commit):
    for step in range(saved(folder), steps + 1):
        work(step)
        save(folder, step + 1)
        commit()
    return steps


def from_one(folder, steps, work, commit):
    for step in range(saved(folder) + 1, steps + 1):
        work(step)
        save(folder, step)
        commit()
    return steps


def twice(folder, steps, work, commit):
    for step in range(saved(folder), steps):
        work(step)
        work(step)
        save(folder, step + 1)
        commit()
    return steps


def tries_again(folder, steps, work, commit):
    step = saved(folder)
    while step < steps:
        try:
            work(step)
        except KeyboardInterrupt:
            continue
        step += 1
        save(folder, step)
        commit()
    return steps


def never_ends(folder, steps, work, commit):
    step = saved(folder)
    while True:
        work(step)


def commits_finally(folder, steps, work, commit):
    try:
        for step in range(saved(folder), steps):
            work(step)
            save(folder, step + 1)
    finally:
        commit()
    return steps


def saves_in_except(folder, steps, work, commit):
    step = saved(folder)
    try:
        for step in range(saved(folder), steps):
            work(step)
    except KeyboardInterrupt:
        save(folder, step)
        commit()
        raise
    return steps


def commits_every(k):
    def attempt(folder, steps, work, commit):
        for step in range(saved(folder), steps):
            work(step)
            save(folder, step + 1)
            if (step + 1) % k == 0 or step + 1 == steps:
                commit()
        return steps

    return attempt


def saves_the_step(folder, steps, work, commit):
    for step in range(saved(folder), steps):
        work(step)
        save(folder, step)
        commit()
    return steps


def reads_text(folder, steps, work, commit):
    path = folder / "step.txt"
    for step in range(path.read_text() if path.exists() else 0, steps):
        work(step)
        save(folder, step + 1)
        commit()
    return steps


def idle(folder, steps, work, commit):
    return steps


def gives_up(folder, steps, work, commit):
    return steps if saved(folder) else attempt_solution(folder, steps, work, commit)


def forgets_to_answer(folder, steps, work, commit):
    attempt_solution(folder, steps, work, commit)


def restless(folder, steps, work, commit):
    if saved(folder) == steps:
        work(0)
    return attempt_solution(folder, steps, work, commit)


ATTEMPT_BUGS = {
    "starts at step 0": from_zero,
    "commit() was never called": never_commits,
    "commit after it": commits_first,
    "counted before it was done": counts_first,
    "as if all were well": swallows,
    "should do the steps from 4 to 5": one_more,
    "work(4) again and again": tries_again,
    "Does your loop end": never_ends,
    "in a finally or an except": commits_finally,
    "The first commit() came after the interruption": saves_in_except,
    "1 of 4 steps had been committed": commits_every(3),
    "2 of 4 steps had been committed": commits_every(2),
    "After work(i) the count is i + 1": saves_the_step,
    "A file holds text": reads_text,
    "begin with work(0)": from_one,
    "once each": twice,
    "No step was done": idle,
    "still to do": gives_up,
    "returned None": forgets_to_answer,
    "nothing left to do": restless,
}

GALLERY = [
    *((check.choose_gpu, message, bug) for message, bug in CHOOSE_GPU_BUGS.items()),
    *((check.attempt, message, bug) for message, bug in ATTEMPT_BUGS.items()),
]


@pytest.mark.parametrize(
    ("exercise", "message", "bug"), GALLERY, ids=[message for _, message, _ in GALLERY]
)
def test_planted_bug_is_named(exercise, message, bug):
    verdict = exercise(bug)
    assert not verdict.passed
    assert message in verdict.message


@pytest.mark.parametrize("exercise", [check.choose_gpu, check.attempt])
def test_stub_is_told_apart(exercise):
    def stub(*arguments):
        raise NotImplementedError("your turn")

    assert "still the stub" in exercise(stub).message


@pytest.mark.parametrize(
    ("exercise", "solution"),
    [(check.choose_gpu, choose_gpu_solution), (check.attempt, attempt_solution)],
)
def test_solution_passes(exercise, solution):
    assert exercise(solution).passed, exercise(solution).message
