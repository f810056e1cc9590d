"""What WordNet adds to the 1,000 classes: groups of classes with a common name, and words for other things.

Source: WordNet 3.0 (Fellbaum, 1998; Princeton University), its files as packaged by Debian. The similarity of
two synsets by the information content of their nearest common ancestor is that of D. Lin ("An
information-theoretic definition of similarity", 1998), with the number of synsets below instead of a corpus.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from lite_semantic import softmax

from pixmatcher.encoders.lite import _lexicon
from pixmatcher.encoders.onnx.networks import unit

Floats = npt.NDArray[np.float32]
Row = tuple[tuple[int, int], ...]

FOLDER = Path("/usr/share/wordnet")
FILES = {
    "data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "index.sense": "ce997000ec806318ff1dfadf77d314ac527358e127d7bbe3d1f4e83a1c5c1c2b",
    "noun.exc": "2b5d675c380b39ecf595af9fa9d4e7feb1d58c643b0bff08c40ed5bfe41fab7a",
}
"""The files of WordNet that are read, with their SHA-256."""
PACKAGES = {
    name: f"{package}=1:3.0-37 (Debian)"
    for name, package in (
        ("data.noun", "wordnet-base"),
        ("index.sense", "wordnet-sense-index"),
        ("noun.exc", "wordnet-base"),
    )
}

LEAST_MEMBERS, MOST_MEMBERS = 4, 450
"""Number of classes in a group: fewer classes need no group, more have little in common in images."""
MERGED_ABOVE = 0.6
"""Groups whose overlap (intersection over union) is at least this are merged."""

SIMILARITY_TEMPERATURE = 0.07
KINSHIP_WEIGHT = 0.5
"""Weight of the similarity by common ancestors, relative to that of the definitions."""
MIN_SIMILARITY = 0.3
"""A word is left out if the shares of its nearest classes sum to less: it is similar to no class."""

KNOWN_RANK, SIMILAR_RANK = 3, 2
"""The highest rank of a sense that is used: of senses that the network knows, and of those similar to classes."""
LEAST_SHARE_OF_SENSE, LEAST_SHARE_OF_NOUN = 0.1, 0.2
"""The lowest share of a sense among the uses of a word as a noun, and of the noun among all its uses."""

FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an the in on at as it he she i be is are am was were can will may have has do does did no so or and but
        if of to up down out off over under with by for from into near who what which that this these those all both
        one two three four five six seven eight nine ten his her its their my your our us we you they them me him
        there here then than very not too also just only while during before after about between through against
        front back top side left right middle group lot pair set way time day thing something someone other another
        each photo picture image photograph""",
    )
)
"""Words that are nouns in WordNet but mostly used differently, or say nothing about the content of an image."""


@dataclass(frozen=True)
class Synset:
    """A noun synset: words with the same meaning."""

    lemmas: tuple[str, ...]
    parents: tuple[str, ...]
    gloss: str


@dataclass(frozen=True)
class Group:
    """Classes (by number) below one synset, or below several synsets with almost the same classes."""

    members: frozenset[int]
    synsets: tuple[str, ...]


