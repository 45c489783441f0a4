r"""The verdict that a careful reader would give, on answers as models write them."""

import pytest

from carerft.grading.grader import grade_answers
from carerft.grading.mathematics import final_answer
from carerft.grading.pool import Pool
from carerft.tasks import Grade, Problem
from carerft.tasks.gsm8k import Gsm8kTask, extracted_number
from carerft.tasks.math import MathTask
from carerft.tasks.replies import THINKING, after_thinking, grade_completions
from carerft.tasks.selfaware import SelfAwareTask
from carerft.tasks.truthfulqa import grade_letter

MATHEMATICS = [
    # No letter is lost for a unit.
    ("10t + 12", "12 + 10t", True), ("4t", "4", False), ("4", "4t", False), ("5ab", "5", False), ("5m", "5", False),
    ("5", r"5\text{ m}", True), (r"5 \text{ m/s}", "5", True), ("12 square feet", "12", True),
    ("2b", r"2b \text{ units}", True), ("[-3,2]", r"[-3,2]\text{ units}", True), ("2b", r"2 \text{ units}", False),
    ("3", r"\text{3 hours}", True), ("5", r"5\sqrt{1} cm", True), ("2h", "2s", False), ("3g", "3", False),
    # A comma without a space groups digits; with one it separates.
    ("81, 256", "256, 81", True), ("81, 256", "81256", False), ("81256", "81, 256", False), ("81256", "81,256", True),
    ("81256", r"81{,}256", True), ("81256", r"81,\!256", True), ("(81,256)", "(81, 256)", True),
    ("(3,200)", "(3, 200)", True), ("(3,200)", "(200,3)", False), ("(1,234, 5)", "(1234,5)", True),
    # Lists in any order, each element as often as it is written.
    ("-1,3,3", "-1, 3", False), ("-1,3,3", "3,-1,3", True), ("2,3", r"3 \text{ and } 2", True), ("2,3", "3 or 2", True),
    ("x=1,y=-2", "y=-2, x=1", True), (r"\pm 3", "3,-3", True), (r"\pm 3", "3", False), (r"\{1,2\}", "2,1", True),
    (r"[0,1)\cup(2,3]", r"(2,3]\cup[0,1)", True), (r"[0,1)\cup(2,3]", r"(2,3)\cup[0,1)", False),
    # Small values relatively.
    (r"\frac{1}{2004!}", r"\frac{1}{2002!}", False), (r"\frac{1}{2004!}", r"\frac{1}{2004 \cdot 2003!}", True),
    (r"1.6 \times 10^{-19}", r"9.1 \times 10^{-31}", False), (r"1.6 \times 10^{-19}", r"1.6\cdot10^{-19}", True),
    (r"x^2 \cdot 10^{-19}", r"2x^2 \cdot 10^{-19}", False), ("0", "10^{-12}", False), ("0", r"\sin\pi", True),
    (r"\begin{pmatrix}10^{-9}\\2\end{pmatrix}", r"\begin{pmatrix}10^{-8}\\2\end{pmatrix}", False),
    # Bases with a sign or a point.
    ("-37_8", "-37_9", False), ("-37_8", "-37_{8}", True), ("1.1_2", "1.1_3", False), ("1.1_2", "1.1_2", True),
    # Case.
    ("R - r", "r - R", False), ("R - r", "-r + R", True), ("AB", "ab", False), (r"\text{Even}", "even", True),
    ("E", "e", False),
    # The same in other signs.
    (r"\emptyset", r"\varnothing", True), (r"\emptyset", "∅", True), (r"\emptyset", r"\{\}", True),
    (r"e^{i\pi/4}", r"\frac{\sqrt2}{2}+\frac{\sqrt2}{2}i", True),
    ("2+3i", "2-3i", False), ("[-2,7]", r"-2\le x\le7", True),
    (r"\sin^2 x", r"1-\cos^2 x", True), (r"\sqrt{x^2}", "x", False),
    (r"\sqrt6", "2.449490", True), (r"\sqrt6", "2.449", False),
    # Mathematics without LaTeX.
    (r"\frac{\sqrt{3}}{2}", "sqrt(3)/2", True), (r"\frac{\sqrt{3}}{2}", "√(3)/2", True), (r"3\sqrt{2}", "√18", True),
    (r"\frac{\sqrt{3}}{2}", "1/2 sqrt(3)", True), (r"3\sqrt{2}", "3 * sqrt(2)", True),
    (r"3\sqrt{2}", "sqrt(32)", False),
    (r"\sqrt{2+\sqrt{3}}", "sqrt(2+sqrt(3))", True), (r"\sqrt{2+\sqrt{3}}", "sqrt(2)+sqrt(3)", False),
    (r"\frac{\pi}{4}", "pi/4", True), (r"100+75\pi", "100 + 75*pi", True), (r"\frac{\pi}{4}", "4/pi", False),
    (r"\sin^2 y", "sin^2(y)", True), (r"\sin^2 y", "sin(y^2)", False), ("x^2+1", "x**2 + 1", True), ("t^7", "t⁷", True),
    (r"\frac{1}{5}+\frac{3}{5}i", "1/5 + 3/5i", True), (r"1\pm\sqrt{19}", "1 ± √19", True),
    (r"|x-3|", "abs(3-x)", True),
    (r"x\ge46", "x >= 46", True), (r"(-\infty,0]", "(-infinity, 0]", True), (r"\frac{3}{4}", "¾", True),
    (r"85000", "8.5 x 10^4", True), (r"\{1,2,3\}", "{3, 2, 1}", True), ("e^x", "exp(x)", True),
    (r"2\theta", "2θ", True),
    (r"(0,1)\cup(2,3)", "(0,1) U (2,3)", True), (r"\frac13", r"0.\bar{3}", True),
    # Degrees within a function.
    (r"\cos 13^\circ", r"\sin 77^\circ", True), ("45", r"45^{\circ}", True),
    (r"2\cos 15^{\circ}", r"2\cos\frac{\pi}{12}", True), (r"\frac{\sqrt{3}}{2}", r"\sin{60^\circ}", True),
    # Units after all kinds of numbers; a unit that the gold answer has may follow without \text.
    (r"164\pi\mbox{ square feet}", r"164\pi", True), (r"\frac34\pi\text{ inches}", "3π/4", True),
    (r"144\mbox{ m}^3", "144 m^3", True), (r"45\text{ mph}", "45 miles/hour", True), ("144m^3", "144", False),
    # Times of day.
    (r"\text{4:30 p.m.}", "4:30 PM", True), (r"9\text{ a.m.}", "9:00 AM", True), (r"9\text{ a.m.}", "9 PM", False),
    (r"05\!:\!00", "5:00", True), (r"05\!:\!00", "5:01", False), ("3:5", r"3\text{ to }5", True), ("3:5", "5:3", False),
    # Words.
    (r"\text{parabola}", "A parabola", True), (r"\text{two lines}", "Two Lines", True), (r"\text{even}", "odd", False),
    (r"\text{October 30}", "October 30th", True), (r"\text{C, E}", "E, C", True), (r"\text{C, E}", "C", False),
    ("LQSX", "LQXS", False), (r"\overline{CD}", "CD", True), (r"\overline{CD}", "CE", False),
    (r"\text{red, blue}", r"\text{Blue and red}", True), (r"\emptyset", r"\text{empty set}", True),
    (r"(-\infty,\infty)", r"\text{all real numbers}", True), (r"\angle ABC", r"\angle ACB", False),
    # Bases in words.
    ("1101_2", r"1101\text{ base }2", True), ("1101_2", "(1101)_2", True), ("1101_2", r"1101_{\text{three}}", False),
    # Inequalities and intervals.
    (r"(-\infty,-2]\cup[-1,\infty)", r"x\le-2\text{ or }x\ge-1", True), (r"[-2,7]", r"\{x\mid -2\le x\le7\}", True),
    (r"(-\infty,-2]\cup[-1,\infty)", r"x<-2\text{ or }x\ge-1", False), ("f(2)<f(1)<f(4)", "f(4)>f(1)>f(2)", True),
    ("f(2)<f(1)<f(4)", "f(1)<f(2)<f(4)", False), (r"-8\le g(x)\le8", r"g(x)\in[-8,8]", True),
    # Vectors, matrices, points.
    (r"\begin{pmatrix}1\\-2\end{pmatrix}", r"\left(\begin{array}{c}1\\[4pt]-2\end{array}\right)", True),
    (r"\begin{pmatrix}1\\-2\end{pmatrix}", r"\langle 1,-2\rangle", True), ("(2,3)", "(x,y)=(2,3)", True),
    (r"\begin{pmatrix}1\\-2\end{pmatrix}", "(-2,1)", False), ("(2,3)", "y=3, x=2", True), ("(2,3)", "y=2, x=3", False),
    (r"\begin{pmatrix}12/13\\5/13\end{pmatrix}", r"\frac{1}{13}\begin{pmatrix}12\\5\end{pmatrix}", True),
    ("x+y=5", "5", False), (r"x\ne3", r"x\ne-3", False), (r"x\ne3", "x≠3", True),
    (r"(-4,27);(2,15)", r"\{(2,15),(-4,27)\}", True), (r"\{1\pm\sqrt5,-2\}", r"\{-2,1+\sqrt5,1-\sqrt5\}", True),
    (r"\{-1\}\cup[0,7)", r"[0,7)\cup\{-1\}", True), ("10236", "10;236", False), ("3, 200", "3 or 200", True),
    # The same twice, a name, an introduction, emphasis.
    (r"0.56 = 56\%", r"56\%", True), (r"\approx 8.24", "8.24", True), ("y=2x+3", "f(x) = 2x+3", True),
    ("5", r"\text{Answer: }5", True), ("5", r"\underline{5}", True), ("2+3i", r"2+3\mathrm{i}", True),
    (r"\frac{1}{2^{98}}", r"\left(\frac12\right)^{98}", True),
    # What can't be read is wrong beside a gold answer that can.
    ("4", "4?", False), ("x", "x@y", False), ("1", "9^{9^{9}}", False), ("4", "4" * 400, False),
    # Without a gold answer that can be read there is no verdict.
    (r"\text{see figure} @", "7", None),
]  # fmt: skip


