"""Compares two builds of deckswain, row by row, in turns within each round.

    against.py BINARY_BEFORE ROUNDS [--only ROW,...]

Each figure is the time of the build before over the time of this one: below 1 this build is slower.
The broker, the deckies and this build are those of the environment that scripts/bench sets.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import actions
import rows
from peers import NOTHING, PAUSE, Worker, deckswain, through_queue
from queues import Queues, binary

BOUND = 0.95
CLI_ACTIONS = 5000


def seconds(figures):
    return figures["seconds"]


def drain(worker, made):
    return lambda: seconds(through_queue(worker, made()))


def latency():
    return rows.latency(60)()[rows.QUEUED]["p50"]


def timed(command, **options):
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, **options)
    return time.monotonic() - began


def submit():
    text = "\n".join(json.dumps(action) for action in actions.reads(CLI_ACTIONS, rows.NAMES, "/f"))
    with Queues() as queues:
        return timed([binary(), "submit", "--prefix", queues.prefix], input=text, text=True) / CLI_ACTIONS


def letters(*command):
    """A `dead-letters` command over letters that a worker with no patience has made."""

    def measure():
        with Queues() as queues:
            queues.submit(actions.reads(CLI_ACTIONS, rows.NAMES, "/f"))
            argv = [binary(), "worker", "--prefix", queues.prefix, "--deny-decky", "*"]
            with Worker(argv):
                queues.wait_for(f"{queues.prefix}.dead", CLI_ACTIONS)
            return timed([binary(), "dead-letters", *command, "--prefix", queues.prefix]) / CLI_ACTIONS

    return measure


def bodies(size, count):
    def measure():
        made = actions.bodies(count, rows.DECKIES, size)
        took = seconds(through_queue(deckswain(content_max=None), made))
        rows.clear_away()
        return took

    return measure


def measures():
    one, all_of_them, counts = rows.DECKIES[:1], rows.DECKIES, rows.FULL
    made = {
        "one-decky": drain(deckswain(), lambda: actions.plants(counts.plants, one)),
        "one-decky-default": drain(deckswain(content_max=None), lambda: actions.plants(counts.plants, one)),
        "deckies": drain(deckswain(), lambda: actions.plants(counts.plants, all_of_them)),
        "deckies-default": drain(deckswain(content_max=None), lambda: actions.plants(counts.plants, all_of_them)),
        "latency": latency,
        "bulk": drain(deckswain(), lambda: actions.reads(counts.bulk, all_of_them, "/etc/hostname")),
        "probes": drain(deckswain(), lambda: actions.probes(counts.probes, all_of_them, rows.addresses())),
        "nothing": drain(deckswain(NOTHING), lambda: actions.reads(counts.nothing, rows.NAMES, "/f")),
        "worker": drain(deckswain(PAUSE, concurrency=4), lambda: actions.reads(240, rows.NAMES, "/f")),
        "submit": submit,
        "list": letters("list"),
        "replay": letters("replay", "--yes"),
    }
    for (name, size), count in zip(rows.SIZES.items(), (200, 64, 32, 16)):
        made["bodies-" + name.replace(" ", "")] = bodies(size, count)
    return made


def compare(measure, builds):
    """One round: each build once, the order by turns."""
    took = {}
    for name, path in builds:
        os.environ["DECKSWAIN_BIN"] = path
        took[name] = measure()
    return took["before"] / took["now"]


def main():
    parser = argparse.ArgumentParser(prog="against.py")
    parser.add_argument("before")
    parser.add_argument("rounds", type=int)
    parser.add_argument("--only", type=lambda text: tuple(text.split(",")), default=("",), metavar="ROW,...")
    asked = parser.parse_args()
    builds = [("before", asked.before), ("now", binary())]
    chosen = {name: measure for name, measure in measures().items() if name.startswith(asked.only)}
    if not chosen:
        sys.exit(f"there is no such row; there are {', '.join(measures())}")
    ratios = {name: [] for name in chosen}
    for number in range(asked.rounds):
        for name, measure in chosen.items():
            ratios[name].append(compare(measure, builds if number % 2 == 0 else builds[::-1]))
        print(f"round {number + 1} of {asked.rounds}", file=sys.stderr, flush=True)
    print(f"| row | before over now, median of {asked.rounds} rounds | smallest to largest | at least {BOUND} |")
    print("| --- | --- | --- | --- |")
    for name, measured in ratios.items():
        median = statistics.median(measured)
        met = "yes" if median >= BOUND else "**no**"
        print(f"| {name} | {median:.2f} | {min(measured):.2f} to {max(measured):.2f} | {met} |")


main()
