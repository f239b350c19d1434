"""Results as Markdown."""

from typing import Any


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its first column on the left and the others on the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def markdown(results: dict[str, Any]) -> str:
    """The tables of a run: answers beside the pipeline's, and requests a second."""
    kinds = list(next(iter(results["compared"].values()), {}))
    compared = [[name, *(compared_cell(found[kind]) for kind in kinds)] for name, found in results["compared"].items()]
    counts = list(next(iter(results["speed"].values())))
    speed = [[name, *(f"{found[n]['per_second']:.1f}" for n in counts)] for name, found in results["speed"].items()]
    versions = "; ".join(
        f"{name}: {', '.join(f'{package} {version}' for package, version in found.items())}"
        for name, found in results["versions"].items()
    )
    machine = results["machine"]
    parts = [
        f"{results['model']}, {machine['cores']} cores ({machine['processor']}). {versions}.",
        "Answers that are the pipeline's, and how far the log-probabilities of their tokens lie apart at most (long "
        f"audio: {results['long_audio_seconds']:.1f} s):",
        table(["server", *kinds], compared),
        "Requests a second, by how many are under way:",
        table(["engine", *(str(n) for n in counts)], speed),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def compared_cell(found: dict[str, Any]) -> str:
    """`24/24, 5e-06`."""
    apart = found["logprobs_apart"]
    return f"{found['same']}/{found['asked']}" + ("" if apart is None else f", {apart:.0e}")


__all__ = ["markdown"]
