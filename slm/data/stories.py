"""The course's stories: children's stories from a grammar, in any number.

    sample(seed=7)

The rules are data, `RULES`; `STORIES` is their grammar, and `STORIES.draw(seed)` also
says what was drawn. How predictable the stories are is worked out in `slm.data.floor`.

Exported from chapters/04_stories.py; edit it there.
"""

from collections.abc import Mapping

from slm.data.grammar import Grammar, Lines

# The rules


def weighted(weights: str, text: str) -> list[tuple[float, str]]:
    """The lines of a rule, separated by " / ", with these weights."""
    return list(zip(map(float, weights.split()), text.split(" / "), strict=True))


def zipf(exponent: float, text: str) -> list[tuple[float, str]]:
    """The lines of a rule, separated by " / ", with weights 1 / rank**exponent."""
    lines = enumerate(text.split(" / "), 1)
    return [(1 / rank**exponent, line) for rank, line in lines]


def zipf_rules(exponent: float, texts: Mapping[str, str]) -> dict[str, Lines]:
    """Several rules of that kind: for each key its lines in one text."""
    return {key: zipf(exponent, text) for key, text in texts.items()}


# what stands between two texts wherever one follows the other
END_OF_TEXT = "<|endoftext|>"

# How a story begins, goes on and ends
RULES: dict[str, Lines] = {
    "STORY": weighted(
        "6 3 2 2 1",
        "Once upon a time, there was a {ADJ} {hero=HERO}{hero.kind} named {hero}."
        " {hero.He} always wore a {wear=WEAR}{wear}.{MORE}{PLOT}{CLOSING} / "
        "{hero=HERO}{hero} was a {ADJ} {hero.kind} who lived {HOME}. {hero.He} had a"
        " {wear=WEAR}{wear}.{PLOT}{CLOSING} / "
        "There once was a {ADJ} {hero=HERO}{hero.kind} in a {wear=WEAR}{wear}."
        " {hero.His} name was {hero}.{MORE}{PLOT}{CLOSING} / "
        "Far away, {HOME}, lived {hero=HERO}{hero} the {hero.kind}, who loved"
        " {hero.his} {wear=WEAR}{wear}.{PLOT}{CLOSING} / "
        "Do you know {hero=HERO}{hero} the {hero.kind}? {hero.He} is {TWO_ADJS} and"
        " has a {wear=WEAR}{wear}.{MORE}{PLOT}{CLOSING}",
    ),
    "MORE": [
        (6, ""),
        (2, " {hero.He} lived {HOME}."),
        (1, " Everyone thought {hero.he} was {ADJ}."),
        (1, " {hero.He} lived {HOME} and liked {FOOD}, {TWO_HOBBIES}."),
    ],
    "CLOSING": [
        (4, " That night {hero} hung {hero.his} {wear} {HOOK} and slept {SLEPT}."),
        (3, " {hero} went home in {hero.his} {wear}, {GLAD} and tired."),
        (2, " {hero.He} waved {hero.his} {wear} and {LEFT}."),
        (2, " And the {wear}? {hero} wears it to this day."),
    ],
    "PLOT": zipf(
        0.4,
        "{LOST} / {BABY} / {GIFT} / {RACE} / {NOISE} / {SEED} / {BROKEN} / {STUCK} /"
        " {COOK} / {LEARN} / {TRADE} / {RAIN} / {SHY} / {PATH} / {WISH}",
    ),
}

