"""The stories: every computed quantity against brute force on a small grammar, and against Monte Carlo on the real one."""

import collections
import hashlib
import itertools
import math
import re
import statistics
import time

import pytest

from slm import stories
from slm.stories import STORIES, Grammar, zipf
from slm.tokenizer import Tokenizer, get_tokenizer, train_bpe

SMALL = {
    "STORY": [
        (
            3,
            "{pet=PET}{OPENING}{friend=PET-pet} {pet} likes{VERY} {friend} and {friend.his} {toy=TOY}{toy}.{END} Bye, {toy}!",
        ),
        (1, "{PLAIN}"),
    ],
    "PLAIN": ["A{VERY} dull day.", "Rain{VERY}.{END}"],
    "PET name kind he his": [(3, "Tim|cat|he|his"), (2, "Sue|dog|she|her"), (1, "Bob|hen|he|his")],
    "OPENING": ["{pet} the {pet.kind} sang.", (2, "So {pet.he} sang. {pet.He} was {pet}.")],
    "TOY": zipf(1.0, "ball / top / kite"),
    "VERY": [(2, ""), (1, " very"), (1, " so very")],
    "END": [(1, ""), (2, " The end of {ALL}it.")],
    "ALL": ["", "all of "],
}


def listed(rules, template="{STORY}", known=None):
    """All derivations of a template, (text, probability) each: by rewriting the leftmost slot, and nothing clever."""
    known = known or {}
    tables = {key.split()[0]: (key.split()[1:] or ["name"], lines) for key, lines in rules.items()}
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
    rows = [(w, text) for w, text in ((1, line) if isinstance(line, str) else line for line in lines)]
    rows = [(w, dict(zip(columns, text.split("|"), strict=True))) for w, text in rows]
    rows = [(w, row) for w, row in rows if all(row != known[other] for other in others)]
    total = sum(w for w, _ in rows)
    found = []
    for w, row in rows:
        if variable:
            tails = listed(rules, after, {**known, variable: row})
        else:
            inner = listed(rules, row[columns[0]], known)
            tails = [(a + b, p * q) for a, p in inner for b, q in listed(rules, after, known)]
        found += [(before + tail, w / total * p) for tail, p in tails]
    return found


def lines_by_counting(probabilities, tokenizer):
    pairs = collections.Counter()
    for text, p in probabilities.items():
        ids = [tokenizer.eot_token, *tokenizer.encode(text), tokenizer.eot_token]
        for pair in itertools.pairwise(ids):
            pairs[pair] += p
    singles = collections.Counter()
    for (_, b), n in pairs.items():  # every token but the very first, counted where it is predicted
        singles[b] += n
    total = sum(singles.values())
    unigram = -sum(n / total * math.log(n / total) for n in singles.values())
    bigram = -sum(n / total * math.log(n / singles[a]) for (a, _), n in pairs.items())
    return unigram, bigram, -sum(p * math.log(p) for p in probabilities.values()) / total, total


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
    assert grammar.count() == len(probabilities) == len(listed(SMALL))
    assert math.isclose(grammar.entropy(), -sum(p * math.log(p) for p in probabilities.values()), rel_tol=1e-12)
    assert math.isclose(grammar.mean_bytes(), sum(p * len(text) for text, p in probabilities.items()), rel_tol=1e-12)


def test_every_logprob_equals_brute_force(small):
    grammar, probabilities = small
    for text, p in probabilities.items():
        assert math.isclose(grammar.logprob(text), math.log(p), rel_tol=1e-9)
        assert grammar.accepts(text)


def test_one_probability_by_hand(small):
    pet, opening, friend, very, toy, end = 2 / 6, 1 / 3, 1 / 4, 1 / 4, (1 / 2) / (1 + 1 / 2 + 1 / 3), 2 / 3 * 1 / 2
    text = "Sue the dog sang. Sue likes very Bob and his top. The end of all of it. Bye, top!"
    assert math.isclose(small[0].logprob(text), math.log(3 / 4 * pet * opening * friend * very * toy * end))


def test_surprisal_equals_brute_force(small):
    grammar, probabilities = small
    for text in list(probabilities)[::17]:
        masses = [
            sum(p for other, p in probabilities.items() if other.startswith(text[:i])) for i in range(len(text) + 1)
        ]
        expected = [math.log(a / b) for a, b in itertools.pairwise(masses)]
        assert grammar.surprisal(text) == pytest.approx(expected, abs=1e-9)