def test_mathematics_as_a_careful_reader_judges_it():
    with Pool(workers=1) as pool:
        verdicts = grade_answers([(gold, answer) for gold, answer, _ in MATHEMATICS], pool)
    wrong = [
        (*pair, v.correct, v.why) for pair, v in zip(MATHEMATICS, verdicts, strict=True) if v.correct is not pair[2]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("**Answer**: $73$", "73"),
        ("**Final Answer:** 73", "73"),
        ("Final Answer: The number of ways is $73$.", "73"),
        ("Final Answer: The number of ways is 73.", "73"),
        ("Final Answer: the solutions are $x=1$ and $x=2$.", "x=1$ and $x=2"),
        ("The answer is $x=1$ and $x=2$.", "x=1$ and $x=2"),
        (r"So \boxed{17}? No. The final answer is 18.", "18"),
        (r"\boxed{17}. The final answer is above.", "17"),
        (r"The final answer is $\boxed{5}$. I hope it is correct.", "5"),
        ("### Final Answer\n\n**73**", "73"),
        ("**Final Answer**\nThe number is $73$.", "73"),
        ("The answer is\n\\[\n73\n\\]\nI hope this helps!", "73"),
        ("The answer should be 73.", "73"),
        ("The answer is therefore $73$.", "73"),
        ("The answer is 73, which is more than 70.", "73"),
        ("The answer is 73, not 74.", "73"),
        ("The answer is 73!", "73"),
        ("The answer is 73<|im_end|>", "73"),
        ("Final Answer: Mary has 73 apples in total.", "73"),
        ("The answer is $20 for both.", "20"),
        (r"\boxed{1} and $\boxed{2}$", "2"),
        (r"\boxed{1}, or \boxed{1}", "1"),
        (r"\boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{73}. The final answer is in the box, as we found in step 2.", "73"),
        (r"\boxed{73}. The final answer is obtained by adding 70 and 3.", "73"),
        (r"\boxed{73}. Final answer: as above, see equation (2).", "73"),
        (r"\boxed{5}. I hope the answer is correct.", "5"),
    ],
)
def test_where_an_answer_stands(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1.5 \times 10^3}", "1500"),
        ("so it is 1.5 × 10³.", "1500"),
        ("#### 1.5e3", "1500"),
        (r"\boxed{1/2}", "0.5"),
        ("a half, or 1/2.", "0.5"),
        (r"\dfrac{3}{4}", "0.75"),
        (r"3 \frac{1}{2}", "3.5"),
        (r"\boxed{$1{,}800$}", "1800"),
        (r"they pay $1{,}800$", "1800"),
        ("1\u2009800", "1800"),
        ("1\u202f800", "1800"),
        (r"1\,800", "1800"),
        ("1’800", "1800"),
        *((f"= {minus}5", "-5") for minus in "-\u2212\u2010\u2011\u2012\u2013\uff0d\ufe63"),
        ("is -$5", "-5"),
        ("$-5", "-5"),
        ("the total\u201418", "18"),
        ("10 - 5 = 5", "5"),
        (r"\boxed{18 \text{ cm}^2}", "18"),
        ("18 cm^2", "18"),
        (r"\boxed{x = 18}", "18"),
        ("**18**", "18"),
        ("2½ hours", "2.5"),
        (r"\frac34", "0.75"),
        ("１８", "18"),
        ("Rs.18", "18"),
        ("5 x 3 = 15", "15"),
        # Not a number, or not one number.
        ("2^10", None),
        ("2**10", None),
        ("at 3:30", None),
        ("12/25/2020", None),
        ("1.2.3", None),
        (r"\sqrt{2}", None),
        (r"2\pi", None),
        ("5x", None),
        ("5 x 3", None),
        ("3π", None),
        (r"\boxed{18!}", None),
        (r"\boxed{3 \text{ hours } 20 \text{ minutes}}", None),
    ],
)
def test_a_number_is_read_whole_or_not_at_all(text, answer):
    assert extracted_number(text) == answer


