"""Words that a table in another code page gives if it is read as Windows-1252.

Turkish, Baltic, Czech, Hungarian and Romanian letters become letters of Western Europe, but in
places where no language there has them.
"""

import re
from collections.abc import Sequence

_IMPOSSIBLE = re.compile(
    # Letters of Icelandic and Faroese beside letters that these do not have.
    r"(?=.*[þðý]).*[^a-záéíóúýæöøðþ].*"
    r"|ð.+|.*þ(?:[bcdfghklmnpqstxz].*)?"  # Lithuanian, Turkish: never so in Icelandic
    r"|.*[ìù]\w.+|(?=.*[áíóúý]).*[èìòù].*|.*ø[áéí].*"  # Czech
    r"|.*[šž].*[áíýéìèø].*|.*[áíýéìèø].*[šž].*"
    r"|.*[ºª][a-zà-ÿ].*"  # Romanian
)
_SHARE = 20  # one such word of so many with accents
_ICELANDIC = re.compile("[áéíóúæ]")
_TURKISH = re.compile("[çü]")
_HUNGARIAN = re.compile("õ(?!e)|û")  # Portuguese has õ before e alone
_OF_OTHERS = re.compile("[ãàèùçêôâîñåäø]")  # French, Portuguese, Estonian
_ACUTE = re.compile("[áéíóú]")


def find_impossible_words(words: Sequence[str]) -> list[str]:
    """Return the words with accents that no language of Western Europe has, if they are many.

    >>> find_impossible_words(["Bir", "þiir", "açýkla"]), find_impossible_words(["Hvað", "þýðir"])
    (['þiir', 'açýkla'], [])
    """
    accented = [word for word in words if not word.isascii()]
    text = " ".join(accented).casefold()
    if _TURKISH.search(text) and not _ICELANDIC.search(text):
        return [word for word in accented if re.search("[þðý]", word, re.IGNORECASE)]
    odd = [word for word in accented if _IMPOSSIBLE.fullmatch(word.casefold())]
    if len(odd) * _SHARE > len(accented):
        return odd
    hungarian = [word for word in accented if _HUNGARIAN.search(word.casefold())]
    acute = [word for word in accented if _ACUTE.search(word.casefold())]
    # Estonian has õ too, and no acute; French has û, and more of other accents.
    are_many = len(hungarian) * _SHARE > len(accented) and len(acute) >= len(hungarian)
    return hungarian if are_many and not _OF_OTHERS.search(text) else []
