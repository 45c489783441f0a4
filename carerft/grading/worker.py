"""A grading worker: a process that reads pairs from standard input and answers on standard output.

Run by `pool.py` as `python -m carerft.grading.worker CPU_SECONDS MEMORY_MB`; one JSON object per line, one at a time:
{"id", "gold", "answer"} in, {"id", "correct", "why"} out.

Two processes, so that the death of one costs milliseconds and not another import of sympy: the outer imports, then
forks the inner, which does the work, and forks another whenever that one dies, saying so with {"died": why}. The
kernel ends the inner one when a pair has used its CPU seconds, whatever code it is stuck in: time on a busy machine
doesn't count, and a worker whose parent has vanished (kill -9) cannot run on either. Memory is limited likewise.
"""

import cmath
import gc
import json
import logging
import os
import re
import resource
import select
import signal
import sys
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

EXIT_DONE, EXIT_MEMORY = 0, 3
_PARENT_CHECK_SECONDS = 20
_WARM_UP = (
    r"\frac{\sqrt{3}}{2}", r"(-\infty,-7)\cup[3,\infty)", r"x^2-5x+2y", r"\left(3,\frac{\pi}{2}\right)", r"x=1,y=-2",
    r"1\pm\sqrt{19}", r"\begin{pmatrix}-1&0\\2&\frac{1}{2}\end{pmatrix}", r"\text{yes}", r"x\in[-2,7]", r"2<x\le 5",
    r"\{1,2\}", r"3\sin(2x)", "50%", r"10^{-3}", r"\frac{a+b}{c}",
)  # fmt: skip


def main(cpu_seconds: float, memory_mb: int) -> None:
    """Serve until standard input is closed."""
    requests, replies, parent = os.dup(0), os.dup(1), os.getppid()
    for standard in (0, 1):  # whatever prints must not print into the replies
        os.dup2(os.open(os.devnull, os.O_RDWR), standard)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    prepare()
    os.dup2(0, 2)
    gc.collect()
    gc.freeze()  # the forks share this memory
    megabytes = memory_mb * 2**20
    for limit, value in ((resource.RLIMIT_AS, megabytes), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(limit, (value, value))
    _send(replies, {"ready": True})
    while True:
        child = os.fork()
        if child == 0:
            _serve(requests, replies, parent, cpu_seconds)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == EXIT_DONE:
            return
        _send(replies, {"died": _cause(code, cpu_seconds, memory_mb)})


def _cause(code: int, cpu_seconds: float, memory_mb: int) -> str:
    if code == -signal.SIGPROF:
        return f"needed more than {cpu_seconds:g} s of CPU time"
    if code == EXIT_MEMORY:
        return f"needed more than {memory_mb} MB of memory"
    return f"the grading process ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"


def _serve(requests: int, replies: int, parent: int, cpu_seconds: float) -> None:
    """The inner process: never returns."""
    code = 1
    try:
        buffer = b""
        while True:
            while b"\n" not in buffer:
                if select.select([requests], [], [], _PARENT_CHECK_SECONDS)[0]:
                    received = os.read(requests, 65536)
                    if not received:
                        os._exit(EXIT_DONE)
                    buffer += received
                else:  # a process that the parent forked may hold the other end of the pipe open after its death
                    os.kill(parent, 0)
            line, _, buffer = buffer.partition(b"\n")
            pair = json.loads(line)
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            correct, why = compare(pair["gold"], pair["answer"])
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(replies, {"id": pair["id"], "correct": correct, "why": why})
    except MemoryError:
        code = EXIT_MEMORY
    except (ProcessLookupError, BrokenPipeError):
        code = EXIT_DONE
    finally:
        os._exit(code)


def _send(replies: int, message: dict[str, Any]) -> None:
    try:
        os.write(replies, json.dumps(message).encode() + b"\n")  # less than PIPE_BUF: written whole
    except BrokenPipeError:
        os._exit(EXIT_DONE)


def prepare() -> None:
    """Import math-verify with sympy's evaluator replaced by `number_only`, and fill the parser's tables."""
    logging.disable(logging.CRITICAL)  # it logs answers
    import sympy.parsing.sympy_parser
    import sympy.physics.units  # simplify does so later, and it sympifies strings of its own

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
    """Out of memory or of stack; no Exception, since math-verify takes those for "not equal"."""


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
    """In place of sympy's parse_expr, which runs its argument as Python code. Raises ValueError for all but numbers.

    math-verify comes here, by way of sympify, with every number in an answer: what its grammar takes for one.
    """
    from sympy import Float, Integer

    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError("strings are not evaluated here")
    return Integer(int(text)) if text.strip().lstrip("+-").isdigit() else Float(text.strip())


@lru_cache(maxsize=2048)
def _parsed(latex: str) -> tuple[Any, ...]:
    """The expression, if there is one, and the text that math-verify made of it. The box is ours, so there is one."""
    from math_verify import LatexExtractionConfig, parse

    boxes = [LatexExtractionConfig(boxed_match_priority=0)]
    return tuple(parse(rf"\boxed{{{latex}}}", boxes, extraction_mode="first_match", parsing_timeout=None))


def compare(gold: str, answer: str) -> tuple[bool | None, str]:
    """Whether math-verify holds the two (cleaned, unboxed) for equal, and why; None where it cannot tell."""
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

    This spares math-verify its slowest step for most wrong answers. Symbols alone, and what math-verify reads leniently
    (percentages), are left to it.
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
    except (TypeError, ValueError, AttributeError, ArithmeticError):  # it has no value as a number
        return False
    return all(map(cmath.isfinite, values)) and abs(values[0] - values[1]) > 1e-5 * max(1.0, *map(abs, values))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
