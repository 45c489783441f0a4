"""A grading worker: a process that receives pairs on a connection and sends back their outcomes.

Run by `pool.py` as `python -m carerft.grading.worker CPU_SECONDS MEMORY_MB FILE_DESCRIPTOR`. Messages are JSON: null
when the worker is ready, then [number, gold, answer] in and [number, correct, why] out, one pair at a time.

There are two processes, so that the death of one costs milliseconds and not another import of sympy: the outer one
imports, then forks the inner one, which does the work. Whenever that one dies, the outer one reports it as the outcome
of the current pair (number null) and forks another. The kernel ends the inner one when a pair has used its CPU seconds,
whatever code is running: time on a busy machine doesn't count, and a worker whose parent was killed cannot run on
either. Memory is limited likewise.
"""

import cmath
import contextlib
import gc
import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from functools import lru_cache, wraps
from multiprocessing.connection import Connection
from typing import Any

EXIT_DONE, EXIT_MEMORY = 0, 3
_PARENT_CHECK_SECONDS = 20
_WARM_UP = (
    r"\frac{\sqrt{3}}{2}", r"(-\infty,-7)\cup[3,\infty)", r"x^2-5x+2y", r"\left(3,\frac{\pi}{2}\right)", r"x=1,y=-2",
    r"1\pm\sqrt{19}", r"\begin{pmatrix}-1&0\\2&\frac{1}{2}\end{pmatrix}", r"\text{yes}", r"x\in[-2,7]", r"2<x\le 5",
    r"\{1,2\}", r"3\sin(2x)", "50%", r"10^{-3}", r"\frac{a+b}{c}",
)  # fmt: skip


def main(cpu_seconds: float, memory_mb: int, file_descriptor: int) -> None:
    """Serve until the other end of the connection is closed."""
    connection, parent = Connection(file_descriptor), os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    prepare()
    os.dup2(0, 2)  # standard input is /dev/null
    gc.collect()
    gc.freeze()  # the forks share this memory
    megabytes = memory_mb * 2**20
    for limit, value in ((resource.RLIMIT_AS, megabytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(limit, (value, value))
    message: Any = None
    while True:
        with contextlib.suppress(OSError):  # the parent has gone: the next fork finds out too, and ends
            connection.send_bytes(json.dumps(message).encode())
        child = os.fork()
        if child == 0:
            _serve(connection, parent, cpu_seconds)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == EXIT_DONE:
            return
        message = [None, None, _cause(code, cpu_seconds, memory_mb)]


def _cause(code: int, cpu_seconds: float, memory_mb: int) -> str:
    if code == -signal.SIGPROF:
        return f"needed more than {cpu_seconds:g} s of CPU time"
    if code == EXIT_MEMORY:
        return f"needed more than {memory_mb} MB of memory"
    return f"the grading process ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"


def _serve(connection: Connection, parent: int, cpu_seconds: float) -> None:
    """The inner process: never returns."""
    code = 1
    try:
        while True:
            while not connection.poll(_PARENT_CHECK_SECONDS):
                os.kill(parent, 0)  # a process forked by the parent may hold the connection open after its death
            number, gold, answer = json.loads(connection.recv_bytes())
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            correct, why = compare(gold, answer)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send_bytes(json.dumps([number, correct, why]).encode())
    except MemoryError:
        code = EXIT_MEMORY
    except (EOFError, OSError):
        code = EXIT_DONE
    finally:
        os._exit(code)


def prepare() -> None:
    """Import math-verify with sympy's evaluator replaced by `number_only`, and fill the parser's tables."""
    logging.disable(logging.CRITICAL)  # it logs answers
    import sympy.parsing.sympy_parser
    import sympy.physics.units  # simplify imports it later, and it sympifies strings

    sympy.parsing.sympy_parser.parse_expr = sympy.parsing.parse_expr = number_only
    import math_verify.grader
    import math_verify.parser

    for module, name in (
        (math_verify.parser, "latex2sympy"),
        (math_verify.grader, "simplify"),
        (math_verify.grader, "solve"),
    ):
        setattr(module, name, _not_swallowed(getattr(module, name)))
    for expression in _WARM_UP:
        compare(expression, expression + "+1")


class GaveUp(BaseException):
    """Out of memory or of stack. Not an Exception, because math-verify treats those as "not equal"."""


def _not_swallowed(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def loud(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except (MemoryError, RecursionError) as error:
            raise GaveUp from error

    return loud


_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,50}(?:\.[0-9]{0,50})?|\.[0-9]{1,50})(?:[eE][+-]?[0-9]{1,3})?")


def number_only(text: str, *_: Any, **__: Any) -> Any:
    """Replaces sympy's parse_expr, which runs its argument as Python code. Raises ValueError for all but numbers.

    math-verify calls it, through sympify, with every number that its grammar recognises in an answer.
    """
    from sympy import Float, Integer

    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError("strings are not evaluated here")
    return Integer(int(text)) if text.strip().lstrip("+-").isdigit() else Float(text.strip())


@lru_cache(maxsize=2048)
def _parsed(latex: str) -> tuple[Any, ...]:
    """The expression, if the text is one, and the text as math-verify extracted it from the box added here."""
    from math_verify import LatexExtractionConfig, parse

    boxes = [LatexExtractionConfig(boxed_match_priority=0)]
    # None is no time limit, whatever the annotation says.
    options: dict[str, Any] = {"extraction_mode": "first_match", "parsing_timeout": None}
    return tuple(parse(rf"\boxed{{{latex}}}", boxes, **options))


def compare(gold: str, answer: str) -> tuple[bool | None, str]:
    """Whether math-verify considers the two (cleaned, unboxed) answers equal, and why; None if it cannot tell."""
    from math_verify import verify

    try:
        right, given = _parsed(gold), _parsed(answer)
        if surely_different(right[0], given[0]):
            return False, "not equal by value"
        equal = verify(list(right), list(given), timeout_seconds=None, raise_on_error=True)
    except (Exception, GaveUp) as error:
        cause = error.__cause__ if isinstance(error, GaveUp) else error
        if isinstance(cause, MemoryError):
            raise cause from None
        return None, f"math-verify failed: {type(cause).__name__}"
    if equal:
        return True, "equal by math-verify"
    if all(isinstance(expression, str) for expression in right):
        return None, "math-verify cannot read the gold answer"
    if all(isinstance(expression, str) for expression in given):
        return False, "math-verify cannot read the answer"
    return False, "not equal by math-verify"


def surely_different(right: Any, given: Any) -> bool:
    """Whether two expressions differ at one point, well beyond rounding: then no simplification makes them equal.

    This avoids math-verify's slowest step for most wrong answers. It does not apply to single symbols and to
    percentages, which math-verify compares leniently.
    """
    from sympy import Expr, Symbol, UnevaluatedExpr

    if not all(
        isinstance(e, Expr) and not isinstance(e, Symbol) and not e.has(UnevaluatedExpr) for e in (right, given)
    ):
        return False
    names = sorted({symbol.name for symbol in right.free_symbols | given.free_symbols})
    point = {name: 0.6180339887 + 0.1415926535 * i for i, name in enumerate(names)}
    try:
        values = [complex(e.evalf(15, subs={s: point[s.name] for s in e.free_symbols})) for e in (right, given)]
    except (TypeError, ValueError, AttributeError, ArithmeticError):  # without a numeric value
        return False
    return all(map(cmath.isfinite, values)) and abs(values[0] - values[1]) > 1e-5 * max(1.0, *map(abs, values))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
