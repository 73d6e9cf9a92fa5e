"""What requests are about: everyday things, and how the requests begin."""

from hashlib import blake2b
from typing import Literal

Part = Literal["training", "ranked", "held_out"]

_THEMES = """
bread, cheese, apple pie, pancakes, green tea, hot chocolate, tomato soup, rice, olive oil,
lemons, garlic, pizza, breakfast, lunch breaks, school lunches, family dinners, picnics, cooking,
baking, barbecues, spices, ice cream, vegetables, strawberries, bananas, potatoes, salads,
sandwiches, noodles, birthday cakes, cookies, jam, coffee, milk, eggs, mushrooms, peanut butter,
cats, dogs, horses, goldfish, rabbits, parrots, owls, bees, ants, spiders, butterflies, whales,
penguins, elephants, turtles, foxes, squirrels, ducks, chickens, cows, sheep, frogs, dolphins,
bears, crows, hedgehogs, snails, pet care, bird watching, snow, rain, wind, fog, storms,
rainbows, clouds, sunsets, the moon, stars, autumn leaves, spring flowers, cold days, hot days,
the sea, beaches, lakes, waterfalls, deserts, caves, volcanoes, meadows, hills, oak trees, roses,
cactus plants, seeds, weeds, compost, lawns, houseplants, sunflowers, tulips, wild berries,
earthquakes, sand, rocks, ice, puddles, thunderstorms, bicycles, buses, trains, planes,
ferries, taxis, cars, scooters, traffic lights, parking, road trips, airports, maps, suitcases,
hotels, camping, tents, hiking, museums, castles, zoos, parks, playgrounds, libraries, bookshops,
bakeries, cafes, post offices, hospitals, supermarkets, flea markets, small towns, big cities,
neighbors, streets, elevators, fountains, umbrellas, hats, belts, gloves, shoes, socks, jackets,
jeans, glasses, watches, backpacks, pockets, buttons, laundry, ironing, sewing, knitting, mirrors,
lamps, chairs, sofas, beds, pillows, carpets, curtains, doors, keys, stairs, balconies, attics,
cellars, garages, fences, chimneys, bathtubs, showers, toothbrushes, soap, towels, brooms,
dishwashers, fridges, ovens, kettles, forks, spoons, plates, cups, clocks, calendars, batteries,
candles, matches, scissors, glue, hammers, nails, paint, ladders, toolboxes, recycling, trash,
dust, spring cleaning, moving house, saving money, pocket money, shopping, gifts, pencils,
notebooks, letters, postcards, newspapers, comics, novels, poems, fairy tales, diaries,
dictionaries, riddles, jokes, homework, exams, teachers, classrooms, school buses, recess, summer
camp, science projects, spelling, handwriting, drawing, painting, photos, pottery, origami,
puzzles, chess, card games, board games, dominoes, kites, balloons, dolls, marbles, hide and seek,
football, basketball, tennis, swimming, running, skating, skiing, sailing, fishing, climbing,
yoga, dancing, singing, pianos, guitars, drums, violins, choirs, concerts, radio, television,
movies, cartoons, circus shows, magic tricks, theaters, birthdays, weddings, holidays, parades,
fireworks, costumes, masks, grandparents, brothers, sisters, cousins, babies, twins, friendship,
first days at school, good manners, promises, secrets, dreams, sleep, naps, early mornings, long
nights, weekends, rainy weekends, habits, patience, courage, luck, kindness, honesty, boredom,
laughter, memory, silence, noise, dentists, doctors, nurses, firefighters, farmers, bakers,
carpenters, plumbers, mail carriers, bus drivers, librarians, pilots, gardeners, barbers, cooks,
waiters, lighthouses, bridges, tunnels, windmills, robots, phones, computers, keyboards,
emails, video calls, headphones, telescopes, microscopes, magnets, planets, rockets, dinosaurs,
fossils, gold, coins, stamps, flags
"""
TOPICS = tuple(" ".join(_THEMES.split()).split(", "))
OPENINGS = (  # all ask for something short: an answer that is cut is worth nothing
    "Write a short text about {}.",
    "Write a few lines about {}.",
    "Write a short note about {}.",
    "Tell me briefly something about {}.",
    "Explain briefly to a child why people care about {}.",
    "Explain briefly what everyone should know about {}.",
    "Describe briefly what is special about {}.",
)


def find_part(topic: str) -> Part:
    """Return what a topic is used for; it depends only on its text, so the parts never overlap."""
    share = blake2b(topic.encode(), digest_size=4).digest()[0] % 8
    return "held_out" if share < 2 else "ranked" if share == 2 else "training"
