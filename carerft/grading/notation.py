r"""The many ways of writing mathematics, brought to one: LaTeX without decoration (`clean`). Never evaluates.

Mathematics without LaTeX gets its commands first (`clean`): "sqrt(3)/2", "x**2", "3π/4", "x >= 3", "{1, 2}".

A comma separates thousands or the elements of a list. It separates thousands in "1{,}234" and "1,\!234", and where
every group after the first has three digits and no space ("1,234,567"); "81, 256" is a list. Within brackets, commas
without spaces separate elements, "(81,256)", unless others have spaces: "(1,234, 5)".
"""

import re
from functools import lru_cache

MAX_ANSWER = 2_000
"""Characters of an answer that are read. The longest answer of MATH has 159."""
MINUSES = "\u2212\u2010\u2011\u2012\u2013\u2014\u207b\ufe63\uff0d"
"""Characters that are written for a minus sign."""
_FORMAT_CHARACTERS = [0xAD, 0x61C, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
_PLAIN = {
    MINUSES: "-", "\u00a0\u2007\u2009\u202f\u3000": " ", "×": r"\times ", "·⋅": r"\cdot ", "÷": "/",
    "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "≤⩽": r"\le ", "≥⩾": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "√": r"\sqrt ", "°": r"^\circ ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}",
    "⟨": "(", "⟩": ")", "∖": r"\setminus ", "≈": r"\approx ", "∛": r"\sqrt[3] ", "⁄": "/", "∗": "*",
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅙": r"\frac{1}{6}", "⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}",
    "⅞": r"\frac{7}{8}", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "λ": r"\lambda ",
    "μ": r"\mu ", "ρ": r"\rho ", "σ": r"\sigma ", "τ": r"\tau ", "φϕ": r"\phi ", "ω": r"\omega ",
    "∠": r"\angle ", "△": r"\triangle ",
}  # fmt: skip
_LOOKALIKES: dict[int, str | None] = dict.fromkeys(_FORMAT_CHARACTERS) | {
    ord(character): plain for characters, plain in _PLAIN.items() for character in characters
}
_LOOKALIKES |= {ord("\uff10") + digit: str(digit) for digit in range(10)}
PLAIN_NUMBERS = {c: plain for c, plain in _LOOKALIKES.items() if plain and re.match(r"[0-9]|\\frac", plain)}
"""Fractions in one character, and wide digits."""
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉"
_SCRIPTS = re.compile(f"[{_RAISED}]+|[{_LOWERED}]+")
_LEVEL = str.maketrans(_RAISED + _LOWERED, "0123456789+-n0123456789")
_ROOT_SIGN = re.compile(r"(?<=[√∛])\s*([0-9]+(?:\.[0-9]+)?)")
_SPACING = re.compile(
    r"\\!\s*|(?<!\\)\\[,;:()\[\]]|\\?\$|\\(?:left|right)(?![a-zA-Z])\s*\.?|\\(?:display|text)style(?![a-zA-Z])"
    r"|\\[bB]igg?[lr]?(?![a-zA-Z])"
)
_WIDE_SPACE = re.compile(r"(?<!\\)\\\s|~|\\q?quad(?![a-zA-Z])|\s+")
_NAMES = "sqrt|pi|theta|alpha|beta|infty|arcsin|arccos|arctan|sinh?|cosh?|tanh?|sec(?=[ ^]*[(a-z])|csc|cot|log|ln|exp"
_PLAIN_MATHEMATICS = [
    (re.compile(pattern, flags), replacement)
    for pattern, replacement, flags in (
        (r"(?<![\\a-zA-Z])(?:\+?infinity|oo|inf)(?![a-zA-Z])|\+\s*\\infty", r"\\infty ", re.IGNORECASE),
        (rf"(?<![\\a-zA-Z])({_NAMES})(?![a-zA-Z])", r"\\\1 ", 0),
        (r"(?<![\\a-zA-Z])Pi(?![a-zA-Z])", r"\\pi ", 0),
        (r"(?<=[)\]}]) ?U ?(?=[(\[\\])", r"\\cup ", 0),
        (r"(?<=[0-9a-zA-Z)}\]]) ?\*\* ?(?=[-(0-9a-zA-Z{])", "^", 0),
        (r"<=", r"\\le ", 0), (r">=", r"\\ge ", 0), (r"!=(?!=)", r"\\ne ", 0),
        (r"(?<![\\a-zA-Z])abs\(([^()]*)\)", r"|\1|", 0),
        (r"\{ ?([0-9a-z]+) ?\\choose ?([0-9a-z]+) ?\}", r"\\binom{\1}{\2}", 0),
        (r"\+/-", r"\\pm ", 0),
        (r"(?<=[0-9]) ?x ?(?=10(?:\^|\*\*))", r"\\times ", 0),
        (r"(?<=[0-9]) ?(?:\\text\{ ?to ?\}|to) ?(?=[0-9])", ":", 0),
        (r"(?<=[a-zA-Z] )([0-9]+)(?:st|nd|rd|th)(?![a-zA-Z])", r"\1", 0),
        (r"\\bar ?(?=\{[0-9]+\})", r"\\overline", 0),
    )
]  # fmt: skip
"""Mathematics as it is written without LaTeX."""
_ROOT_OF_BRACKETS = re.compile(r"\\sqrt ?((?:\[3\])?) ?\(((?:[^()]|\([^()]*\)){1,200})\)")
_DECORATIONS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:underline|boxed|fbox|bm|boldsymbol)\{([^{}]*)\}", r"\1"),
        (r"\\(?:text|mathrm|mathbf|mathit)\{i\}", "i"),
        (r"\\(?:overline|overrightarrow|overleftrightarrow)\{((?:[A-Z]{2})|\\text\{[A-Z]{2}\})\}", r"\1"),
        (r"(\\\\)\[[^\[\]]{1,9}\]", r"\1"),
        (r"[(\[] ?\\begin\{array\} ?\{[^{}]*\}(.*?)\\end\{array\} ?[)\]]", r"\\begin{pmatrix}\1\\end{pmatrix}"),
        (r"\\langle(?![a-zA-Z])", "("), (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\{,\}", ","),
        (r"^\\text\{[^{}]*(?:\bis|\bare|[:=]) ?\}", ""),
        (r"^\\(?:approx|sim)(?![a-zA-Z])", ""),
        (r"^\((?:(?:[a-zA-Z]|\\[a-z]+) ?,? ?){2,5}\) ?= ?(?=\()", ""),
        (r"^\\\{ ?[a-zA-Z] ?(?:\\in ?\\mathbb\{R\} ?)?(?:\\mid|\\vert|\||:)(.*[<>=el].*)\\\}$", r"\1"),
        (r"^\{((?:[^{},]|\{[^{}]*\})*,(?:[^{}]|\{[^{}]*\})*)\}$", r"\\{\1\\}"),
    )
]  # fmt: skip
"""What does not change the answer: emphasis, an introduction, the names of coordinates or of a set's elements."""
_SYNONYMS = re.compile(r"\\([dtc]frac|leq|geq|neq|lbrace|rbrace|dbinom|tbinom|varnothing)(?![a-zA-Z])|\\\{ *\\\}")
_SHORT_FRACTION = re.compile(r"\\frac\s*(?:([0-9a-zA-Z]|\\pi)|(\{[^{}]*\}))\s*(?:([0-9a-zA-Z]|\\pi)|(\{[^{}]*\}))")
_SHORT_ROOT = re.compile(r"\\sqrt\s*([0-9a-zA-Z])")
_SYNONYM = {"leq": r"\le", "geq": r"\ge", "neq": r"\ne", "lbrace": r"\{", "rbrace": r"\}", "varnothing": r"\emptyset"}


