"""Many clients at once, some of which leave: are the others' answers right, are all slots there, is memory flat?

    python benchmarks/serve_load.py                     # 8 clients x 20 requests
    python benchmarks/serve_load.py --bench BENCH       # pictures and questions of a bench folder

Every question is asked alone first, greedily; the same answer has to come back under load. A share of the requests
(--leave) disconnects in the middle of its stream and is not counted. A burst beyond the queue comes last: what is
refused must be refused with 429.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import re
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pyfastv.models import bundled_examples

from server_process import start

Question = tuple[Path, str]


@dataclass
class Tally:
    """What the clients saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, seconds: float | None = None) -> None:
        with self.lock:
            self.statuses[what] += 1
            if seconds is not None:
                self.seconds.append(seconds)


def questions_of(bench: Path | None, count: int) -> list[Question]:
    """Questions about different pictures, as many as there are."""
    if bench is None:
        return [(example.picture, example.question) for example in bundled_examples()]
    lines = (bench / "questions.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    first = {entry["image"]: entry for entry in reversed(entries)}  # one question a picture
    return [(bench / entry["image"], entry["question"]) for entry in first.values()][:count]


def request_of(url: str, question: Question, stream: bool) -> urllib.request.Request:
    picture, text = question
    uri = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": text}]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": parts}], "temperature": 0}
    body |= {"max_tokens": 48, "stream": stream}
    return urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )


def whole(url: str, question: Question) -> str:
    with urllib.request.urlopen(request_of(url, question, False), timeout=600) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def leave(url: str, question: Question, after: int) -> None:
    """Reads a few lines of a stream, then hangs up."""
    with urllib.request.urlopen(request_of(url, question, True), timeout=600) as response:
        for _ in range(after):
            response.readline()


def client(
    url: str, asked: list[Question], right: dict[Question, str], share: float, seed: int, tally: Tally
) -> None:
    chance = random.Random(seed)
    for question in asked:
        begin = time.perf_counter()
        try:
            if chance.random() < share:
                leave(url, question, chance.randrange(0, 6))
                tally.add("left")
                continue
            answer = whole(url, question)
            tally.add("answered", time.perf_counter() - begin)
            if answer != right[question]:
                with tally.lock:
                    tally.wrong.append(
                        f"{question[0].name} {question[1]!r}: {answer!r}, alone {right[question]!r}"
                    )
        except urllib.error.HTTPError as error:
            tally.add(f"status {error.code}")
            time.sleep(float(error.headers.get("Retry-After", 1)))


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics") as response:
        return {
            name: float(value)
            for name, value in re.findall(r"^(pyfastv_\w+) ([\d.e+-]+)$", response.read().decode(), re.M)
        }


def settle(url: str) -> dict[str, float]:
    """The numbers once nothing is at work any more."""
    for _ in range(600):
        now = metrics(url)
        if now["pyfastv_active"] == now["pyfastv_waiting"] == 0:
            return now
        time.sleep(0.1)
    raise SystemExit(f"a slot was lost: {now}")


def burst(url: str, question: Question, count: int) -> Counter[str]:
    tally: Counter[str] = Counter()

    def one(_: int) -> str:
        try:
            whole(url, question)
            return "answered"
        except urllib.error.HTTPError as error:
            return f"status {error.code}" + (", Retry-After" if "Retry-After" in error.headers else "")

    with ThreadPoolExecutor(count) as pool:
        tally.update(pool.map(one, range(count)))
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", type=Path, help="folder with questions.jsonl and images")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=20, help="of each client")
    parser.add_argument("--leave", type=float, default=0.15, help="share of the requests that disconnect")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--queue", type=int, default=16)
    args = parser.parse_args()

    options = ("--n-ctx", "1024", "--slots", str(args.slots), "--queue", str(args.queue))
    with start(*options) as server:
        process = psutil.Process(server.pid)
        questions = questions_of(args.bench, args.clients * args.requests)
        right = {question: whole(server.url, question) for question in questions}
        before = settle(server.url)
        memory = [process.memory_info().rss]

        tally = Tally()
        begin = time.perf_counter()
        turns = [
            [questions[(number * args.requests + turn) % len(questions)] for turn in range(args.requests)]
            for number in range(args.clients)
        ]
        with ThreadPoolExecutor(args.clients) as pool:
            running = [
                pool.submit(client, server.url, asked, right, args.leave, number, tally)
                for number, asked in enumerate(turns)
            ]
            most_waiting = 0.0
            while not all(future.done() for future in running):
                most_waiting = max(most_waiting, metrics(server.url)["pyfastv_waiting"])
                memory.append(process.memory_info().rss)
                time.sleep(0.25)
            for future in running:
                future.result()
        seconds = time.perf_counter() - begin
        after = settle(server.url)
        settled = process.memory_info().rss
        refused = burst(server.url, questions[0], args.slots + args.queue + 24)
        settle(server.url)
        slots = [whole(server.url, question) == right[question] for question in questions[: args.slots]]

    done = {name: after[name] - before[name] for name in after if name.endswith("_total")}
    quarter = memory[len(memory) // 4]
    print(
        f"{dict(tally.statuses)} in {seconds:.1f} s; {len(set(questions))} questions, {len(tally.wrong)} answers differ"
    )
    print(f"seconds a request: median {statistics.median(tally.seconds):.2f}, most {max(tally.seconds):.2f}")
    counted = {
        name.removeprefix("pyfastv_").removesuffix("_total"): int(value) for name, value in done.items()
    }
    print(f"server: {counted}")
    print(f"most waiting {most_waiting:.0f} of {args.queue}; all slots free afterwards")
    points = {"at first": memory[0], "after a quarter": quarter, "most": max(memory), "in the end": settled}
    told = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in points.items())
    print(f"memory, MB: {told}")
    print(
        f"burst of {args.slots + args.queue + 24}: {dict(refused)}; afterwards {sum(slots)} of {len(slots)} right"
    )
    for line in tally.wrong:
        print(f"differs: {line}")


if __name__ == "__main__":
    main()
