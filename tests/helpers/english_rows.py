"""Questions with a good and a bad answer, as ranked messages in OASST1's schema."""

import json
from pathlib import Path

ROWS = (
    (
        "Why is the sky blue?",
        "Air scatters the blue part of sunlight more than the red part, so blue light reaches us "
        "from every direction of the sky.",
        "Because it is.",
    ),
    (
        "How do I boil an egg?",
        "Put the egg into boiling water. After six minutes the yolk is soft, after ten it is firm. "
        "Cool it in cold water before you peel it.",
        "Eggs come from hens, and hens live on farms.",
    ),
    (
        "What does a list comprehension do in Python?",
        "It builds a list from a loop in one line. For example, [x * x for x in range(5)] gives "
        "[0, 1, 4, 9, 16].",
        "It comprehends lists.",
    ),
    (
        "Name three rivers in Europe.",
        "Three rivers in Europe are the Danube, the Rhine and the Loire.",
        "The Nile, the Amazon and the Danube.",
    ),
    (
        "How can I fall asleep faster?",
        "Go to bed at the same time every day, keep the room dark and cool, and put screens away "
        "an hour before.",
        "Drink a strong coffee and watch a film.",
    ),
    (
        "What is the difference between weather and climate?",
        "Weather is what happens today or this week. Climate is the average over many years.",
        "They are two words for rain.",
    ),
    (
        "Write a short thank-you note to a neighbor.",
        "Dear neighbor, thank you for watering my plants while I was away. They look better than "
        "before. I owe you a cake!",
        "Thanks.",
    ),
    (
        "How many days does a leap year have?",
        "A leap year has 366 days, because February has 29 days instead of 28.",
        "A leap year has 364 days.",
    ),
    (
        "Why do leaves turn red in autumn?",
        "Trees take the green chlorophyll back before winter. Other pigments, yellow and red, then "
        "become visible.",
        "They are embarrassed to lose their leaves.",
    ),
    (
        "Give me a simple recipe for pancakes.",
        "Mix one cup of flour, one cup of milk, one egg and a pinch of salt. Fry thin portions in "
        "a hot pan until both sides are golden.",
        "Buy pancakes.",
    ),
    (
        "What is a noun?",
        "A noun is a word that names a person, a place, a thing or an idea, such as teacher, Rome, "
        "table or freedom.",
        "A noun is a word for an action, such as to run.",
    ),
    (
        "How do vaccines work?",
        "A vaccine shows the immune system a harmless part of a germ. The body learns to recognize "
        "it, and can fight the real germ later.",
        "They heal people who are ill.",
    ),
    (
        "Which planet is the largest in our solar system?",
        "Jupiter is the largest planet. It has twice the mass of all the others together.",
        "The sun is the largest planet.",
    ),
    (
        "How do I make a strong password?",
        "Use a long phrase of several unrelated words, a different one for each site, and keep "
        "them in a password manager.",
        "Use your name and 123.",
    ),
    (
        "Explain what a fraction is to a child.",
        "If you cut a pizza into four equal parts and eat one, you have eaten one fourth. A "
        "fraction says how many parts of a whole you have.",
        "A fraction is a quotient of integers.",
    ),
    (
        "Why should I back up my files?",
        "Disks fail, and laptops get lost. With a copy in another place, you lose nothing.",
        "You should not, it takes time.",
    ),
    (
        "What causes the tides?",
        "Mostly the moon. Its gravity pulls the water of the oceans, and as the earth turns, the "
        "water rises and falls twice a day.",
        "Tides come from ships that move in the harbor.",
    ),
    (
        "Suggest a name for a small bakery.",
        "How about 'The Morning Crumb'? It sounds warm and tells people what you sell.",
        "Bakery.",
    ),
    (
        "How do I remove a coffee stain from a shirt?",
        "Rinse it with cold water at once, rub in a little dish soap, wait ten minutes, and wash "
        "it as usual.",
        "Paint the rest of the shirt brown.",
    ),
    (
        "What is the capital of Australia?",
        "The capital of Australia is Canberra.",
        "The capital of Australia is Sydney.",
    ),
)


def write_ranked(path: Path) -> Path:
    """Write ROWS as message trees, an answer of rank 0 and one of rank 1 each; returns `path`."""
    with path.open("w", encoding="utf-8") as file:
        for number, (question, good, bad) in enumerate(ROWS):
            root = {"message_id": f"q{number}", "parent_id": None, "role": "prompter"}
            messages = [root | {"text": question, "rank": None}]
            for rank, text in enumerate((good, bad)):
                answer = {"message_id": f"a{number}-{rank}", "parent_id": root["message_id"]}
                messages.append(answer | {"role": "assistant", "text": text, "rank": rank})
            for message in messages:
                common = {"lang": "en", "message_tree_id": root["message_id"], "deleted": False}
                file.write(json.dumps(message | common | {"review_result": True}) + "\n")
    return path


def write_prompts(path: Path) -> Path:
    """Write prompts that no ranked row asks; returns `path`."""
    asked = (
        "Describe a lighthouse at night in two sentences.",
        "What can I cook with rice, eggs and an onion?",
        "Give a shy person three tips for a first day at work.",
        "Explain how a bicycle keeps its balance.",
        "Write a short poem about an old train station.",
        "Which plants grow well in a dark room?",
        "How do I say no to a friend in a polite way?",
        "What should a visitor know about the desert?",
    )
    path.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in asked), "utf-8")
    return path