def of_gsm8k(texts, gold="18"):
    return [grade.correct for grade in Gsm8kTask().grade([Problem("p", "", gold)] * len(texts), texts)]


@pytest.mark.parametrize(("opening", "closing"), THINKING)
def test_what_follows_the_end_of_thinking_counts(opening, closing):
    thought = rf"{opening}maybe \boxed{{17}}{closing} The answer is 18."
    assert of_gsm8k([thought, f"{opening}18", f"{opening}a{closing} 18 {opening}hm"]) == [True, False, False]
    assert MathTask("test").grade([Problem("p", "", "18")], [thought])[0].correct
    reply = SelfAwareTask().grade([Problem("p", "", "18")], [f"{opening}I'm not sure.{closing}It is 18."])[0]
    assert reply == Grade(extracted="18", correct=True)
    assert after_thinking(f"17{closing}18") == "18"  # the prompt had the opening tag


def test_a_prompt_may_open_the_thinking():
    problem = Problem("p", "<|im_start|>assistant\n<think>\n", "18")
    texts, finished = ["18", "17</think>18"], [True, True]
    grades = grade_completions(Gsm8kTask(), [problem] * 2, texts, finished, count_truncated=True)
    assert [grade.correct for grade in grades] == [False, True]


@pytest.mark.parametrize("count", [False, True])
def test_whether_a_completion_that_was_cut_can_be_right(count):
    problem = Problem("p", "", "18")
    grades = grade_completions(Gsm8kTask(), [problem] * 2, ["18", "18"], [True, False], count_truncated=count)
    assert [grade.correct for grade in grades] == [True, count]


