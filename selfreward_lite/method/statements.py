"""Statements of a score or of a winner in a judge's text, however a model writes them.

A statement stands at the beginning of a sentence: `Score: 4`, `**Final score:** 4/5`, `Winner: A`.
What is inside a sentence, as a quotation is, is no statement. Thoughts of a reasoning model do not
count, and nothing counts behind a thought that does not end.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, TypeVar

Value = TypeVar("Value")

_THOUGHT = r"think|thinking|thought|reasoning|reflection|analysis"
_THOUGHT_END = re.compile(
    rf"</(?:{_THOUGHT})>|\[/think\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_THOUGHT_BEGIN = re.compile(
    rf"<(?:{_THOUGHT})>|\[think\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>analysis",
    re.IGNORECASE,
)
# Tokens that end a turn, written as text; what follows one is another turn.
_TURN_END = re.compile(
    r"<\|(?:eot_id|im_end|endoftext|end|end_of_text|return|end_of_solution)\|>|</s>"
    r"|<end_of_turn>|\[END\]"
)
_TOKEN = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|</?(?:answer|output|result|b|strong|i|em|p|br|h[1-6]) ?/?>",
    re.IGNORECASE,
)
_STRUCK_OUT = re.compile(r"~~(?=[^\s~])[^~\n]*~~")
_FENCE_OR_RULE = re.compile(r"[`~]{3,}\w*|[-*_=#|: ]{3,}")
_LATEX = re.compile(r"\\(?:text|boxed|mathbf|textbf|mathrm)\b|\\[\[\]()]|\$")
_LIST_MARK = re.compile(r"(?:step\s+)?\d{1,2}\s*[.):]\s+|[a-h]\)\s+|[-+•→–]\s+", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?。])\s+")
_MARKUP = "#>*_=`~ \t"
_QUOTES = "\"'“”„«»‘’[](){}<>"
_LEAD = re.compile(
    r"(?:(?:therefore|thus|hence|so|overall|all in all|in total|to sum up|in summary"
    r"|in conclusion)\b[,:]?\s*|(?:based on|given|considering)\b[^,.!?]{1,80},\s*"
    r"|(?:(?:final )?(?:verdict|judge?ment|evaluation|assessment)|final answer)\s*:\s*)",
    re.IGNORECASE,
)

_FOREIGN_NAME = (  # those that mean nothing but a score
    r"(?:gesamt)?punktzahl|pontuação|puntuación(?:\s+final)?|puntaje|punteggio|note\s+finale|puan"
    r"|(?:итоговая\s+)?оценка|总分|總分|(?:最终|最終)?(?:得分|评分|評分)|スコア|(?:최종\s*)?점수|điểm"
)
_SCORE_NAME = (
    r"(?:the\s+|my\s+)?(?:(?:final|total|overall|new|updated|revised)\s+)?(?:evaluation\s+)?"
    r"(?:score|rating|grade)(?:\s*[(\[]\s*(?:0\s*[-–]\s*5|out of 5)\s*[)\]])?"
    r"(?:\s+(?:for|of)\s+(?:the|this)\s+(?:response|answer|reply))?"
    rf"|{_FOREIGN_NAME}"
)
_WEAK_NAME = r"(?:final\s+)?total(?:\s+points)?|note"  # also begins other sentences
_SEPARATOR = r"\s*(?:[:=→]|\bis\b|\bof\b|\bwould\s+be\b|[-–—](?=\s))\s*"
_WORD = r"(?:zero|one|two|three|four|five)"
_NUMBER = rf"(?P<number>\d{{1,2}}(?:[.,]\d{{1,2}})?|{_WORD})"
_OF_FIVE = (
    r"(?:/|out\s+of(?:\s+a)?(?:\s+possible|\s+maximum(?:\s+of)?)?|of|de|von|van|sur)"
    r"\s*(?:5(?:\.0)?|five)(?![\d%]|[.,/]\d)"
)
_UNIT = r"(?:points?|pts|stars?|punkten?|점|分|点|點)"
_TAIL = (
    rf"(?:\s*{_UNIT})?(?:\s*\(?\s*{_OF_FIVE}\s*\)?)?(?:\s*(?:possible\s+)?{_UNIT})?(?:\s*\(\d/5\))?"
)
_SUM = r"(?:\d(?:[.,]5)?(?:\s*\+\s*\d(?:[.,]5)?)+\s*=\s*)?"
# Behind a score that stands first: a reason, but no other number that could be meant.
_HEDGE = (
    rf"(?:\b(?:if|once|would|could|(?:or|to|maybe|perhaps|possibly|rather|no,|an?|be|better|than)\s+"
    rf"(?:an?\s+)?{_WORD}|other\s+(?:answer|response|reply))\b|\(\s*not\s*\)?\Z)"
)
_REASON = (
    rf"(?:(?!.*{_HEDGE})(?:\s+-\s+(?!{_WORD}\b)\D*|\s+\([^\d()]*\)?"
    r"|\s+(?:because|since|as\s+(?:it|the|this|there|no)\b)\D*))?"
)
_SCORE = re.compile(
    rf"(?:(?:{_SCORE_NAME}|{_WEAK_NAME})(?:{_SEPARATOR}))+{_SUM}{_NUMBER}{_TAIL}{_REASON}",
    re.IGNORECASE | re.DOTALL,
)
_NOTE = re.compile(rf"note{_SEPARATOR}{_NUMBER}\s*{_UNIT}?\Z", re.IGNORECASE)
_IT = r"(?:it|this|(?:this|the)\s+(?:response|answer|reply))"
_SCORE_OF = r"(?:an?\s+)?(?:(?:total|final|overall)\s+)?(?:score|rating|grade)\s+of\s+"
_GIVING = r"(?:giv|rat|grad|award|assign|scor)(?:e|ing)?"
_GIVEN = re.compile(
    rf"(?:(?:i\s+(?:would\s+|will\s+|am\s+)?|i'd\s+){_GIVING}\s+"
    rf"(?:{_IT}\s+(?:(?:with|as)\s+)?(?:{_SCORE_OF}|an?\s+)?|{_SCORE_OF})"
    rf"|{_IT}\s+(?:gets|receives|earns|deserves|scores)\s+(?:{_SCORE_OF}|an?\s+)?)"
    rf"{_NUMBER}{_TAIL}",
    re.IGNORECASE,
)
# Points without "of five" may be only one of several that are added up.
_ADDED = re.compile(rf"(?!.*{_OF_FIVE}).*\b(?:points?|pts|stars?)\b", re.IGNORECASE)
_BARE = re.compile(rf"(?P<number>[0-5](?:[.,]\d{{1,2}})?)\s*{_OF_FIVE}", re.IGNORECASE)
_BARE_LINE = re.compile(rf"{_NUMBER}{_TAIL}", re.IGNORECASE)
_NAME_ONLY = re.compile(rf"(?:{_SCORE_NAME})\s*:?", re.IGNORECASE)
# Says what a score is, unlike "The score is based on …".
_NAMED = re.compile(
    rf"(?:{_SCORE_NAME})(?:\s*[:=→]|(?:{_SEPARATOR})"
    r"(?:(?:not|now|still|only|about|around|roughly|at\s+(?:least|most)|between|an?)\s+)*"
    rf"\W{{0,3}}(?:\d|{_WORD}\b))",
    re.IGNORECASE,
)
_OTHER_SCALE = re.compile(
    r"\bout\s+of\s*:?\s*(?:10|ten|100|a\s+hundred)\b|(?:^|\s)/\s*(?:10|100)\b"
    r"|\b(?:scale|score\s+range)\W{1,3}(?:(?:of|from|is)\s+)?(?:\d+|one|zero)\s*(?:to|[-–])"
    r"\s*(?!5\b|five\b)\w|\bscale\s+of\s+(?:10|ten|20|100|a\s+hundred)\b"
    r"|\b(?:(?!5\b)\d+|three|four|six|seven|ten|hundred)[-\s]point\s+scale\b"
    r"|\bmax(?:imum)?(?:\s+(?:score|points?|possible))*\s*[:=|]\s*(?!5\b)\d"
    r'|"(?:max\w*|out_of|scale\w*|total|possible|of)"\s*:\s*"?(?!5\b)\d',
    re.IGNORECASE,
)
# "Total: 3" may count other things: mistakes, or the points of criteria on scales of their own.
_TOTAL_LAST = re.compile(r"\btotal\W{1,4}\d\W*\Z", re.IGNORECASE)
_COUNTED = re.compile(
    r"[:=|]\s*(?:[2-9]|\d\d)\b|\b(?:[2-9]|\d\d)\s+(?:errors?|mistakes?|slips?|typos?|faults?)\b",
    re.IGNORECASE,
)
# What a sentence says that goes on into a score which the judge does not give: nobody's, or a form.
_GOES_ON = re.compile(r"\w\Z|(?<!score)(?<!rating)(?<!grade)(?<!verdict)\?\Z", re.IGNORECASE)
_NOT_MEANT = re.compile(
    r"(?:\b(?:if|suppose|imagine|should|(?:would|could)(?!\s+be\b))\b.*:"
    r"|\b(?:would|could|might|never|not|cannot|\w+n't)\b.*"
    r"\b(?:be|get|give|give\s+it|deserve|earn|receive|say|write)|\b(?:far\s+from|anything\s+but)"
    r"|\b(?:for\s+example|(?:of|in)\s+(?:the|this)\s+form(?:at)?):?)\Z",
    re.IGNORECASE,
)
_SCORE_ANYWHERE = re.compile(
    r"(?:s[\W_]?c[\W_]?o[\W_]?r[\W_]?e|rating|grade"
    rf"|{_FOREIGN_NAME})\W{{0,4}}[:=]\W{{0,4}}(\d{{1,2}}(?:[.,]\d{{1,2}})?)",
    re.IGNORECASE,
)
_FRACTION_ANYWHERE = re.compile(rf"\b(?:[0-5](?:[.,]\d)?|{_WORD})\s*{_OF_FIVE}", re.IGNORECASE)
# A later thought about what was said first; the new number, or letter, follows.
_REVISION = (
    r"(?:\bon\s+(?:reflection|second\s+thoughts?)\b|\b(?:correct(?:ing|ion)|revis(?:e|ed|ing))\b"
    r"|\breconsider|\bchang(?:e|ed|ing)\s+(?:my|this|it)\b"
    r"|\bi(?:'d|\s+would|\s+will|\s+now)?\s+(?:raise|lower|adjust|increase|reduce|change)\b"
    r"|\b(?:it|this|score|rating|grade)\s+should\s+(?:\w+\s+)?(?:be|get|have)\b"
    r"|(?:^|[.!?]\s)[^\w\n]*(?:no,|hmm+\b|wait\b|actually\b|sorry\b|or\b|so\b))[^.!?\n]*?"
)
_TAKEN_BACK = re.compile(
    r"\b(?:kidding|joking|oops|first\s+(?:thought|impression)|that\s+was\s+(?:only\s+)?(?:an|the)\s+example"
    r"|(?:ignore|disregard|forget)\s+(?:that|this|my|the)\b.{0,60}?\b(?:score|rating|verdict|above)"
    r"|(?:too|un)\s*(?:kind|generous|harsh|lenient|fair))\b",
    re.IGNORECASE,
)
_NEW_SCORE = re.compile(rf"{_REVISION}\b(?:[0-5]|{_WORD})\b", re.IGNORECASE | re.MULTILINE)
_NEW_WINNER = re.compile(rf"(?i:{_REVISION})\b[AB]\b", re.MULTILINE)
# Another number behind a score: at the end of a short sentence, or what the answer is to get.
_SHORT = 8  # words
_LAST_NUMBER = re.compile(rf"(?<![\d.,+])(\d{{1,3}}(?:[.,]\d)?|{_WORD})\W*\Z", re.IGNORECASE)
_GETS = re.compile(
    r"(?<!not )(?<!n't )(?<!to )(?<!would )(?<!could )(?<!might )"
    rf"\b(?:gets?|earns?|deserves?|receives?|worth|sum\s+is|scores)\b[^.!?,;]{{0,30}}?"
    rf"\b([0-5]|{_WORD})\b(?!\s+points?\s+for\b)",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"(?!.*(?:score|rating|grade|total|overall|verdict))[^:.!?]{1,40}:", re.IGNORECASE
)
_ORNAMENTS = {"Cf", "So"}  # what has no width; stars, emoji and other symbols
_KEYCAP = "\ufe0f\u20e3"  # behind a digit or a symbol, makes an emoji of it
_LOOK_ALIKES = str.maketrans("ѕсоегЅСОЕοΟΕ", "scoerSCOEoOE")
_JSON_SCORE = re.compile(
    r'"(?:final_|total_|overall_)?(?:score|rating|grade)"\s*:\s*"?(\d(?:\.\d+)?)"?\s*[,}]',
    re.IGNORECASE,
)
# Quotes and brackets around a value: "4", [[4]], <4>, {4}; of "(4/5)", only the first.
_WRAPPED = re.compile(
    r"(?<=[\s:=])[\"'“”„«»‘\[{`*]+(?=\w)|(?<=[\s:=])<(?=\w[^<>]*>)|(?<=[:=])\s*\((?=\w)"
    r"|(?<=\w)[\"'”“»’\]}>`*]+(?!\w)"
)
_WORDS = {"zero": 0.0, "one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0}


@dataclass(frozen=True)
class Statement(Generic[Value]):
    """What a sentence states, None where that is no score or winner; and where it stands.

    `is_last`: nothing follows it in the text, and nothing before it says that it is not meant;
    `is_first`: nothing is before it. `is_as_asked`: in the form that the judge was asked for,
    "Score:" or "Winner:".
    """

    value: Value | None
    is_first: bool
    is_last: bool
    is_as_asked: bool


def find_scores(text: str, *, cut: bool = True) -> list[Statement[float]]:
    """Return what a text states as its score, in order; `cut`: up to the end of the turn.

    >>> [(one.value, one.is_last) for one in find_scores("Score: 3\\nSo it is.\\nScore: 9")]
    [(3.0, False), (None, True)]
    >>> find_scores('It says "Score: 5".')
    []
    """
    return _find(_visible(text, cut=cut), _state_score, _NAME_ONLY, _BARE_LINE, "Score")


def find_repeatable_scores(judged: str) -> set[float | None]:
    """Return every score that a judged text states, so that its judge may only be repeating it.

    None stands for one outside [0, 5].

    >>> find_repeatable_scores("I think it says 'score = 4', no more")
    {4.0}
    """
    stated = map(_to_score, _SCORE_ANYWHERE.findall(fold_letters(judged)))
    return {*stated, *(one.value for one in find_scores(judged))}


def has_fraction(text: str) -> bool:
    """Return whether a text has a number "out of five" anywhere, as "4/5" or "five of five"."""
    return bool(_FRACTION_ANYWHERE.search(fold_letters(text)))


def names_other_scale(text: str) -> bool:
    """Return whether a text speaks of another scale than that up to five.

    >>> names_other_scale("On a scale of 1 to 10:"), names_other_scale("On a scale of 0 to 5:")
    (True, False)
    """
    return bool(_OTHER_SCALE.search(_visible(text, cut=True)))


def counts_other_things(text: str) -> bool:
    """Return whether a text ends with a total that may be none of points.

    >>> [counts_other_things(f"{one}\\nTotal: 3") for one in ("Grammar: 2\\nSpelling: 1", "Good.")]
    [True, False]
    """
    plain = _visible(text, cut=True)
    total = _TOTAL_LAST.search(plain)
    return bool(total and _COUNTED.search(plain[: total.start()]))


def is_score_revised(text: str, value: float) -> bool:
    """Return whether a text, which begins with the score `value`, may go on to another one.

    >>> more = "Actually, a 3.", "Final: 3", "It is worth a 3, no more.", "It has 3 faults."
    >>> [is_score_revised(f"Score: 2. {one}", 2) for one in more]
    [True, True, True, False]
    """
    plain = _visible(text, cut=True)
    if _NEW_SCORE.search(plain) or _TAKEN_BACK.search(plain):
        return True
    parts: list[float] = []
    for sentence in list(_split(plain, _NAME_ONLY, _BARE_LINE, "Score"))[1:]:
        if any(_to_number(one) != value for one in _GETS.findall(sentence)):
            return True
        if len(sentence.split()) <= _SHORT:
            without_scale = re.sub(rf"\s*{_OF_FIVE}", "", sentence, flags=re.IGNORECASE)
            parts += map(_to_number, _LAST_NUMBER.findall(without_scale))
    return any(one != value for one in parts) and sum(parts) != value  # else they add up to it


def is_winner_revised(text: str) -> bool:
    """Return whether a text, which begins with a winner, may go on to the other one."""
    plain = _visible(text, cut=True)
    return bool(_NEW_WINNER.search(plain) or _TAKEN_BACK.search(plain))


def fold_letters(text: str) -> str:
    """Return a text without invisible characters, and with Latin letters for those that look so."""
    plain = unicodedata.normalize("NFKC", text).translate(_LOOK_ALIKES)
    unseen = (
        letter
        for letter in set(plain)
        if not letter.isspace() and unicodedata.category(letter) in ("Cf", "Cc")
    )
    return plain.translate(dict.fromkeys(map(ord, unseen)))


def find_winners(text: str, noun: str, *, cut: bool = True) -> list[Statement[str]]:
    """Return whom a text states as the winner, "A" or "B", in order; `cut` as in `find_scores`.

    >>> [one.value for one in find_winners("Winner: Response A\\nWinner: tie", "Response")]
    ['A', None]
    """
    spelling = {"Judgement": "judge?ment", "Response": "response"}[noun]
    side = rf"(?:{spelling}\s+)?([ab])(?![\w'])"
    named = re.compile(
        rf"(?:the\s+)?(?:winner|better\s+{spelling})(?:\s*[:=]|\s+is|\s+[-–—])\s*{side}",
        re.IGNORECASE,
    )
    spoken = re.compile(
        rf"{spelling}\s+([ab])\s+(?:wins|is\s+(?:the\s+)?(?:better|winner))"
        rf"(?:\s+(?:one|{spelling}))?",
        re.IGNORECASE,
    )
    boxed = re.compile(r"\[\[([ab])\]\]", re.IGNORECASE)
    says_winner = re.compile(r"(?:the\s+)?winner(?:\s*[:=]|\s+is\b)|\[\[", re.IGNORECASE)

    def state(sentence: str) -> str | None | bool:
        plain = sentence.strip(_MARKUP + ".!。")
        if whole := boxed.fullmatch(plain):
            return whole.group(1).upper()
        bare = _strip(_WRAPPED.sub("", sentence))
        for form in (named, spoken):
            if found := form.fullmatch(bare):
                return found.group(1).upper()
        return None if says_winner.match(bare) or boxed.search(sentence) else False

    name_only = re.compile(r"winner\s*:?", re.IGNORECASE)
    value_only = re.compile(side, re.IGNORECASE)
    return _find(_visible(text, cut=cut), state, name_only, value_only, "Winner")


def _find(
    text: str,
    state: Callable[[str], Value | None | bool],
    name_only: re.Pattern[str],
    value_only: re.Pattern[str],
    name: str,
) -> list[Statement[Value]]:
    """Find the sentences for which `state` gives a value or None; False is no statement."""
    sentences = list(_split(text, name_only, value_only, name))
    found = []
    for number, sentence in enumerate(sentences):
        value = state(sentence)
        if not isinstance(value, bool):
            is_first, is_last = number == 0, number == len(sentences) - 1
            if number and _is_not_meant(sentences[number - 1], sentence):
                is_last = False
            is_as_asked = _strip(sentence).casefold().startswith(f"{name}:".casefold())
            found.append(Statement(value, is_first, is_last, is_as_asked))
    return found


def _is_not_meant(before: str, sentence: str) -> bool:
    """Whether the sentence before a statement makes it nobody's: "If it were right:", or a form.

    Numbers alone, as "4/5", are also an answer to a question, or the end of another sentence.
    """
    before = before[-200:].rstrip(_MARKUP + _QUOTES)
    if sentence[:1].isdigit() and _GOES_ON.search(before):
        return True
    return bool(_NOT_MEANT.search(before))


def _split(
    text: str, name_only: re.Pattern[str], value_only: re.Pattern[str], name: str
) -> Iterator[str]:
    """The sentences of a text, without thoughts, markup and ornaments.

    A name, or another label, on a line of its own is put before the values on the next ones.
    """
    lines = [_clean(line) for line in text.splitlines()]
    lines = [line for line in lines if line]
    at = 0
    while at < len(lines):
        line, after = lines[at], lines[at + 1] if at + 1 < len(lines) else ""
        at += 1
        is_name = name_only.fullmatch(_strip(line))
        if (is_name or _LABEL.fullmatch(line)) and value_only.fullmatch(_strip(after)):
            values = [*takewhile(value_only.fullmatch, map(_strip, lines[at:]))]
            yield f"{f'{name}:' if is_name else line} {' '.join(values)}"
            at += len(values)
        elif _JSON_SCORE.search(line):
            yield line
        else:
            yield from (one for one in _SENTENCE_END.split(line) if one.strip(_MARKUP + _QUOTES))


def _visible(text: str, *, cut: bool) -> str:
    """A text in plain characters, without thoughts; with `cut`, up to the end of the turn.

    What comes before the end of a thought is one; nothing is visible if a thought does not end.
    """
    ends = list(_THOUGHT_END.finditer(text))
    if ends:
        text = text[ends[-1].end() :]
    if _THOUGHT_BEGIN.search(text):
        return ""
    turn_end = _TURN_END.search(text) if cut else None
    text = text[: turn_end.start()] if turn_end else _TURN_END.sub("\n", text)
    text = re.sub(r"<(score|rating)>", r"\1: ", text, flags=re.IGNORECASE)
    text = re.sub(r"</(?:score|rating)>", "", text, flags=re.IGNORECASE)
    text = _STRUCK_OUT.sub("", _TOKEN.sub("", text)).replace("’", "'")
    text = re.sub(r"【(\w+)】", r"\1: ", text)
    text = re.sub(r"\[RESULT\]\s*(?:score\s*:)?", "\nScore: ", text)
    return _plain(text)


def _plain(text: str) -> str:
    """A text without ornaments, and with digits 0 to 9 for those of other scripts."""
    text = unicodedata.normalize("NFKC", text)
    shown: dict[int, str | None] = {}
    for letter in set(text):  # a long text has few different ones
        if unicodedata.category(letter) in _ORNAMENTS or letter in _KEYCAP:
            shown[ord(letter)] = None
        elif letter.isdecimal():
            shown[ord(letter)] = str(unicodedata.decimal(letter))
    return text.translate(shown)


def _clean(line: str) -> str:
    """A line without marks of headings, lists, quotes and tables; empty for a rule or a fence."""
    line = line.replace("**", "").replace("__", "").strip()
    if "\\" in line or line.startswith("$"):
        line = re.sub(r"[{}]", "", _LATEX.sub("", line)).strip()
    if _FENCE_OR_RULE.fullmatch(line):
        return ""
    if line.startswith("|"):
        line = ": ".join(cell.strip() for cell in line.strip("|").split("|"))
    line = line.lstrip(_MARKUP)
    while mark := _LIST_MARK.match(line):
        line = line[mark.end() :].lstrip(_MARKUP)
    return line.strip()


def _strip(sentence: str) -> str:
    """A sentence without the marks and quotes around it, and without the words that lead to it."""
    bare = sentence.strip(_MARKUP + _QUOTES + ".!。;")
    return _LEAD.sub("", bare, count=1) if _LEAD.match(bare) else bare


def _state_score(sentence: str) -> float | None | bool:
    """The score that a sentence states, None for one that is none, False for no statement."""
    if len(stated := _JSON_SCORE.findall(sentence)) == 1 and sentence.startswith("{"):
        return _to_score(stated[0])
    bare = _strip(_WRAPPED.sub("", sentence))
    forms: Sequence[re.Pattern[str]] = (_SCORE, _GIVEN, _BARE)
    for form in forms:
        if (found := form.fullmatch(bare)) and not _NOTE.match(bare):
            is_added = form is _GIVEN and _ADDED.match(bare)
            return False if is_added else _to_score(found.group("number"))
    return None if _NAMED.match(bare) else False


def _to_score(number: str) -> float | None:
    """The score of a number or a word; None outside [0, 5], and between 0 and ½: another scale."""
    value = _to_number(number)
    return value if value <= 5 and not (0 < value < 1 and value != 0.5) else None


def _to_number(number: str) -> float:
    value = _WORDS.get(number.casefold())
    return float(number.replace(",", ".")) if value is None else value
