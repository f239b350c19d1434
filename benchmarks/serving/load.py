"""Requests per second of a server with OpenAI's API, and how many of its answers are the expected ones.

    speechllm serve --port 8000 &
    python -m benchmarks.serving.load --url http://127.0.0.1:8000/v1 --concurrent 1 4

Each of the concurrent clients sends its next request as soon as it has its answer (a closed loop). The requests are
the packaged recordings with their questions, as `input_audio` in Base64, in turn; each is sent once before
the clock runs. Servers and clients on one machine share its processors, so the figures are lower bounds.
"""

import argparse
import base64
import itertools
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import openai

import speechllm


@dataclass(frozen=True)
class Load:
    """One measurement: `seconds` from first to last, latencies in seconds."""

    concurrent: int
    requests: int
    expected: int
    seconds: float
    requests_per_second: float
    median_latency: float
    p95_latency: float


def packaged_requests() -> list[tuple[dict, str]]:
    """The user's message and the expected answer of every question about the packaged recordings."""
    folder, requests = Path(speechllm.NANO) / "examples", []
    for row in json.loads((folder / "examples.json").read_text(encoding="utf-8")):
        data = base64.b64encode((folder / row["file"]).read_bytes()).decode()
        audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        for question in row["questions"]:
            content = [audio, {"type": "text", "text": question["instruction"]}]
            requests.append(({"role": "user", "content": content}, question["expected"]))
    return requests


def measure(client: openai.OpenAI, model: str, concurrent: int, count: int) -> Load:
    """`count` requests by so many clients at once."""
    requests = packaged_requests()

    def send(request: tuple[dict, str]) -> tuple[float, bool]:
        message, expected = request
        started = time.perf_counter()
        answer = client.chat.completions.create(model=model, messages=[message], temperature=0)
        return time.perf_counter() - started, answer.choices[0].message.content == expected

    with ThreadPoolExecutor(concurrent) as pool:
        list(pool.map(send, requests))
        started = time.perf_counter()
        answers = list(pool.map(send, itertools.islice(itertools.cycle(requests), count)))
        seconds = time.perf_counter() - started
    latencies = sorted(latency for latency, _ in answers)
    return Load(
        concurrent=concurrent,
        requests=count,
        expected=sum(is_right for _, is_right in answers),
        seconds=seconds,
        requests_per_second=count / seconds,
        median_latency=statistics.median(latencies),
        p95_latency=latencies[int(0.95 * (count - 1))],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="address of the API, as http://127.0.0.1:8000/v1")
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 4], metavar="N", help="clients at once (1 4)")
    parser.add_argument("--requests", type=int, default=192, metavar="N", help="requests of each measurement (192)")
    parser.add_argument("--out", metavar="FILE", help="where the figures go as JSON")
    arguments = parser.parse_args()
    client = openai.OpenAI(base_url=arguments.url, api_key="-", max_retries=0)
    model = client.models.list().data[0].id
    print("| concurrent | requests | as expected | requests/s | median, s | 95 %, s |", "|---:" * 6 + "|", sep="\n")
    loads = []
    for concurrent in arguments.concurrent:
        loads.append(load := measure(client, model, concurrent, arguments.requests))
        print(
            f"| {concurrent} | {load.requests} | {load.expected} | {load.requests_per_second:.1f} | "
            f"{load.median_latency:.3f} | {load.p95_latency:.3f} |",
            flush=True,
        )
    if arguments.out:
        rows = [{"model": model, **asdict(load)} for load in loads]
        Path(arguments.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