class WordNet:
    """The nouns of WordNet 3.0. The name of a synset is its ImageNet number, `n` and 8 digits."""

    def __init__(self, folder: Path) -> None:
        contents = {}
        for name, sha256 in FILES.items():
            content = (folder / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise SystemExit(f"{folder / name} is not the expected file of WordNet 3.0")
            contents[name] = content.decode("latin-1").splitlines()
        self.synsets = dict(_synset(line) for line in contents["data.noun"] if not line.startswith("  "))
        self.senses: dict[str, list[tuple[str, int]]] = {}
        """For each noun in lower case: its synsets, the most frequent first, each with its number of uses."""
        uses: Counter[str] = Counter()
        ranked: defaultdict[str, list[tuple[int, str, int]]] = defaultdict(list)
        for line in contents["index.sense"]:
            key, offset, rank, count = line.split()
            word, rest = key.split("%")
            word = word.replace("_", " ")
            uses[word] += int(count)
            if rest[0] == "1":  # a noun
                ranked[word].append((int(rank), f"n{offset}", int(count)))
        for word, found in ranked.items():
            self.senses[word] = [(synset, count) for _, synset, count in sorted(found)]
        self._uses = uses
        self.irregular = [
            (words[0].replace("_", " "), words[1].replace("_", " "))
            for words in (line.split() for line in contents["noun.exc"])
            if len(words) > 1
        ]
        """Irregular plurals, each with its singular."""
        self._lineages: dict[str, tuple[str, ...]] = {}

    def lineage(self, synset: str) -> tuple[str, ...]:
        """Return the synset and all its ancestors, the nearest first along each branch."""
        if synset not in self._lineages:
            found: dict[str, None] = {}
            waiting = [synset]
            while waiting:
                one = waiting.pop()
                if one not in found:
                    found[one] = None
                    waiting += self.synsets[one].parents
            self._lineages[synset] = tuple(found)
        return self._lineages[synset]

    @cached_property
    def information(self) -> dict[str, float]:
        """The information content of each synset: the negative logarithm of the share of synsets at or below it."""
        below = Counter(one for synset in self.synsets for one in self.lineage(synset))
        return {synset: -float(np.log(count / len(self.synsets))) for synset, count in below.items()}

    def noun_share(self, word: str) -> float:
        """Return the share of nouns among the counted uses of a word; 1 if no use was counted."""
        as_noun = sum(count for _, count in self.senses[word])
        return as_noun / self._uses[word] if self._uses[word] else 1.0


def _synset(line: str) -> tuple[str, Synset]:
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    count = int(fields[3], 16)
    lemmas = tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
    at = 4 + 2 * count
    pointers = [fields[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(fields[at]))]
    parents = tuple(f"n{offset}" for symbol, offset, _, _ in pointers if symbol in ("@", "@i"))
    return f"n{fields[0]}", Synset(lemmas, parents, gloss.strip())


class Classes:
    """The classes of the image network, by number, and their synsets in WordNet."""

    def __init__(self, wordnet: WordNet, synsets: Sequence[str]) -> None:
        self.wordnet = wordnet
        self.synsets = tuple(synsets)
        self.number = {synset: number for number, synset in enumerate(synsets)}
        self.below: dict[str, list[int]] = {}
        """For each synset: the classes at or below it."""
        for number, synset in enumerate(synsets):
            for one in wordnet.lineage(synset):
                self.below.setdefault(one, []).append(number)
        self._information = np.array([wordnet.information[synset] for synset in synsets])

    def groups(self) -> list[Group]:
        """Return the groups of classes, the largest first."""
        candidates = sorted(
            synset
            for synset, members in self.below.items()
            if synset not in self.number and LEAST_MEMBERS <= len(members) <= MOST_MEMBERS
        )
        found: list[tuple[set[int], list[str]]] = []
        for synset in sorted(candidates, key=lambda synset: -len(self.below[synset])):
            members = set(self.below[synset])
            overlaps = [len(members & other) / len(members | other) for other, _ in found]
            if overlaps and max(overlaps) >= MERGED_ABOVE:
                found[overlaps.index(max(overlaps))][1].append(synset)
            else:
                found.append((members, [synset]))
        return [Group(frozenset(members), tuple(synsets)) for members, synsets in found]

    def kinship(self, synset: str) -> npt.NDArray[np.float64]:
        """Return the similarity (classes,) of a synset to each class by their nearest common ancestor: 0 to 1."""
        information = self.wordnet.information
        best = np.zeros(len(self.synsets))
        for one in self.wordnet.lineage(synset):
            if one in self.below:
                best[self.below[one]] = np.maximum(best[self.below[one]], information[one])
        kinship: npt.NDArray[np.float64] = 2 * best / (information[synset] + self._information)
        return kinship


class Lexicon:
    """What words mean in terms of classes and groups.

    A row has up to `MOST_CLASSES` of them with their shares. What the network knows has the share 1: a class and
    everything below it in WordNet, a group, or the few classes below a synset in equal parts. Other things
    with a definition get the classes nearest to them, with shares that say how near they are.
    """

    def __init__(
        self,
        classes: Classes,
        groups: Sequence[Group],
        definitions: Mapping[str, str],
        meanings: npt.NDArray[np.float64],
        embed: Callable[[list[str]], Floats],
    ) -> None:
        """Use the texts `name: definition` of synsets, and the embeddings (classes, 384) of those of the classes."""
        self._classes = classes
        self._group = {synset: number for number, group in enumerate(groups) for synset in group.synsets}
        self._rows: dict[Row, int] = {}
        self._by_similarity: dict[str, Row | None] = {}
        self._mean = meanings.mean(0)
        self._meanings = unit(meanings - self._mean)
        self._definitions = definitions
        self._embed = embed

    def _known(self, synset: str) -> Row | None:
        classes = self._classes
        for one in classes.wordnet.lineage(synset):
            if one in classes.number:
                return ((classes.number[one], _lexicon.SHARE_UNITS),)
        if synset in self._group:
            return ((len(classes.synsets) + self._group[synset], _lexicon.SHARE_UNITS),)
        members = classes.below.get(synset, [])
        if members and len(members) < LEAST_MEMBERS:
            return tuple((member, _lexicon.SHARE_UNITS // len(members)) for member in members)
        return None

    def _like(self, synset: str) -> Row | None:
        if synset not in self._definitions or synset in self._classes.below:
            return None
        if synset not in self._by_similarity:
            meaning = unit(self._embed([self._definitions[synset]])[0] - self._mean)
            similarity = self._meanings @ meaning + KINSHIP_WEIGHT * self._classes.kinship(synset)
            shares = softmax((similarity / SIMILARITY_TEMPERATURE).astype(np.float32))
            nearest = np.argsort(-shares, kind="stable")[: _lexicon.MOST_CLASSES]
            row = tuple((int(one), int(shares[one] * _lexicon.SHARE_UNITS)) for one in nearest)
            self._by_similarity[synset] = row if shares[nearest].sum() >= MIN_SIMILARITY else None
        return self._by_similarity[synset]

    def _row(self, word: str) -> Row | None:
        senses = self._classes.wordnet.senses[word]
        total = sum(count for _, count in senses)
        usual = [
            (rank, one, count)
            for rank, (one, count) in enumerate(senses, 1)
            if (count + 1) / (total + 1) >= LEAST_SHARE_OF_SENSE
        ]
        # If no use was counted, the order has no meaning.
        known = [
            (count, row)
            for rank, one, count in usual
            if (rank <= KNOWN_RANK or total == 0) and (row := self._known(one))
        ]
        if known:
            most = max(count for count, _ in known)
            rows = [row for count, row in known if count == most]
            shares: Counter[int] = Counter()
            for row in rows:
                shares.update({member: share // len(rows) for member, share in row})
            return tuple(shares.most_common(_lexicon.MOST_CLASSES))
        for rank, synset, _ in usual:
            if rank <= SIMILAR_RANK and (row := self._like(synset)):
                return row
        return None

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the arrays that `Lexicon` of the encoder reads: sorted keys of words, and the rows of the words."""
        wordnet = self._classes.wordnet
        found: dict[int, tuple[int, int]] = {}

        def add(phrase: str, row: int, noun: bool) -> None:
            words = _lexicon.words(phrase)
            if 0 < len(words) <= _lexicon.LONGEST_NAME:
                found.setdefault(_lexicon.word_key(" ".join(words)), (row, noun))

        by_word = {}
        for word in sorted(wordnet.senses):
            if word in FUNCTION_WORDS or len(word) < 2 or not word[0].isalnum():
                continue
            if row := self._row(word):
                number = self._rows.setdefault(row, len(self._rows))
                by_word[word] = number, wordnet.noun_share(word) >= LEAST_SHARE_OF_NOUN
                add(word, *by_word[word])
        for plural, singular in wordnet.irregular:
            if singular in by_word and plural not in FUNCTION_WORDS and plural not in wordnet.senses:
                add(plural, *by_word[singular])
        members = np.zeros((len(self._rows), _lexicon.MOST_CLASSES), np.int16)
        shares = np.zeros((len(self._rows), _lexicon.MOST_CLASSES), np.int8)
        for row, number in self._rows.items():
            for place, (one, share) in enumerate(row):
                members[number, place], shares[number, place] = one, share
        keys = np.array(sorted(found), np.int64)
        return {
            "word_keys": keys,
            "word_rows": np.array([found[key][0] for key in keys.tolist()], np.int16),
            "word_nouns": np.array([found[key][1] for key in keys.tolist()], np.int8),
            "row_members": members,
            "row_shares": shares,
        }