# Plots
PLOTS: dict[str, Lines] = {
    "LOST": " {DAY}, {hero.his} {toy=TOY}{toy} was gone. {hero} felt{VERY}"
    " {SAD}.{SEARCH} {hero} hugged the {toy} and {PROMISE}.{LESSON_LOST}",
    "SEARCH": weighted(
        "4 5",
        "{a=SPOT} {hero.He} looked {a}, and there it was! / "
        "{a=SPOT}{b=SPOT-a} {hero.He} looked {a}, but found only {DUST}. Then"
        " {hero.he} looked {b}, and there it was!",
    ),
    "BABY": ' {DAY}, {hero} met a baby {baby=CUB}{baby} by the {WATER}. "I cannot find'
    ' my mother," it cried. {hero} {COMFORT} and they searched until {DUSK}. The'
    ' mother {baby} was{VERY} {GLAD}. "Thank you, {hero}!" she said.{LESSON_HELP}',
    "GIFT": " It was the birthday of {friend=HERO-hero}{friend} the {friend.kind}, but"
    " {hero} had no money. So {hero.he} took some {gift=PRESENT}{gift.stuff} and made"
    ' a {gift}. {friend} opened the box and felt{VERY} {GLAD}. "I will {KEEP} this'
    ' {gift}," said {friend}.{LESSON_GIFT}',
    "RACE": " {DAY}, {friend=HERO-hero}{friend} the {friend.kind} wanted to race to"
    ' the {goal=GOAL}{goal}. "I am much faster than you," {friend.he} said. But'
    " halfway {friend} {MISHAP}. {RACED} the {goal}.{LESSON_RACE}",
    "RACED": [
        (3, "{hero} stopped and helped {friend.him} up, and together they reached"),
        (2, "{hero} just went on, step by step, and was first to touch"),
    ],
    "NOISE": ' {DARK}, {hero} heard a strange {noise=SOUND}{noise}. "Is it a'
    ' {fear=FEAR}{fear}?" {hero.he} whispered. {hero} {BRAVE} and went to look. There'
    " was no {fear}. The {noise} was only {noise.cause}, and {hero}"
    " {LAUGHED}.{LESSON_FEAR}",
    "SEED": "{helper=HELPER} {Helper} gave {hero} a {SIZE} seed. {hero} planted it"
    " {SPOT} and watered it every {EVERY}. For {LONG} nothing grew, and {hero} felt"
    ' {SAD}. "{WAIT}," said {helper}. One day there was a {PLANT}, and {hero} ran to'
    " tell {helper}.{LESSON_WAIT}",
    "BROKEN": " {DAY}, {hero} was {PLAYING} in the house and broke the {pot=POT}{pot}"
    ' of {helper=HELPER}{helper}. {TRUTH} "Thank you for being honest," said {helper}.'
    " They mended the {pot} with {GLUE}.{LESSON_TRUTH}",
    "TRUTH": weighted(
        "3 2",
        "{hero} told the truth at once. / "
        "{hero} hid the pieces {SPOT}, but {hero.he} felt{VERY} {SAD}. In the end"
        " {hero.he} told the truth.",
    ),
}
# a text alone is a rule's only line
RULES |= {key: [x] if isinstance(x, str) else x for key, x in PLOTS.items()}

# More plots
MORE_PLOTS: dict[str, Lines] = {
    "STUCK": " {DAY}, the wind blew {hero.his} {toy=TOY}{toy} {PERCH}. {hero} {TRIED},"
    " but it was too high. Then {friend=HERO-hero}{friend} the {friend.kind} came with"
    ' a {TOOL}. Down came the {toy}! "What would I do without you, {friend}?" said'
    " {hero}.{LESSON_HELP}",
    "COOK": " {hero} wanted to make {dish=DISH}{dish} for {friend=HERO-hero}{friend}"
    " the {friend.kind}. {hero.He} mixed {MIX}, but then {hero.he} {SPILLED}. {friend}"
    " tasted the {dish} and {FACE}. {friend.He} and {hero} {ATE} instead of"
    " {dish}.{LESSON_COOK}",
    "MIX": "{a=FOOD}{b=FOOD-a}{a} and {b}",
    "LEARN": " {hero} wanted to {skill=SKILL}{skill}, but {hero.he} always"
    ' {skill.fail}. {helper=HELPER}{Helper} said, "{ADVICE}." {hero} tried {TIMES}'
    " times. The next time, {hero.he} could {skill}! {Helper} was{VERY}"
    " {GLAD}.{LESSON_LEARN}",
    "TRADE": " {DAY}, a trader came by. {hero} gave away {hero.his} {toy=TOY}{toy} for"
    " a {other=TOY-toy}{other}. But at home {hero.he} missed the {toy} and felt{VERY}"
    " {SAD}. {hero.He} ran back with the {other}, and the trader"
    " {SWAPPED}.{LESSON_TRADE}",
    "RAIN": " {hero} and {friend=HERO-hero}{friend} the {friend.kind} wanted to"
    " {plan=PLAN}{plan}, but it {RAINED}. {hero} had an idea. They {INDOOR} until"
    ' {DUSK}. "Tomorrow we can {plan}," said {friend}, "but today was'
    ' {FUN}."{LESSON_RAIN}',
    "SHY": "{friend=HERO-hero} A new {friend.kind} named {friend} came to school and"
    ' sat alone {SPOT}. "Do you like {hobby=HOBBY}{hobby}?" asked {hero}. {friend}'
    " {NODDED}. Now {hero} and {friend} go {hobby} together every {EVERY}.{LESSON_SHY}",
    "PATH": " {DAY}, {hero} followed a {INSECT} into the forest and lost the way."
    " {hero} felt{VERY} {SAD}. Then {hero.he} remembered what {helper=HELPER}{helper}"
    ' had said: "Follow the {guide=GUIDE}{guide}." {hero} followed the {guide}, and'
    " soon {helper} {MET} {hero.him} at the door.{LESSON_LISTEN}",
    "WISH": " {DARK}, {hero} saw a falling star and wished for a {wish=DREAM}{wish}."
    " In the morning there was no {wish}, but {HELPER} {SURPRISE}. {hero} felt{VERY}"
    " {GLAD} and forgot about the {wish}.{LESSON_WISH}",
}
RULES |= {key: [x] if isinstance(x, str) else x for key, x in MORE_PLOTS.items()}

