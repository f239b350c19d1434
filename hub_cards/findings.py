"""One line of a report, as `speechllm doctor` and `speechllm check` print it. Imports nothing heavy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass
class Finding:
    """One line of a report. `status` is "ok", "note" (works, with something to know) or "FAIL"; `remedy` says what to
    do."""

    status: str
    subject: str
    detail: str
    remedy: str = ""


def describe(error: BaseException, plain: type[BaseException] | tuple = ()) -> str:
    """An error as one short line; the kind is left out for the kinds in `plain`, whose text says all."""
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, plain) else f"{type(error).__name__}: "
    return f"{kind}{text[:160]}{'…' if len(text) > 160 else ''}"


def guarded(
    subject: str,
    check: Callable[[], Iterator[Finding]],
    remedy: str,
    plain: type[BaseException] | tuple = (),
) -> Iterator[Finding]:
    """The findings of a check; if it breaks down, that is its last finding."""
    try:
        yield from check()
    except Exception as error:  # whatever is broken, the report goes on
        yield Finding("FAIL", subject, describe(error, plain), remedy)


def print_findings(findings: Iterator[Finding]) -> int:
    """Prints findings as they come; returns how many are failures."""
    failures = 0
    for finding in findings:
        print(f"{finding.status:<6}{finding.subject:<16} {finding.detail}", flush=True)
        if finding.remedy:
            print(f"{'':<23}-> {finding.remedy}", flush=True)
        failures += finding.status == "FAIL"
    return failures


__all__ = ["Finding", "describe", "guarded", "print_findings"]