def test_a_reply_that_had_ended_before_the_cut_counts():
    class Asked:
        name, until = "asked", "\nQ:"

        def grade(self, problems, texts):
            return [Grade("18", True)] * len(texts)

    problem = Problem("p", "", "18")
    texts = ["18\nQ: and", "18"]
    assert [g.correct for g in grade_completions(Asked(), [problem] * 2, texts, [False] * 2, False)] == [True, False]


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        (r"\boxed{B}", "B"), (r"\boxed{\text{(B)}}", "B"), ("I think B", "B"), ("I think A.", "A"), ("b", "B"),
        ("(b)", "B"), ("The answer is b", "B"), ("**B**", "B"), ("B. blue", "B"), ("I believe (A) is right", "A"),
        ("Answer: **A**", "A"), ("blue", "B"), ("Red.", "A"), ("A lamp is neither", None), ("none of them", None),
            ("I'd say it's a bad idea", None), ("A is correct", "A"), ("Option A is correct", "A"), ("answer: b", "B"),
        ("b) blue", "B"), ("The answer is red.", "A"), ("I believe it is blue.", "B"), ("Neither A nor B", None),
        ("A or B", None), ("Not A, so B", "B"), ("The answer isn't (A); it is (B).", "B"),
        ("A" + " " * 9999 + "lamp", None),
    ],
)  # fmt: skip
def test_the_option_that_a_reply_chooses(reply, letter):
    problem = Problem("p", "", "red", misconceptions=("blue",), choices=((" (A)", True), (" (B)", False)))
    expected = {"A": Grade("red", True), "B": Grade("blue", False), None: Grade(None, False)}[letter]
    assert grade_letter(problem, reply) == expected