# Who, and what is theirs
CAST = {
    "HERO name kind he him his": "Nell|girl|she|her|her / Otto|bear|he|him|his /"
    " Kai|boy|he|him|his / Willa|rabbit|she|her|her / Theo|boy|he|him|his /"
    " Zoe|girl|she|her|her / Milo|mouse|he|him|his / Suki|cat|she|her|her /"
    " Bruno|dog|he|him|his / Hetty|hen|she|her|her",
    "WEAR": "red hat / blue scarf / green coat / yellow cap / purple cape / white"
    " ribbon / brown belt / pink sweater",
    "TOY": "kite / ball / drum / doll / robot / puzzle / top",
}
RULES |= zipf_rules(0.6, CAST)
# Moods, and when it was
MOODS = {
    "ADJ": "little / kind / curious / brave / quiet / polite / clever / gentle / young"
    " / small / funny / lively",
    "SAD": "sad / worried / lonely / upset / gloomy / unhappy",
    "GLAD": "happy / proud / glad / thankful / excited / cheerful",
    "DAY": "One day / One morning / On a windy day / Early in spring / Last summer",
}
RULES |= zipf_rules(0.7, MOODS)
# Others and things, where and when
THINGS = {
    "HELPER": "grandma / dad / mom / grandpa / the baker / the teacher",
    "CUB": "lamb / duck / goat / seal / deer / owl",
    "FEAR": "ghost / dragon / wolf / giant / witch / troll",
    "PRESENT name stuff": "boat|paper / crown|leaves / necklace|shells / puppet|wool /"
    " flute|wood / lamp|wax",
    "POT": "vase / teapot / mirror / clock / bowl",
    "TOOL": "ladder and climbed up / long stick and poked it / rope and pulled hard /"
    " net and swung it once",
    "PLANT": "sunflower / pumpkin as big as a cart / tiny tree / tall bean / rose",
    "DISH": "soup / pancakes / bread / stew / cake",
    "FOOD": "honey / eggs / milk / carrots / berries / flour / beans",
    "DREAM": "pony / castle / ship / rocket / sled",
    "SOUND name cause": "tapping|a branch in the wind / scratching|a mouse with a nut"
    " / howling|the wind in the chimney / dripping|the rain in a bucket / snoring|the"
    " cat in a basket",
    "GUIDE": "river / stars / stone wall / church bells / smell of smoke",
    "INSECT": "butterfly / bee / beetle / firefly",
    "GLUE": "glue / string / gold paint",
    "DUST": "dust / an old shoe / a spider / three crumbs / a sock",
    "SPOT": "under the bed / behind the barn / near the fence / by the stairs / in the"
    " garden / next to the well",
    "HOME": "by the sea / near the forest / in a small village / on a hill / beside"
    " the mill / at the end of the road / in a tall house",
    "HOOK": "on a hook / over the bed / on the door / by the window / on a chair",
    "WATER": "pond / river / road / bridge",
    "GOAL": "old oak / bridge / lake / big rock / windmill",
    "PERCH": "into a tree / onto the roof / up a pole / over a high wall",
    "DARK": "Late at night / One dark night / At bedtime",
    "DUSK": "dinner / sunset / bedtime / it was dark / the moon rose",
    "EVERY": "day / morning / evening / week",
    "LONG": "two weeks / many days / a month / a long time",
    "TIMES": "three / ten / five / a hundred",
}
RULES |= zipf_rules(0.5, THINGS)

