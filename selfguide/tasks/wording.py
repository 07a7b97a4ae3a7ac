"""What an instruction's wording says about labels: which are named, which stand side by side."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from selfguide.metrics.exact import normalise
from selfguide.metrics.words import UNSPACED

_STRAIGHT = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0xAB: '"', 0xBB: '"'}
_FUNCTION_WORDS = (
    "(?-i:a)|an|the|this|that|these|those|it|its|is|are|was|be|as|if|of|in|on|to|for|from|with|by|at|and"
    "|or|nothing|anything|else|otherwise|either|respectively|depending|based|according|them|they"
    "|you|your|we|there|then|so|only|just|any|both|when|where|whether|which|what|who"
)
_QUOTED = r"(?<!\w)(?:'[^'\n]{1,40}'|\"[^\"\n]{1,40}\"|`[^`\n]{1,40}`)(?!\w)"
_WORD = rf"(?!(?:{_FUNCTION_WORDS})\b)\w(?:[\w+#&-]*\w)?"
_ITEM = rf"(?:{_QUOTED}|{_WORD})"
_WORDS = rf"{_WORD}(?:/{_WORD})?"  # in a list with commas "sci/tech" is one member
_PHRASE = rf"(?:{_QUOTED}|{_WORDS}(?:[ ]{_WORDS}){{0,2}})"
_FIRST = rf"(?:(?<=[:(][ ]){_PHRASE}|(?<=[:(]){_PHRASE}|{_ITEM})"
_LAST = rf"(?:{_PHRASE}(?=[ ]*(?:[.;:!?)\n]|$))|{_ITEM})"
_BETWEEN = rf"(?:\s*,\s*{_PHRASE}(?=\s*,|\s+(?:and|or)\b))*"
_CONJOINED = rf"{_FIRST}{_BETWEEN}\s*,?\s+(?P<word>and|or)\s+{_LAST}(?:,?\s+(?P=word)\s+{_LAST})*"
_SLASHED = rf"{_ITEM}(?:\s?[/|]\s?{_ITEM})+"
_COMMAS = rf"{_FIRST}{_BETWEEN}\s*,\s*{_LAST}"
_LISTS = re.compile(rf"{_SLASHED}|{_CONJOINED}|{_COMMAS}", re.IGNORECASE)
_JOINT = re.compile(r"\s*,\s*(?:(?:and|or)\s+)?|\s+(?:and|or)\s+", re.IGNORECASE)
_SLASH = re.compile(r"\s?[/|]\s?")
_BULLETS = re.compile(r"(?:^[ ]*(?:[-*•]|\d+[.)])[ ]+[^\n]+(?:\n|$)){2,}", re.MULTILINE)
_BULLET = re.compile(rf"^[ ]*(?:[-*•]|\d+[.)])[ ]+({_PHRASE})[ ]*(?:$|[:(–.,-])", re.MULTILINE)
_ASKING = re.compile(
    r"\b(?:answer|label|classif|categor|class|output|choos|pick|select|respon|repl|writ|return"
    r"|print|say|either|between|whether|one of|indicat|decid|determin)[^.\n]*$|[:(][ ]*$",
    re.IGNORECASE,
)
_TOLD = re.compile(
    r"\b(?:(?:answer|output|label|say|write|return|print|respond|reply|otherwise|else|be)"
    r"|(?:answer|respond|reply|label|mark)\w*[ ](?:it[ ])?with"
    r"|(?:label|classif|mark|tag|annotat|categori[sz]|answer)\w*[ ](?:(?:it|them)[ ])?as)"
    rf"[ ,:]+({_QUOTED})|({_QUOTED})(?=[ ](?:if|when|otherwise)\b)|\(({_QUOTED})\)",
    re.IGNORECASE,
)
_ILLUSTRATION = re.compile(
    r"(?:\be\.g\.|\b(?:for example|for instance|such as)\b)[^.;!?)\n]*", re.IGNORECASE
)
_RANGE = re.compile(r"(?<![\w.])(\d{1,3})\s*(?:-|–|to|through)\s*(\d{1,3})(?!\w|\.\d)")
_LONGEST_RANGE = 11
_OPPOSITES = (("yes", "no"), ("true", "false"), ("positive", "negative"), ("1", "0"))


def plain(instruction: str) -> str:
    """The instruction with straight quotes and without "such as ..."."""
    return _ILLUSTRATION.sub("", instruction.translate(_STRAIGHT))


def names(instruction: str, label: str) -> bool:
    """Whether an instruction names `label`, or a verb form of it ("supports" for "support").

    A label of one sign or of digits stands in too many texts by chance: it is named only in quotes,
    in a list, in a range, with its meaning ("1 for", "(E)") or where it is what to answer.
    """
    key, text = normalise(label), plain(instruction)
    if len(key) == 1 or key.isdecimal():
        return _singled_out(text, bare(label))
    ending = "(?:s|es|d|ed|ing)?" if key.isalpha() else ""
    words = r"\s+".join(re.escape(word) for word in key.split())
    if re.search(f"[{UNSPACED}]", key):
        return key in text.casefold()
    return bool(re.search(rf"(?<!\w){words}{ending}(?!\w)", text.casefold()))


def beside(instruction: str, known: Collection[str]) -> list[str]:
    """What an instruction offers beside the known labels, as written there.

    A range of numbers; the other members of a list that holds known labels; quoted words that one
    is told to answer; the opposite of a lone "yes", "true", "positive" or "1".

    Args:
        known: labels in normal form; at least one.
    """
    text = plain(instruction)
    numbers = _range(text, known)
    if numbers:
        return numbers
    found = [*_listed(text, known), *_told(text, known)]
    return found or _opposite(text, known)


def bare(label: str) -> str:
    """A label without the quotes and punctuation around it, its case kept."""
    return label.strip("'\"`.,;:!? ") or label


def _singled_out(text: str, label: str) -> bool:
    sign = re.escape(label)
    explained = rf"(?<!\w){sign}\s*(?:for|if|when|means|=|:|\()|\({sign}\)|[\"'`]{sign}[\"'`]"
    members = {bare(item) for items, _ in _lists(text) for item in items}
    told = rf"(?i:\b(?:answer|output|say|write|return|print|label|else|otherwise))\s+{sign}(?!\w)"
    if label in members or re.search(rf"{explained}|{told}", text):
        return True
    return label in _range(text, [label])


def _range(text: str, known: Collection[str]) -> list[str]:
    """The numbers of a range such as "1 to 5" that holds all known labels."""
    for match in _RANGE.finditer(text):
        numbers = [str(number) for number in range(int(match[1]), int(match[2]) + 1)]
        if 2 < len(numbers) <= _LONGEST_RANGE and set(known) <= set(numbers):
            return numbers
    return []


def _lists(text: str) -> Iterator[tuple[list[str], bool]]:
    """The lists of a text: members, and whether it reads like a choice that one is given."""
    for match in _LISTS.finditer(text):
        members: list[str] = []
        pattern = _JOINT if _JOINT.search(re.sub(_QUOTED, "", match[0])) else _SLASH
        joint = ""
        for part in re.split(rf"({_QUOTED})", match[0]):
            if re.fullmatch(_QUOTED, part):
                members.append(part)
                continue
            joint = next(iter(pattern.findall(part)[::-1]), joint)
            members += [item for item in pattern.split(part) if item.strip()]
        before, after = text[: match.start()], text[match.end() :]
        yield members, _is_choice(len(members), joint.strip(" ,\n").lower(), before, after)
    for block in _BULLETS.finditer(text):
        yield _BULLET.findall(block[0]), True


def _is_choice(count: int, joint: str, before: str, after: str) -> bool:
    if joint in ("/", "|"):
        return True
    if joint == "and" and count == 2 and not re.search(r"\bbetween\W*$", before):
        return False
    return bool(_ASKING.search(before)) or after.startswith("?")


def _listed(text: str, known: Collection[str]) -> list[str]:
    """Members of lists that hold two known labels, or the only one in a choice."""
    found = []
    for members, is_choice in _lists(text):
        held = {normalise(member) for member in members} & set(known)
        if len(held) >= 2 or (held and len(known) == 1 and is_choice):
            found += members
    return found


def _told(text: str, known: Collection[str]) -> list[str]:
    """Quoted words that one is told to answer, if a known label is among the quoted words."""
    quotes = {normalise(match[0]) for match in re.finditer(_QUOTED, text)}
    told = ["".join(groups) for groups in _TOLD.findall(text)]
    return told if quotes & set(known) else []


def _opposite(text: str, known: Collection[str]) -> list[str]:
    pairs = {a: b for pair in _OPPOSITES for a, b in (pair, pair[::-1])}
    partner = pairs.get(next(iter(known)), "") if len(known) == 1 else ""
    return [partner] if partner and names(text, partner) else []
