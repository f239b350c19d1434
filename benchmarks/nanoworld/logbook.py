"""The build's log: one line per event, with time of day and numbers. Imports nothing heavy: speech workers load it."""

import re
import time
from pathlib import Path


def log(out: Path, message: str, **numbers) -> None:
    """One line to `out/log.txt` and the screen: time of day, message, numbers."""
    values = [
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in numbers.items()
    ]
    line = f"{time.strftime('%H:%M:%S')} {message} {' '.join(values)}".rstrip()
    with (out / "log.txt").open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    print(line, flush=True)


def stage_seconds(out: Path) -> dict[str, float]:
    """Wall seconds of the finished stages: every "stage: done ... seconds=" line of the log, added up by stage."""
    total: dict[str, float] = {}
    for line in (out / "log.txt").read_text(encoding="utf-8").splitlines():
        match = re.search(r" ([\w-]+): done .*?seconds=([\d.e+]+)", line)
        if match:
            total[match[1]] = total.get(match[1], 0.0) + float(match[2])
    return total