# What one can do, and what is said
DEEDS = {
    "SKILL name fail": "swim|swallowed water / whistle|blew only air / skate|fell on"
    " the ice / juggle|dropped the balls / ride a bike|tipped over / tie a knot|made a"
    " mess",
    "HOBBY": "fishing / singing / dancing / sailing / hiking / climbing",
    "PLAN": "build a raft / fly kites / pick apples / swim in the lake / have a picnic",
    "INDOOR": "built a fort and hid inside / sang and danced / drew a map and looked"
    " for treasure / baked cookies / made a puppet show / told stories by the fire",
    "PLAYING": "dancing / jumping / throwing a ball / running",
    "TRIED": "jumped and jumped / threw a stick / shook the trunk / called for help",
    "SPILLED": "used salt for sugar / dropped the pepper / burned the bottom / forgot"
    " the spoon in it",
    "ATE": "laughed and ate toast / ate cheese / shared a plum / had nuts",
    "SURPRISE": "had made warm waffles / told a wonderful tale / had time to play all"
    " day / sang a new song",
    "MISHAP": "tripped over a root / fell into the mud / got a thorn in the foot /"
    " hurt a knee",
    "COMFORT": "took its hand / gave it some bread / dried its tears / made a plan",
    "BRAVE": "lit a candle / took a deep breath / counted to ten / held a pillow tight",
    "LAUGHED": "had to laugh / felt very brave / felt silly / smiled",
    "PROMISE": "did not let go all day / danced around the room / showed it to"
    " everyone / put it on the shelf",
    "KEEP": "treasure / always keep / never forget / love",
    "FACE": "coughed / made a funny face / drank a lot of water / turned red",
    "SWAPPED": "gave it back with a wink / was kind and swapped again / shook hands"
    " and agreed",
    "NODDED": "nodded / said yes in a low voice / looked up and smiled",
    "MET": "hugged / met / kissed / greeted",
    "LEFT": "ran off to play / said goodbye / skipped all the way home",
    "SLEPT": "well / like a log / until noon / with a smile / soundly",
    "RAINED": "rained all day / was too cold / snowed",
    "FUN": "fun / the best day / even better",
    "SIZE": "tiny / round / black / shiny",
    "WAIT": "Be patient / Good things take time / Give it one more week",
    "ADVICE": "Try it slowly / Do not give up / I could not do it at first / Watch me",
}
RULES |= zipf_rules(0.5, DEEDS)
# Combinations, and what one learns
RULES |= {
    "TWO_ADJS": ["{a=ADJ}{b=ADJ-a}{a} and {b}"],
    "TWO_HOBBIES": ["{a=HOBBY}{b=HOBBY-a}{a} and {b}"],
    "VERY": [(5, ""), (3, " very"), (2, " so")],
    "LESSON_HELP": [
        (2, ""),
        (1, " Helping others feels good."),
        (1, " A friend in need is never alone."),
    ],
    "LESSON_LOST": ["", " Those who keep looking will find."],
    "LESSON_GIFT": ["", " The best gifts are made by hand."],
    "LESSON_RACE": ["", " It is not good to boast."],
    "LESSON_FEAR": ["", " Most fears are small in the light."],
    "LESSON_WAIT": ["", " Patience makes things grow."],
    "LESSON_TRUTH": ["", " The truth is lighter to carry."],
    "LESSON_COOK": ["", " Even a mistake can be fun."],
    "LESSON_LEARN": ["", " Every master was once a beginner."],
    "LESSON_TRADE": ["", " What you love has no price."],
    "LESSON_RAIN": ["", " A rainy day can be a gift."],
    "LESSON_SHY": ["", " One kind question can start a friendship."],
    "LESSON_LISTEN": ["", " Good advice lights the way."],
    "LESSON_WISH": ["", " Some wishes come true in another way."],
}

STORIES = Grammar(RULES)


def sample(seed: int) -> str:
    """The story of this number: the same seed gives the same story on every machine."""
    return STORIES.sample(seed)
