"""The floor: every computed quantity against brute force on a small grammar, and against Monte Carlo on the real one."""

import collections
import itertools
import math
import re
import statistics
import time

import pytest

from slm.data import floor, stories
from slm.data.grammar import Grammar
from slm.data.stories import STORIES, zipf
from slm.data.tokenizer import END_OF_TEXT, Tokenizer, get_tokenizer, train_bpe

SMALL = {
    "STORY": [
        (
            3,
            "{pet=PET}{OPENING}{friend=PET-pet} {pet} likes{VERY} {friend} and {friend.his} {toy=TOY}{toy}.{END} Bye, {toy}!",
        ),
        (1, "{PLAIN}"),
    ],
    "PLAIN": ["A{VERY} dull day.", "Rain{VERY}.{END}"],
    "PET name kind he his": [
        (3, "Tim|cat|he|his"),
        (2, "Sue|dog|she|her"),
        (1, "Bob|hen|he|his"),
    ],
    "OPENING": [
        "{pet} the {pet.kind} sang.",
        (2, "So {pet.he} sang. {pet.He} was {pet}."),
    ],
    "TOY": zipf(1.0, "ball / top / kite"),
    "VERY": [(2, ""), (1, " very"), (1, " so very")],
    "END": [(1, ""), (2, " The end of {ALL}it.")],
    "ALL": ["", "all of "],
}


def listed(rules, template="{STORY}", known=None):
    """All derivations of a template, (text, probability) each: by rewriting the leftmost slot, and nothing clever."""
    known = known or {}
    tables = {
        key.split()[0]: (key.split()[1:] or ["name"], lines)
        for key, lines in rules.items()
    }
    slot = re.search(r"\{([^}]*)\}", template)
    if not slot:
        return [(template, 1.0)]
    before, after, inside = template[: slot.start()], template[slot.end() :], slot[1]
    if not inside.isupper() and "=" not in inside:
        name, _, column = inside.partition(".")
        text = known[name.lower()][column.lower() or "name"]
        text = text.capitalize() if (column or name)[0].isupper() else text
        return [(before + tail, p) for tail, p in listed(rules, text + after, known)]
    variable, _, rule = inside.partition("=") if "=" in inside else ("", "", inside)
    rule, *others = rule.split("-")
    columns, lines = tables[rule]
    rows = [
        (w, text)
        for w, text in ((1, line) if isinstance(line, str) else line for line in lines)
    ]
    rows = [(w, dict(zip(columns, text.split("|"), strict=True))) for w, text in rows]
    rows = [(w, row) for w, row in rows if all(row != known[other] for other in others)]
    total = sum(w for w, _ in rows)
    found = []
    for w, row in rows:
        if variable:
            tails = listed(rules, after, {**known, variable: row})
        else:
            inner = listed(rules, row[columns[0]], known)
            tails = [
                (a + b, p * q) for a, p in inner for b, q in listed(rules, after, known)
            ]
        found += [(before + tail, w / total * p) for tail, p in tails]
    return found


def lines_by_counting(probabilities, tokenizer):
    pairs = collections.Counter()
    for text, p in probabilities.items():
        ids = [tokenizer.eot_token, *tokenizer.encode(text), tokenizer.eot_token]
        for pair in itertools.pairwise(ids):
            pairs[pair] += p
    singles = collections.Counter()
    for (
        (_, b),
        n,
    ) in pairs.items():  # every token but the very first, counted where it is predicted
        singles[b] += n
    total = sum(singles.values())
    unigram = -sum(n / total * math.log(n / total) for n in singles.values())
    bigram = -sum(n / total * math.log(n / singles[a]) for (a, _), n in pairs.items())
    return (
        unigram,
        bigram,
        -sum(p * math.log(p) for p in probabilities.values()) / total,
        total,
    )


@pytest.fixture(scope="module")
def small():
    probabilities = collections.Counter()
    for text, p in listed(SMALL):
        probabilities[text] += p
    return Grammar(SMALL), probabilities


@pytest.fixture(scope="module")
def samples():
    return [stories.sample(seed) for seed in range(3000)]


# On the small grammar: everything, exactly


def test_count_and_entropy_equal_brute_force(small):
    grammar, probabilities = small
    assert math.isclose(sum(probabilities.values()), 1.0)
    assert floor.count(grammar) == len(probabilities) == len(listed(SMALL))
    assert math.isclose(
        floor.entropy(grammar),
        -sum(p * math.log(p) for p in probabilities.values()),
        rel_tol=1e-12,
    )
    assert math.isclose(
        floor.mean_bytes(grammar),
        sum(p * len(text) for text, p in probabilities.items()),
        rel_tol=1e-12,
    )