def test_surprisal_is_infinite_from_the_first_impossible_character_on(small):
    values = small[0].surprisal("Sue the cat sang.")
    first = "Sue the cat".index("c")
    assert all(math.isfinite(value) for value in values[:first])
    assert values[first:] == [math.inf] * (len(values) - first)


def test_a_beginning_of_a_story_is_no_story(small):
    grammar, _ = small
    text = grammar.sample(0)
    assert grammar.accepts(text)
    assert not grammar.accepts(text[:-1]) and not grammar.accepts(text + "!") and not grammar.accepts("")
    assert grammar.logprob(text[:-1]) == -math.inf
    assert all(math.isfinite(value) for value in grammar.surprisal(text[:-1]))


@pytest.mark.parametrize("vocab_size", [257, 280])
def test_reference_lines_equal_brute_force(small, vocab_size):
    grammar, probabilities = small
    tokenizer = Tokenizer("small", train_bpe(probabilities, vocab_size))
    lines = grammar.reference_lines(tokenizer)
    unigram, bigram, floor, total = lines_by_counting(probabilities, tokenizer)
    assert lines.uniform == math.log(vocab_size)
    assert lines.unigram == pytest.approx(unigram, rel=1e-12)
    assert lines.bigram == pytest.approx(bigram, rel=1e-12)
    assert lines.floor == pytest.approx(floor, rel=1e-12)
    assert lines.tokens_per_story == pytest.approx(total, rel=1e-12)
    assert lines.bits_per_byte(lines.floor) == pytest.approx(
        grammar.entropy() / grammar.mean_bytes() / math.log(2), rel=1e-12
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
    grammar = Grammar({"STORY": ["{A_}{B_}"], "A_": ["x", "xy"], "B_": ["yz", "z"]})  # xyz in two ways
    assert math.isclose(grammar.logprob("xyz"), math.log(1 / 2))
    assert math.isclose(grammar.logprob("xyyz"), math.log(1 / 4))


def test_lines_refuse_a_grammar_that_glues_words():
    grammar = Grammar({"STORY": ["{A_}{B_}"], "A_": ["sun", "moon"], "B_": ["flower", "light"]})
    with pytest.raises(ValueError, match="'sunflower' is not tokenised as 'sun' and 'flower'"):
        grammar.reference_lines(Tokenizer("glue", train_bpe(["sunflower"], 265)))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"STORY": ["{CAT}"]}, "names the rule CAT, but there is none"),
        ({"STORY": ["a {B_}"], "B_": ["b {STORY}"]}, "rule STORY leads back to itself: STORY > B_ > STORY"),
        ({"STORY": [(0, "a")]}, "weight of 'a' is 0, but it must be positive"),
        ({"STORY": ["{x=PET}{x}"], "PET name kind": ["Tim"]}, "'Tim' has 1 columns, but 2 are named"),
        ({"STORY": ["a {b c} d"]}, "brace that belongs to no slot"),
        ({"STORY": []}, "rule STORY has no lines"),
        ({"STORY": "abc"}, "rule STORY: its lines are one text; put them into a list"),
        ({"STORY": ["{x=foo}{x}"]}, "names the rule foo, but there is none"),
        ({"TALE": ["a"]}, "names the rule STORY, but there is none"),
        ({"story": ["a"]}, "must be in capitals"),
        ({"STORY": ["a"], "STORY name kind": ["b|c"]}, "there only once"),
        ({"STORY": ["{x=PET}{x}"], "PET": ["{TOY}"], "TOY": ["a"]}, "what is drawn must be plain text"),
    ],
)
def test_malformed_rules_are_refused_at_once(rules, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Grammar(rules)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"STORY": ["{x} and {x=PET}"], "PET": ["a"]}, "{x} is printed in '{x} and {x=PET}', but nothing was drawn"),
        ({"STORY": ["{x=PET}{x.age}"], "PET name kind": ["a|b"]}, "rule PET has only the columns name, kind"),
        ({"STORY": ["{x=PET}{y=PET-x}{y}"], "PET": ["a"]}, "every line of rule PET is taken"),
        ({"STORY": ["{x=PET-y}{x}"], "PET": ["a"]}, "{x=PET-y} must differ from y, but nothing was drawn for that"),
    ],
)
def test_malformed_slots_are_named_when_they_are_reached(rules, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Grammar(rules).entropy()


def test_a_variable_drawn_again_means_the_new_line():
    grammar = Grammar(
        {"STORY": ["{x=A_}{x}{x=B_} {x}{C_}"], "A_": ["a"], "B_": ["b"], "C_": ["{x=D_} {x}"], "D_": ["d"]}
    )
    assert grammar.sample(0) == "a b d"


# On the real one


def test_stories_are_the_same_everywhere(samples):
    assert (
        hashlib.sha256("\n".join(samples[:100]).encode()).hexdigest()
        == "853fa4531afe4f15bf2a4a5342e42b70e144831379cf6c7723e66acd26b4b6c0"
    )
    assert samples[7] == stories.sample(7)
    assert len(set(samples)) == len(samples)


def test_entropy_equals_monte_carlo_and_no_story_has_two_derivations(samples):
    """A second derivation of any story would add to its probability, and the mean cost would fall below the entropy."""
    costs = [-stories.logprob(text) for text in samples[:1200]]
    error = statistics.stdev(costs) / math.sqrt(len(costs))
    assert abs(statistics.mean(costs) - stories.entropy()) < 3.5 * error
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
    lines = stories.reference_lines(tokenizer)
    lengths = [len(tokenizer.encode(text)) + 1 for text in samples]
    error = statistics.stdev(lengths) / math.sqrt(len(lengths))
    assert abs(statistics.mean(lengths) - lines.tokens_per_story) < 3.5 * error
    unigram, bigram, _, _ = lines_by_counting(dict.fromkeys(samples, 1 / len(samples)), tokenizer)
    assert lines.unigram == pytest.approx(unigram, abs=0.01)
    assert lines.bigram == pytest.approx(bigram, abs=0.02)
    assert lines.uniform > lines.unigram > lines.bigram > lines.floor > 0
    sizes = [len(text.encode()) for text in samples]
    assert abs(statistics.mean(sizes) - stories.mean_bytes()) < 3.5 * statistics.stdev(sizes) / math.sqrt(len(sizes))


def test_bits_per_byte_do_not_depend_on_the_tokenizer(samples, gpt2_cache):
    all_lines = [
        stories.reference_lines(t)
        for t in (get_tokenizer("stories"), get_tokenizer("gpt2"), Tokenizer("bytes", train_bpe([], 257)))
    ]
    floors = [lines.bits_per_byte(lines.floor) for lines in all_lines]
    assert floors == pytest.approx([floors[0]] * 3, rel=1e-12)


def test_pieces_are_tokenised_one_by_one(samples):
    tokenizer = get_tokenizer("stories")
    for text in samples[:500]:
        assert [i for piece in re.split("(?<!^)(?= )", text) for i in tokenizer.encode(piece)] == tokenizer.encode(text)


def test_surprisals_sum_to_the_cost_of_the_story(samples):
    """Which holds only if no story is the beginning of another."""
    for text in samples[:200]:
        assert len(stories.surprisal(text)) == len(text)
        assert sum(stories.surprisal(text)) == pytest.approx(-stories.logprob(text), abs=1e-9)


def test_facts_stay_as_they_were_told(samples):
    """The hero's name, pronoun and clothes at the end are those of the beginning."""
    heroes = {row[0]: row for _, row in STORIES.rows["HERO"]}
    clothes = [row[0] for _, row in STORIES.rows["WEAR"]]
    for text in samples:
        hero = heroes[min(heroes, key=lambda name: text.find(name) % len(text))]
        worn = {wear for wear in clothes if wear in text}
        assert len(worn) == 1 and text.count(worn.pop()) == 2
        assert (
            f"{hero[0]} the {hero[1]}" in text or f"{hero[1]} named {hero[0]}" in text or hero[1] in text.split(".")[0]
        )
    text = next(text for text in samples if "wished for a pony" in text)
    assert stories.accepts(text) and not stories.accepts(text.replace("forgot about the pony", "forgot about the ship"))


def test_size_and_shape(samples):
    assert stories.count() > 1e15
    assert len(STORIES.rows["PLOT"]) >= 12
    assert len(STORIES.visits()) < 2000  # choices meet again where what differs no longer matters
    assert 20 < stories.entropy() < 28
    assert 250 < stories.mean_bytes() <= 350
    assert all(text.isascii() and "\n" not in text and text.endswith(".") and "  " not in text for text in samples)
    used = {word for text in samples for word in re.findall(r"[A-Za-z]+", text)}
    assert 400 < len(used) < 700


def test_it_is_quick(samples):
    start = time.process_time()
    for seed in range(1000):
        stories.sample(seed)
    per_story = (time.process_time() - start) / 1000
    start = time.process_time()
    for text in samples[:50]:
        stories.surprisal(text)
    per_reading = (time.process_time() - start) / 50
    assert per_story < 1 / 3000
    assert per_reading < 0.05