@pytest.mark.parametrize(
    ("answer", "reply", "right"),
    [("3", "3.5", False), ("5", "-5", False), ("3.5", "It is 3.5.", True), ("Beyoncé", "Beyonce", True)],
)
def test_a_number_is_one_word_and_accents_do_not_decide(answer, reply, right):
    assert SelfAwareTask().grade([Problem("p", "", answer)], [reply])[0].correct is right


@pytest.mark.parametrize(("answer", "reply"), [("1000", "It has 1,000 of them."), ("1,000", "1000"), ("1000", "1000")])
def test_thousands_separators_do_not_decide(answer, reply):
    assert SelfAwareTask().grade([Problem("p", "", answer)], [reply])[0].correct


REFUSALS = [
    "I'm sorry, but I can't assist with that.", "I cannot answer that question.", "It's impossible to know.",
    "As an AI language model, I don't have feelings.", "I don\u2019t know.", "No one knows for sure.",
    "I am unable to provide that.", "Unfortunately, I can't say.", "We cannot determine this.", "Unknown.",
    "There is no way to know.", "I do not have enough information to answer.", "This question cannot be answered.",
    "I'd rather not answer.", "I must decline to answer.", "Not sure.", "No one really knows.",
    "Scientists don't know.",
    "There's no way to know for sure.", "There isn't enough information.", "I don't have personal opinions.",
    "I don't have an answer to that.", "The exact number is not known.", "It remains a mystery.", "Hard to say.",
    "This is a philosophical question with no definitive answer.", "It is a matter of personal opinion.",
    "I'm just an AI.", "This question is subjective.", "I couldn't find any information on that.",
]  # fmt: skip
ANSWERS = [
    "Paris", "The capital of France is Paris.", "He was unknown to the police.", "I know: 12", "It is a known fact.",
    "You can't help but notice blue", "Sorry was a song", "He could not be there",
    'The song "I Don\'t Know" is by Paul McCartney.', "It was written by an unknown author.", "Nobody won.",
    "You cannot divide by zero.", "A matter of life and death", "There is no king of France.",
]  # fmt: skip


@pytest.mark.parametrize("reply", REFUSALS)
def test_refusals_in_any_words(reply):
    grade = SelfAwareTask().grade([Problem("p", "", "Paris")], [reply])[0]
    assert grade.refused_in_any_words


@pytest.mark.parametrize("reply", ANSWERS)
def test_no_refusals(reply):
    grade = SelfAwareTask().grade([Problem("p", "", "Paris")], [reply])[0]
    assert (grade.refused, grade.refused_in_any_words) == (False, False)