def test_every_logprob_equals_brute_force(small):
    grammar, probabilities = small
    for text, p in probabilities.items():
        assert math.isclose(floor.logprob(text, grammar), math.log(p), rel_tol=1e-9)
        assert floor.accepts(text, grammar)


def test_one_probability_by_hand(small):
    pet, opening, friend, very, toy, end = (
        2 / 6,
        1 / 3,
        1 / 4,
        1 / 4,
        (1 / 2) / (1 + 1 / 2 + 1 / 3),
        2 / 3 * 1 / 2,
    )
    text = "Sue the dog sang. Sue likes very Bob and his top. The end of all of it. Bye, top!"
    assert math.isclose(
        floor.logprob(text, small[0]),
        math.log(3 / 4 * pet * opening * friend * very * toy * end),
    )


def test_surprisal_equals_brute_force(small):
    grammar, probabilities = small
    for text in list(probabilities)[::17]:
        masses = [
            sum(p for other, p in probabilities.items() if other.startswith(text[:i]))
            for i in range(len(text) + 1)
        ]
        expected = [math.log(a / b) for a, b in itertools.pairwise(masses)]
        assert floor.surprisal(text, grammar) == pytest.approx(expected, abs=1e-9)


def test_surprisal_is_infinite_from_the_first_impossible_character_on(small):
    values = floor.surprisal("Sue the cat sang.", small[0])
    first = "Sue the cat".index("c")
    assert all(math.isfinite(value) for value in values[:first])
    assert values[first:] == [math.inf] * (len(values) - first)


def test_a_beginning_of_a_story_is_no_story(small):
    grammar, _ = small
    text = grammar.sample(0)
    assert floor.accepts(text, grammar)
    assert (
        not floor.accepts(text[:-1], grammar)
        and not floor.accepts(text + "!", grammar)
        and not floor.accepts("", grammar)
    )
    assert floor.logprob(text[:-1], grammar) == -math.inf
    assert all(math.isfinite(value) for value in floor.surprisal(text[:-1], grammar))


@pytest.mark.parametrize("vocab_size", [257, 280])
def test_reference_lines_equal_brute_force(small, vocab_size):
    grammar, probabilities = small
    tokenizer = Tokenizer("small", train_bpe(probabilities, vocab_size))
    lines = floor.reference_lines(tokenizer, grammar)
    unigram, bigram, lowest, total = lines_by_counting(probabilities, tokenizer)
    assert lines.uniform == math.log(vocab_size)
    assert lines.unigram == pytest.approx(unigram, rel=1e-12)
    assert lines.bigram == pytest.approx(bigram, rel=1e-12)
    assert lines.floor == pytest.approx(lowest, rel=1e-12)
    assert lines.tokens_per_story == pytest.approx(total, rel=1e-12)
    assert lines.bits_per_byte(lines.floor) == pytest.approx(
        floor.entropy(grammar) / floor.mean_bytes(grammar) / math.log(2), rel=1e-12
    )


def test_samples_come_as_often_as_they_should(small):
    grammar, probabilities = small
    n = 20_000
    seen = collections.Counter(grammar.sample(seed) for seed in range(n))
    assert set(seen) <= set(probabilities)
    chi = sum((seen[text] - n * p) ** 2 / (n * p) for text, p in probabilities.items())
    freedom = len(probabilities) - 1
    assert abs(chi - freedom) < 5 * math.sqrt(2 * freedom)


def test_logprob_sums_over_all_derivations():
    grammar = Grammar(
        {"STORY": ["{A_}{B_}"], "A_": ["x", "xy"], "B_": ["yz", "z"]}
    )  # xyz in two ways
    assert math.isclose(floor.logprob("xyz", grammar), math.log(1 / 2))
    assert math.isclose(floor.logprob("xyyz", grammar), math.log(1 / 4))


def test_lines_refuse_a_grammar_that_glues_words():
    grammar = Grammar(
        {"STORY": ["{A_}{B_}"], "A_": ["sun", "moon"], "B_": ["flower", "light"]}
    )
    with pytest.raises(
        ValueError, match="'sunflower' is not tokenised as 'sun' and 'flower'"
    ):
        floor.reference_lines(Tokenizer("glue", train_bpe(["sunflower"], 265)), grammar)


