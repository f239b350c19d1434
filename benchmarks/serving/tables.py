"""Results as Markdown and as a picture."""

import io
import math
from typing import Any

PEAKS = (20, 100)  # requests a second that replicas are counted for
BUSY = 0.7  # share of the time that a replica works at the peak
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its first column on the left and the others on the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def markdown(results: dict[str, Any]) -> str:
    """The tables of a run: answers beside the pipeline's, and requests a second. What was not measured is a dash."""
    kinds = list(next(iter(results["compared"].values()), {}))
    compared = [[name, *(compared_cell(found[kind]) for kind in kinds)] for name, found in results["compared"].items()]
    counts = [str(number) for number in results["at_once"]]
    speed = [
        [name, *(f"{found[n]['per_second']:.1f}" if n in found else "-" for n in counts)]
        for name, found in results["speed"].items()
    ]
    versions = "; ".join(
        f"{name}: {', '.join(f'{package} {version}' for package, version in found.items())}"
        for name, found in results["versions"].items()
    )
    machine = results["machine"]
    parts = [
        f"{results['model']}, {machine['cores']} cores ({machine['processor']}), {machine['threads']} threads for "
        f"torch, load average before {machine['load_before']:.1f}. {versions}.",
        *(f"{name} failed: {error.splitlines()[0]}" for name, error in results["failed"].items()),
    ]
    if compared:
        parts += [
            "Answers that are the pipeline's, and how far the log-probabilities of their tokens lie apart at most "
            f"(long audio: {results['long_audio_seconds']:.1f} s):",
            table(["server", *kinds], compared),
        ]
    parts += [
        f"Requests a second ({results['requests']} requests each), by how many are under way:",
        table(["engine", *counts], speed),
    ]
    servers = {name: results["speed"].get(name) for name in results["compared"]}
    fastest = {name: most(found) for name, found in servers.items() if found}
    if fastest:
        parts += [
            f"Replicas for so many requests a second at the peak, each busy for {BUSY:g} of the time:",
            table(
                ["server", "one gives", *(f"{peak} a second" for peak in PEAKS)],
                [[name, f"{r:.1f}", *(str(replicas(peak, r)) for peak in PEAKS)] for name, r in fastest.items()],
            ),
        ]
    return "\n\n".join(parts) + "\n"


def most(speed: dict[str, dict[str, float]]) -> float:
    """Requests a second of an engine, with as many under way as suit it best."""
    return max(found["per_second"] for found in speed.values())


def replicas(peak: float, one: float) -> int:
    """How many replicas carry `peak` requests a second, if one carries `one`, with time to spare (`BUSY`)."""
    return math.ceil(peak / (BUSY * one))


def compared_cell(found: dict[str, Any]) -> str:
    """`24/24, 5e-06`."""
    apart = found["logprobs_apart"]
    return f"{found['same']}/{found['asked']}" + ("" if apart is None else f", {apart:.0e}")


def draw(results: dict[str, Any]) -> bytes:
    """Requests a second over how many are under way, a line per engine, as a PNG."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    counts = results["at_once"]
    with pyplot.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure, axis = pyplot.subplots(figsize=(6, 3.2), layout="constrained")
        for (name, found), colour in zip(results["speed"].items(), COLOURS * len(results["speed"]), strict=False):
            points = [(number, found[str(number)]["per_second"]) for number in counts if str(number) in found]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(number) for number in counts])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_xlabel("requests under way")
        axis.set_ylabel("requests a second")
        axis.set_title(f"{results['model']} on {results['machine']['cores']} CPU cores", loc="left", fontsize=9)
        axis.legend(frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150)
        pyplot.close(figure)
    return buffer.getvalue()


__all__ = ["draw", "markdown", "replicas"]