_GROUPING = re.compile(r"(?<=[0-9])(?:\{,\}|,\s*\\!)\s*(?=[0-9]{3}(?![0-9]))")
_THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
AMBIGUOUS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
TEXT = r"\\(?:text(?:bf|it|rm|normal)?|mbox|math(?:rm|bf|it))\s*\{"
_TEXT_LIST = re.compile(rf"({TEXT})([^{{}}]*,[^{{}}]*)\}}")
_LIST_WORDS = re.compile(
    r"\s*,?\s*(?:\\(?:text|mbox)\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z\\{])(?:and|or)(?![a-zA-Z}]))\s*"
)


def with_braces(text: str) -> str:
    r"""The text with \frac{1}{2} for \frac12 and \frac1{2}."""
    return _SHORT_FRACTION.sub(lambda m: "\\frac" + (m[2] or f"{{{m[1]}}}") + (m[4] or f"{{{m[3]}}}"), text)


@lru_cache(maxsize=4096)
def clean(answer: str) -> str:
    """The answer without decoration (spacing commands, dollar signs, sizes, look-alike characters) or short forms."""
    if answer.isdecimal() and answer.isascii():
        return answer
    text = _GROUPING.sub("", answer[:MAX_ANSWER])
    text = _SCRIPTS.sub(lambda m: f"{'^' if m[0][0] in _RAISED else '_'}{{{m[0].translate(_LEVEL)}}}", text)
    text = _ROOT_SIGN.sub(r"{\1}", text)
    text = _SPACING.sub("", text[:MAX_ANSWER].translate(_LOOKALIKES)[:MAX_ANSWER])
    text = _WIDE_SPACE.sub(" ", text).strip()
    for pattern, replacement in _PLAIN_MATHEMATICS:
        text = pattern.sub(replacement, text)
    for _ in range(3):  # a root within a root
        text = _ROOT_OF_BRACKETS.sub(r"\\sqrt\1{\2}", text)
    for pattern, replacement in _DECORATIONS:
        text = pattern.sub(replacement, text).strip()
    text = _SYNONYMS.sub(lambda m: _SYNONYM.get(m[1] or "varnothing", f"\\{(m[1] or '').lstrip('dtc')}"), text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = with_braces(text)
    text = _TEXT_LIST.sub(_each_in_text, _LIST_WORDS.sub(", ", text).replace(";", ", "))
    return _separated(text).strip().rstrip("., ")


def _each_in_text(text: re.Match[str]) -> str:
    parts = [re.sub(r"^(?:and|or) ", "", part.strip()) for part in text[2].split(",")]
    return ",".join(f"{text[1]}{part}}}" for part in parts if part)


def _separated(text: str) -> str:
    """Without thousands separators, so that every comma separates elements. A space follows one that could be taken for
    a thousands separator, and no other."""
    spaced = ", " in text

    def grouped(run: re.Match[str]) -> str:
        before = text[: run.start()]
        bracketed = sum(map(before.count, ("(", "[", r"\{"))) > sum(map(before.count, (")", "]", r"\}")))
        return run.group() if bracketed and not spaced else run.group().replace(",", "")

    return AMBIGUOUS.sub(", ", re.sub(r" ?, ?", ",", _THOUSANDS.sub(grouped, text)))