@pytest.mark.parametrize("real", [False, True])
def test_pieces_add_up(small, real):
    """They spell the stories, and each but the last end of text has exactly one successor, and one predecessor."""
    grammar = STORIES if real else small[0]
    singles, pairs = floor.pieces(grammar)
    ends = singles.pop(END_OF_TEXT)
    assert ends == pytest.approx(2.0)
    spelled = sum(n * len(piece.encode()) for piece, n in singles.items())
    assert spelled == pytest.approx(floor.mean_bytes(grammar), rel=1e-12)
    for side in (0, 1):
        ends = collections.Counter()
        for pair, n in pairs.items():
            ends[pair[side]] += n
        assert ends.pop(END_OF_TEXT) == pytest.approx(1.0)
        assert ends == pytest.approx(singles)
    assert all(n > 0 for n in pairs.values())


# On the real one


def test_entropy_equals_monte_carlo_and_no_story_has_two_derivations(samples):
    """A second derivation of any story would add to its probability, and the mean cost would fall below the entropy."""
    costs = [-floor.logprob(text) for text in samples[:1200]]
    error = statistics.stdev(costs) / math.sqrt(len(costs))
    assert abs(statistics.mean(costs) - floor.entropy()) < 3.5 * error
    for text in samples[:100]:
        assert _ways(text) == 1


def _ways(text):
    """The number of derivations of a text, followed one by one."""
    ways, todo = 0, [(0, (STORIES.start,))]
    while todo:
        at, items = todo.pop()
        if not items:
            ways += at == len(text)
        elif not isinstance(items[0], str):
            todo += [(at, option + items[1:]) for _, option in items[0].options]
        elif text.startswith(items[0], at):
            todo.append((at + len(items[0]), items[1:]))
    return ways


def test_reference_lines_equal_monte_carlo(samples):
    tokenizer = get_tokenizer("stories")
    lines = floor.reference_lines(tokenizer)
    lengths = [len(tokenizer.encode(text)) + 1 for text in samples]
    error = statistics.stdev(lengths) / math.sqrt(len(lengths))
    assert abs(statistics.mean(lengths) - lines.tokens_per_story) < 3.5 * error
    unigram, bigram, _, _ = lines_by_counting(
        dict.fromkeys(samples, 1 / len(samples)), tokenizer
    )
    assert lines.unigram == pytest.approx(unigram, abs=0.01)
    assert lines.bigram == pytest.approx(bigram, abs=0.02)
    assert lines.uniform > lines.unigram > lines.bigram > lines.floor > 0
    sizes = [len(text.encode()) for text in samples]
    assert abs(statistics.mean(sizes) - floor.mean_bytes()) < 3.5 * statistics.stdev(
        sizes
    ) / math.sqrt(len(sizes))


def test_bits_per_byte_do_not_depend_on_the_tokenizer(samples, gpt2_cache):
    all_lines = [
        floor.reference_lines(t)
        for t in (
            get_tokenizer("stories"),
            get_tokenizer("gpt2"),
            Tokenizer("bytes", train_bpe([], 257)),
        )
    ]
    floors = [lines.bits_per_byte(lines.floor) for lines in all_lines]
    assert floors == pytest.approx([floors[0]] * 3, rel=1e-12)


def test_pieces_are_tokenised_one_by_one(samples):
    tokenizer = get_tokenizer("stories")
    for text in samples[:500]:
        assert [
            i
            for piece in re.split("(?<!^)(?= )", text)
            for i in tokenizer.encode(piece)
        ] == tokenizer.encode(text)


def test_surprisals_sum_to_the_cost_of_the_story(samples):
    """Which holds only if no story is the beginning of another."""
    for text in samples[:200]:
        assert len(floor.surprisal(text)) == len(text)
        assert sum(floor.surprisal(text)) == pytest.approx(
            -floor.logprob(text), abs=1e-9
        )


def test_it_is_quick(samples):
    start = time.process_time()
    for text in samples[:50]:
        floor.surprisal(text)
    assert (time.process_time() - start) / 50 < 0.05


def test_size():
    assert floor.count() > 1e15
    assert (
        len(floor.visits()) < 2000
    )  # choices meet again where what differs no longer matters
    assert 20 < floor.entropy() < 28
    assert 250 < floor.mean_bytes() <= 350


def test_the_lines_stay_what_they_are():
    """Losses and benchmarks are read against them, so a change of the rules or of the arithmetic must not pass unseen."""
    lines = floor.reference_lines(get_tokenizer("stories"))
    assert lines.floor == pytest.approx(0.2815382369857476, rel=1e-12)
    assert lines.bigram == pytest.approx(1.905814906150443, rel=1e-12)
    assert lines.unigram == pytest.approx(5.380463135493054, rel=1e-12)
    assert lines.tokens_per_story == pytest.approx(92.40594164754516, rel=1e-12)
