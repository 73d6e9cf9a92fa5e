"""Tables in other code pages than Windows-1252, which they can be read as."""

import pytest

from selfreward_lite.data.data_files import read_rows
from selfreward_lite.data.prompt_rows import extract_prompts
from selfreward_lite.system.errors import DataError

OTHERS = [
    ("cp1254", "Bana bir şiir yaz.\nIşık nedir?\nAğaç neden yeşildir?"),
    ("cp1254", "Yelkenlinin rüzgâra karşı nasıl gittiğini açıkla.\nIşık nedir?"),
    ("cp1257", "Kas yra žvaigždė ir kodėl ji šviečia?\nParašyk eilėraštį apie jūrą."),
    ("cp1250", "Napiš báseň o moři.\nCo je to světlo?"),
    ("cp1250", "Vysvětli, proč je nebe modré a jak vzniká světlo v létě."),
    ("cp1250", "Írj verset az őszről.\nMi a fény?"),
    ("cp1250", "Scrie o poezie despre mare şi ţară.\nCe este lumina?"),
]
WESTERN = [
    "Warum ist der Himmel blau? Erkläre es für Kinder, bitte, in schönen Sätzen über das Öl.",
    "Où est passé l’été? Écris à ta sœur; c’est sûr, ça coûte très cher, élève, naïve, goût.",
    "¿Qué es la montaña más alta? El niño comió jamón en el 1º piso; pingüino.",
    "O que são corações? Põe a mesa, irmão, você não está só: avó, avô, à noite, leões.",
    "Skriv en dikt om sjön på våren för en älskad vän.",
    "Skriv et dikt om sjøen på våren. Hvad er kærlighed, og hvorfor er æblet rødt?",
    "Hvað er ljós? Skrifaðu ljóð um þjóðina, því það er þýtt og nýtt; lýðveldið Ísland.",
    "Hvað er það?",
    "Kirjoita runo merestä, jossa näkyy yö. Mikä tekee öistä näin pitkiä?",
    "Perché è così? Più città, però la virtù è già lì.",
    "Per què és així? Què més hi ha a la història, acció, àvia, òpera, pingüí?",
    "Mis on sõna? Õpetaja räägib, öö on pikk, küsi mõne sõbra käest.",
]


@pytest.mark.parametrize(("encoding", "text"), OTHERS)
def test_a_table_of_another_language_is_refused(tmp_path, encoding, text):
    (tmp_path / "a.csv").write_bytes(f'prompt;n\n"{text}";1\n'.encode(encoding))
    with pytest.raises(DataError, match="neither UTF-8 nor Windows-1252 .*; save it as UTF-8"):
        read_rows(tmp_path / "a.csv", skip_bad=False)


@pytest.mark.parametrize("text", WESTERN)
def test_a_table_of_western_europe_is_read(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(f'prompt;n\n"{text}";1\n'.encode("cp1252"))
    assert extract_prompts(read_rows(tmp_path / "a.csv", skip_bad=False)) == [text]
