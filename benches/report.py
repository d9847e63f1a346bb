"""The figures as Markdown, and whether they are what was asked for."""
import dataclasses
import os
import pathlib
import platform
import re
import statistics
import subprocess
import time
import typing

import pika

from actions import HERE
from queues import binary
from rows import BARE, CONSUME, CONSUME_ONE, FULL_ROUNDS, HAND, PYTHON, QUEUED, SPAWN, SWAIN, XARGS

PAGE = pathlib.Path(HERE, "../docs/benchmarks.md")
INTRO = pathlib.Path(HERE, "intro.md")
MEGABYTE = 1_000_000
MEMORY_OPTION = 256 << 20

# Each gives a figure of a way, beside the figures of the first way in the table.
COLUMNS = {
    "ms an action": lambda way, first: way["seconds"] * 1000,
    "a second": lambda way, first: 1 / way["seconds"],
    "MiB a second": lambda way, first: way["size"] / way["seconds"] / (1 << 20),
    "deckswain is faster by": lambda way, first: way["seconds"] / first["seconds"],
    "times one worker": lambda way, first: first["seconds"] / way["seconds"],
    "of the ideal": lambda way, first: first["seconds"] / way["seconds"] / way["number"],
    "of the first tenth": lambda way, first: first["seconds"] / way["seconds"],
    "CPU s a thousand": lambda way, first: way["cpu"] * 1000,
    "peak memory, MB": lambda way, first: way["memory"] / MEGABYTE,
    "p50, ms": lambda way, first: way["p50"] * 1000,
    "p95, ms": lambda way, first: way["p95"] * 1000,
    "p99, ms": lambda way, first: way["p99"] * 1000,
    "p50 over bare, ms": lambda way, first: (way["p50"] - first["p50"]) * 1000,
}


@dataclasses.dataclass
class Target:
    """What was asked of a row; `figure` is that of one round."""

    asked: str
    row: str
    figure: typing.Callable
    bound: float
    at_least: bool = True
    unit: str = ""

    def line(self, rounds):
        measured = statistics.median(self.figure(figures) for figures in rounds)
        met = measured >= self.bound if self.at_least else measured <= self.bound
        return f"| {self.asked} | {number(measured)}{self.unit} | {'yes' if met else '**no**'} |"


def faster(than):
    return lambda figures: figures[than]["seconds"] / figures[SWAIN]["seconds"]


def slower(than):
    return lambda figures: figures[SWAIN]["seconds"] / figures[than]["seconds"]


def peak_memory(way):
    return lambda figures: figures[way]["memory"] / MEGABYTE


def over_bare(figures):
    queued, bare = figures[QUEUED], figures[BARE]
    return (queued["p50"] - bare["p50"]) * 1000


def four_workers(figures):
    return figures["1 worker"]["seconds"] / figures["4 workers"]["seconds"]


TARGETS = [
    Target("one decky: at least 20 times the Python worker", "one-decky", faster(PYTHON), 20),
    Target("eight deckies: at least 25 times the Python worker", "deckies", faster(PYTHON), 25),
    Target("one decky: at most 1.3 times the time by hand", "one-decky", slower(HAND), 1.3, False),
    Target("eight deckies: at most 1.3 times the time by hand", "deckies", slower(HAND), 1.3, False),
    Target("one at a time: p50 at most 3 ms over a bare `docker exec`", "latency", over_bare, 3, False, " ms"),
    Target("reads, without batches: at least 0.95 of `xargs -P 8`", "bulk", faster(XARGS), 0.95),
    Target("client that does nothing: at least twice `amqp-consume`", "nothing", faster(CONSUME_ONE), 2),
    Target("the same, and eight `amqp-consume` beside each other", "nothing", faster(CONSUME), 2),
    Target("client that does nothing: at least 5 times the Python worker", "nothing", faster(PYTHON), 5),
    Target("client that does nothing: at least 0.8 of spawning alone", "nothing", faster(SPAWN), 0.8),
    Target("peak memory with the long backlog: under 30 MB", "backlog", peak_memory("all"), 30, False, " MB"),
    Target(
        "peak memory with bodies of 4 MiB: under `--memory` + 40 MB", "bodies-4MiB", peak_memory(SWAIN),
        MEMORY_OPTION / MEGABYTE + 40, False, " MB",
    ),
    Target("four workers: at least 3.6 times one", "workers", four_workers, 3.6),
]


def number(value):
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def cell(column, way, rounds):
    first = next(iter(rounds[0]))
    try:
        values = [COLUMNS[column](figures[way], figures[first]) for figures in rounds]
    except KeyError:
        return ""
    median = number(statistics.median(values))
    if len(values) == 1 or min(values) == max(values):
        return median
    return f"{median} ({number(min(values))} to {number(max(values))})"


def table(row, rounds):
    lines = [f"### {row.title}", "", " | ".join(["| way", *row.columns]) + " |"]
    lines.append("| --- " * (len(row.columns) + 1) + "|")
    for way in rounds[0]:
        lines.append(" | ".join([f"| {way}", *(cell(column, way, rounds) for column in row.columns)]) + " |")
    return "\n".join(lines) + "\n"


def targets(measured):
    """`measured` holds the rounds by the name of the row."""
    lines = ["### What was asked, and what was measured", "", "| asked | measured | met |", "| --- | --- | --- |"]
    return "\n".join(lines + [target.line(measured[target.row]) for target in TARGETS if target.row in measured]) + "\n"


def said(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()[0]


def versions():
    rabbitmq = said(os.environ["DECKSWAIN_TEST_RABBITMQCTL"], "version")
    tools = said("dpkg-query", "-W", "-f", "${Version}", "amqp-tools")
    return (
        f"{said(binary(), '--version')}; {said('docker', '--version')}; RabbitMQ {rabbitmq}; "
        f"amqp-tools {tools}; Python {platform.python_version()}, pika {pika.__version__}; {said('xargs', '--version')}"
    )


def head(rounds, command):
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    processor = model.group(1) if model else "unknown"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    lines = [
        f"`{command}`",
        "",
        f"Machine: {os.cpu_count()} cores ({processor}), {memory} GiB, Linux {platform.release()}.  ",
        f"Versions: {versions()}.  ",
        f"Date: {time.strftime('%Y-%m-%d')}; rounds: {rounds}.",
    ]
    if rounds < FULL_ROUNDS:
        lines += ["", "Quick form: small counts and few rounds, enough to see that every row works, too few to quote."]
    return "\n".join(lines) + "\n"


def write(parts):
    PAGE.write_text(INTRO.read_text().rstrip() + "\n\n## Last run\n\n" + "\n".join(parts))
