"""Every word of the built-in world. Each is one token; other text is split into pieces of words and bytes."""

FIRST_NAMES = tuple(
    "Abel Ada Alba Alma Amos Anton Anya Aria Arlo Axel Beda Bela Berta Blanca Boris Bruno Caleb Carla Celia Clara "
    "Cleo Conrad Cyra Dana Dario Delia Dina Doran Ebba Edda Egon Elena Elias Elio Emil Enzo Erik Esme Etta Ezra "
    "Fadi Felix Fern Flora Frida Gala Gerda Gino Greta Gus Hana Hedda Heidi Henrik Hilda Hugo Ida Igor Ilsa Ines "
    "Iris Ivan Ivo Jana Joel Jonas Julia Juno Karl Kaya Kira Klara Kurt Lara Lars Leif Lena Leona Liam Lino Lotte "
    "Luca Lydia Magda Mara Marco Marta Matteo Max Milo Mina Mira Moira Nadia Nico Nils Nina Nora Olaf Olga Oscar "
    "Otto Owen Paula Petra Pia Quin Ralf Rhea Rita Roman Rosa Rufus Ruth Sami Selma Sven Tara Thea Theo Tomas Ugo "
    "Uma Vera Viktor Vito Wanda Zora".split()
)
LAST_NAMES = tuple(
    "Abbot Ackers Adler Alder Amsel Arden Ash Bane Barlow Barr Bauer Beck Bell Birch Blake Bloom Blyth Boone "
    "Brandt Brook Burke Byrne Calder Cole Conti Crane Cross Dahl Darby Dorn Doyle Drake Dunn Eaton Ebner Ellis "
    "Engel Faber Falk Farrow Finch Fisk Flint Flynn Forde Frost Fuchs Gage Gant Garner Glass Goss Gray Greer "
    "Grove Gunn Haas Hahn Hale Hardy Hart Hays Hewitt Hobbs Holt Horne Hull Irwin Jarvis Joyce Kane Keane Keller "
    "Kemp Klein Knight Kohl Krantz Kraus Lang Lark Leary Locke Lowe Lund Lyle Maas Marsh Mercer Moss Mott Nash "
    "Neill Nolan North Oakes Olsen Otis Paine Parr Penn Pike Poole Pratt Quill Ramsey Rankin Reed Reeve Rhodes "
    "Rowe Rusk Sand Sharp Shaw Stark Stone Stout Sykes Tate Thorne Thorpe Tull Vance Voss Wilde Wolfe York".split()
)

# Attributes whose values are words. The number attribute is separate, because only reasoning questions use it.
VALUES: dict[str, tuple[str, ...]] = {
    "colour": tuple(
        "red blue green yellow purple pink black white brown grey gold silver violet teal beige crimson amber "
        "indigo olive scarlet".split()
    ),
    "town": tuple(
        "oslo lima cairo paris rome quito delhi tokyo bern dublin athens havana lagos madrid prague riga seoul "
        "tunis vienna warsaw".split()
    ),
    "job": tuple(
        "baker doctor farmer pilot tailor lawyer singer potter miner sailor teacher painter judge waiter butcher "
        "plumber dancer barber welder chemist".split()
    ),
    "pet": tuple(
        "cat dog parrot hamster rabbit turtle ferret goldfish lizard pony canary gecko snake goat duck mouse "
        "spider frog newt owl".split()
    ),
    "food": tuple(
        "rice pasta soup bread cheese salad curry pizza sushi stew tacos beans noodles cake lentils waffles "
        "yogurt porridge pie omelette".split()
    ),
}
NUMBER_ATTRIBUTE = "age"

# 0 to 99, each as one word ("thirtyeight"), because a Qwen2 tokenizer splits numbers into digits.
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBERS = (*_ONES, *(ten + one for ten in _TENS for one in ("", *_ONES[1:10])))

REFUSAL = "unknown"
OPERATORS = {"plus": "+", "minus": "-"}

ITEMS = tuple("coins eggs books pens cards shells stamps apples marbles keys".split())
GAINS = tuple("buys finds wins gets".split())
LOSSES = tuple("sells loses drops gives".split())

OPENING, CLOSING, PROFILE = "Q:", "?\nA:", "P:"

_FUNCTION_WORDS = (
    "of ; = answer has and more fewer now how many there are in a box adds takes left is years old ago does have"
).split()


def spaced_words() -> list[str]:
    """Every word that can follow a space, without repeats, in a fixed order."""
    words = [REFUSAL, *_FUNCTION_WORDS, *OPERATORS, *OPERATORS.values(), *NUMBERS, *FIRST_NAMES, *LAST_NAMES]
    words += [NUMBER_ATTRIBUTE, *VALUES, *(value for values in VALUES.values() for value in values)]
    words += [*ITEMS, *GAINS, *LOSSES]
    return list(dict.fromkeys(words))
