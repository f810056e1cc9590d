"""The kinds of sentences, and the everyday queries, that benchmarks/captions.py measures: word lists and rules.

Texts are compared in lower case, word by word. A word of a list that ends with * stands for all words that begin so.
The lists are short and made for captions of photographs in English; they do not understand a sentence: "orange" is a
colour also where it is a fruit, and "a woman and a red dress" mentions the same as "a woman in a red dress".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

PEOPLE = """
    man men woman women boy boys girl girls child children kid kids baby babies toddler* infant* person persons people
    human* lady ladies gentleman gentlemen guy guys adult* teen teens teenager* youth* someone somebody male males
    female* crowd* family families couple couples friend friends mother* father* mom mum dad son sons daughter* brother*
    sister* bride* groom grooms audience* spectator* player* goalie* cheerleader* skateboarder* skater* snowboarder*
    skier* surfer* swimmer* runner* cyclist* bicyclist* biker* motorcyclist* rider* climber* hiker* dancer* singer*
    musician* worker* soldier* police* officer* cowboy* chef* boxer* wrestler* tourist* fisherman fishermen
"""
ANIMALS = """
    animal* dog dogs puppy puppies greyhound* poodle* terrier* retriever* collie* dalmatian* husky huskies pitbull* cat
    cats kitten* kitty horse horses pony ponies cow cows bull bulls bulldog* calf sheep lamb* goat goats pig pigs bird
    birds duck ducks goose geese swan* pigeon* seagull* chicken* eagle* owl* parrot* fish bear bears elephant* giraffe*
    zebra* lion lions tiger* monkey* camel* deer rabbit* squirrel* turtle turtles butterfly butterflies insect*
"""
COLOURS = "black white red green yellow blue brown purple pink orange gray grey"
COUNTS = """
    two three four five six seven eight nine ten 2 3 4 5 6 7 8 9 10 several many both pair pairs couple couples group
    groups dozen dozens trio
"""
PLACES = """
    beach* shore* sand sandy sea ocean* lake* river* creek stream pond water snow snowy ice mountain* mountainside hill*
    cliff* forest* woods desert deserts field fields meadow* grass grassy lawn garden* yard backyard park parks
    playground* pool street* road* sidewalk* path paths trail trails track tracks city town downtown village market*
    bridge* building* house* home room* bedroom kitchen* bathroom* office offices restaurant* store stores shop shops
    school* church* station airport* stadium* court arena gym rink stage farm farms zoo dock pier harbor harbour parking
    subway
"""
VERBS = """
    run runs jump jumps walk walks play plays ride rides climb climbs swim swims chase chases catch catches throw throws
    kick kicks eat eats leap leaps dance dances hits drinks sings fights surfs skates dives races slides swings flies
    pulls pushes carries crawls wrestles bites chews digs fetches shakes splashes sleeps laughs smiles hugs kisses talks
    reads performs paddles bends
"""
NO_ACTION = """
    building clothing railing something anything nothing everything during morning evening ceiling wedding spring string
    swing ring king wing thing sling earring sibling lightning setting lighting parking living dining painting drawing
    wearing being having sitting standing lying laying looking holding facing containing including surrounding
    overlooking matching opposing covering trying getting using
"""
"""Words in -ing that are nouns, and those that say how something is rather than what it does."""


@functools.cache
def pattern(words: str) -> re.Pattern[str]:
    """Return the expression that finds any word of a list."""
    return re.compile(rf"\b(?:{'|'.join(words.replace('*', '[a-z]*').split())})\b")


def mentions(text: str, words: str) -> bool:
    """Return whether a text has a word of a list."""
    return pattern(words).search(text.lower()) is not None


def mentions_action(text: str) -> bool:
    """Return whether a text has one of VERBS, or a word in -ing that is not in NO_ACTION."""
    forms = re.findall(r"\b[a-z]+ing\b", text.lower())
    return mentions(text, VERBS) or any(not pattern(NO_ACTION).fullmatch(form) for form in forms)


KINDS = {
    "people": "a word for people: man, child, crowd, skier ... (PEOPLE)",
    "actions": "a word in -ing that is not in NO_ACTION (building, wearing ...), or a verb: runs, play ... (VERBS)",
    "colours": "one of the 11 basic colour terms (Berlin and Kay, 1969)",
    "counts": "a number from 2 to 10, or several, many, both, pair, couple, group, dozen, trio",
    "places": "a place or a ground: beach, street, snow, water, park, kitchen ... (PLACES)",
    "animals": "a word for animals: dog, bird, cow ... (ANIMALS)",
    "things": "neither people nor animals nor actions",
}
"""Each kind of sentence and how it is recognised. A sentence can be of several kinds."""


def kinds_of(text: str) -> set[str]:
    """Return the kinds of a sentence."""
    lists = {"people": PEOPLE, "colours": COLOURS, "counts": COUNTS, "places": PLACES, "animals": ANIMALS}
    kinds = {kind for kind, words in lists.items() if mentions(text, words)}
    if mentions_action(text):
        kinds.add("actions")
    return kinds if kinds & {"people", "animals", "actions"} else kinds | {"things"}


CHILDREN = "kid kids child children boy boys girl girls toddler* baby babies"
EVERYDAY: dict[str, tuple[str, ...]] = {
    "a man climbing a rock": ("climb* scales scaling", "rock rocks rocky cliff* mountain* boulder* wall"),
    "skateboarder doing a trick": ("skateboard*", "trick* stunt* jump* air airborne midair flip* grind*"),
    "an old man": ("old older elderly", "man men gentleman guy"),
    "birthday party": ("birthday party",),
    "dog running on the beach": ("dog dogs puppy puppies", "run runs running", "beach shore sand ocean"),
    "kids playing football": (CHILDREN, "football soccer"),
    "woman in a red dress": ("woman women lady ladies", "red", "dress dresses gown"),
    "people at a wedding": ("wedding bride* groom grooms",),
    "someone riding a bike": (
        "bike bikes biker* biking bicycl* cyclist* cycling",
        "ride rides rider riders riding biker* biking bicyclist* cyclist* cycling",
    ),
    "sunset over water": ("sunset* sunrise dusk", "water ocean sea lake beach river shore waves"),
    "laughing baby": ("baby babies infant toddler*", "laugh* smil* giggl*"),
    "snowy mountains": ("snow snowy", "mountain mountains peak peaks"),
    "red car": ("red", "car cars"),
    "two dogs playing": ("two both", "dogs puppies", "play plays playing chas* wrestl* fight*"),
    "cat on a sofa": ("cat cats kitten* kitty", "couch sofa"),
    "someone playing guitar": ("guitar*",),
    "couple kissing": ("kiss*",),
    "people eating at a table": (PEOPLE, "eat* dinner lunch meal dining", "table tables restaurant"),
    "street at night": ("night nighttime", "street* road city sidewalk"),
    "child in a swimming pool": (CHILDREN, "pool"),
}
"""Each everyday query and the groups of words by which its right images are recognised."""


def is_right(texts: Sequence[str], groups: Sequence[str]) -> bool:
    """Return whether the captions of an image mention a query.

    Each group of words must be in at least two of the captions, or in one if there are only one or two.
    """
    needed = 2 if len(texts) > 2 else 1
    return all(sum(mentions(text, group) for text in texts) >= needed for group in groups)


WITHOUT_ARTICLE = frozenset({"people", "someone", "skis", "cattle", "scissors", "broccoli"})


def with_article(name: str) -> str:
    """Return the name of a thing as people write it in a sentence: "a dog", "an apple", "people"."""
    return name if name in WITHOUT_ARTICLE else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
