"""What is measured: each row is a table of ways to do the same, in turn, round after round."""
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import time
import typing

import pika

import actions
import peers
from peers import NOTHING, PAUSE, deckswain, python_worker, through_queue
from queues import Queues

DECKIES = os.environ["BENCH_DECKIES"].split()
NAMES = [f"d{n}" for n in range(64)]
FULL_ROUNDS = 5

SWAIN = "deckswain"
PYTHON = "Python worker (the seed's way)"
CONSUME = "8 `amqp-consume`, a script a message"
CONSUME_ONE = "one `amqp-consume`, a script a message"
DEFAULT = "deckswain with its default `--content-max`"
LOOP = "`docker exec` in a loop"
XARGS = "`xargs -P 8 docker exec`"
HAND = "by hand: one `docker exec` a decky fed all plants"
QUEUED = "deckswain, from publish to result"
BARE = "bare `docker exec`"
SPAWN = "`xargs -P 8` of the client: spawning alone"
SIZES = {"1 KiB": 1 << 10, "64 KiB": 1 << 16, "1 MiB": 1 << 20, "4 MiB": 1 << 22}


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many actions, in eights so that eight at once end together; slow ways have fewer of them."""

    plants: int = 500
    plants_slow: int = 48
    latency: int = 100
    bulk: int = 200
    probes: int = 64
    nothing: int = 4000
    bodies: tuple = (400, 64, 32, 24)
    bodies_slow: int = 64
    paused_s: int = 4
    backlog: int = 100_000


FULL = Counts()
QUICK = Counts(
    plants_slow=16, latency=30, bulk=80, probes=32, nothing=2000, paused_s=2, backlog=5000,
    bodies=(200, 16, 16, 16), bodies_slow=16,
)


@dataclasses.dataclass
class Row:
    """`measure` is one round: by way, its figures."""

    name: str
    title: str
    columns: list
    measure: typing.Callable
    rounds_max: int = FULL_ROUNDS

    def run(self, rounds):
        return [self.measure() for _ in range(min(rounds, self.rounds_max))]


def addresses():
    form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    names = [decky + actions.SUFFIX for decky in DECKIES]
    told = subprocess.run(["docker", "inspect", "--format", form, *names], check=True, capture_output=True, text=True)
    return dict(zip(DECKIES, told.stdout.split()))


def plants(counts, deckies):
    def measure():
        many = lambda: actions.plants(counts.plants, deckies)
        few = lambda: actions.plants(counts.plants_slow, deckies)
        return {
            SWAIN: through_queue(deckswain(), many()),
            DEFAULT: through_queue(deckswain(content_max=None), many()),
            PYTHON: through_queue(python_worker(), few()),
            CONSUME: peers.amqp_consume_plants(few()),
            LOOP: peers.bare_exec(few(), at_once=1),
            XARGS: peers.bare_exec(few()),
            HAND: peers.by_hand(many()),
        }

    return measure


def percentiles(took):
    cuts = statistics.quantiles(took, n=100, method="inclusive")
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}


def latency(count):
    """One action through the queue and one by a bare exec, in turn."""

    def measure():
        queued, bare = [], []
        with Queues() as queues, peers.Worker(deckswain()(queues.prefix)):
            publisher = queues.connection.channel()
            results = queues.channel.consume(queues.results, auto_ack=True)
            for n in range(count + 3):
                read = actions.reads(1, DECKIES, "/etc/hostname")[0]
                body, properties = json.dumps(read), pika.BasicProperties(delivery_mode=2)
                began = time.monotonic()
                publisher.basic_publish(f"{queues.prefix}.actions", "decky.x", body, properties)
                _, _, result = next(results)
                queued.append(time.monotonic() - began)
                assert json.loads(result)["success"], result
                command = ["docker", "exec", actions.container(read), *actions.command(read)]
                began = time.monotonic()
                subprocess.run(command, check=True, capture_output=True)
                bare.append(time.monotonic() - began)
            queues.channel.cancel()
        # The first few find caches cold and connections not yet made.
        return {BARE: percentiles(bare[3:]), QUEUED: percentiles(queued[3:])}

    return measure


def bulk(count):
    def measure():
        reads = lambda: actions.reads(count, DECKIES, "/etc/hostname")
        return {SWAIN: through_queue(deckswain(), reads()), XARGS: peers.bare_exec(reads())}

    return measure


def probes(count):
    def measure():
        made = lambda: actions.probes(count, DECKIES, addresses())
        return {
            SWAIN: through_queue(deckswain(), made()),
            PYTHON: through_queue(python_worker(), made()),
            XARGS: peers.bare_exec(made()),
        }

    return measure


def nothing(count):
    def measure():
        reads = lambda: actions.reads(count, NAMES, "/f")
        return {
            SWAIN: through_queue(deckswain(NOTHING), reads()),
            PYTHON: through_queue(python_worker(NOTHING), reads()),
            CONSUME: peers.amqp_consume_reads(reads(), NOTHING),
            CONSUME_ONE: peers.amqp_consume_reads(reads(), NOTHING, at_once=1),
            SPAWN: peers.xargs([["x"]] * count, [NOTHING]),
        }

    return measure


def bodies(size, count, count_slow):
    def measure():
        many = actions.bodies(count, DECKIES, size)
        few = actions.bodies(min(count, count_slow), DECKIES, size)
        figures = {
            SWAIN: through_queue(deckswain(content_max=None), many),
            "`xargs -P 8 docker exec -i` of `base64 -d`": peers.bare_exec_of_bodies(few),
        }
        clear_away()
        return {way: figure | {"size": size} for way, figure in figures.items()}

    return measure


def clear_away():
    for decky in DECKIES:
        subprocess.run(["docker", "exec", decky + actions.SUFFIX, "sh", "-c", "rm -rf /srv/*"], check=True)


def workers(seconds):
    """Several workers on one queue; timed from when the last of them has begun to consume."""

    def one(number):
        count = 80 * number * seconds
        with Queues() as queues:
            queues.submit(actions.reads(count, NAMES, "/f"))
            command = deckswain(PAUSE, concurrency=4, content_max=None)(queues.prefix)
            with contextlib.ExitStack() as running:
                for _ in range(number):
                    running.enter_context(peers.Worker(command))
                began, before = time.monotonic(), queues.depth(queues.results)
                ended = queues.wait_for(queues.results, count)
            queues.check_results(count)
        return {"seconds": (ended - began) / (count - before), "number": number}

    return lambda: {f"{number} worker{'s' * (number > 1)}": one(number) for number in (1, 2, 4)}


def backlog(count):
    def measure():
        with Queues() as queues:
            queues.submit(actions.reads(count, NAMES, "/f"))
            with peers.Worker(deckswain(NOTHING)(queues.prefix)) as running:
                times = queues.times_of_tenths(count)
        begins = [running.began, *times[:-1]]
        tenths = [{"seconds": (end - begin) / (count / 10)} for begin, end in zip(begins, times)]
        whole = {"seconds": (times[-1] - running.began) / count, "memory": running.memory}
        return {f"tenth {n + 1}": tenth for n, tenth in enumerate(tenths)} | {"all": whole}

    return measure


def rows(counts):
    rate = ["ms an action", "a second", "deckswain is faster by"]
    percentile = ["p50, ms", "p95, ms", "p99, ms", "p50 over bare, ms"]
    made = [
        Row("one-decky", "A backlog of small plants on one decky", rate, plants(counts, DECKIES[:1])),
        Row("deckies", "The same over all eight deckies", rate, plants(counts, DECKIES)),
        Row("latency", "One action at a time", percentile, latency(counts.latency)),
        Row("bulk", "Reads, which share no exec, over eight deckies", rate, bulk(counts.bulk)),
        Row("probes", "Probes over eight deckies", rate, probes(counts.probes)),
        Row("nothing", "A client program that does nothing", [*rate, "CPU s a thousand"], nothing(counts.nothing)),
    ]
    for (name, size), count in zip(SIZES.items(), counts.bodies):
        columns = ["a second", "MiB a second", "deckswain is faster by", "peak memory, MB"]
        measure = bodies(size, count, counts.bodies_slow)
        made.append(Row("bodies-" + name.replace(" ", ""), f"Bodies of {name}", columns, measure))
    columns = ["a second", "times one worker", "of the ideal"]
    made.append(Row("workers", "Several workers, a client that takes 50 ms", columns, workers(counts.paused_s)))
    columns = ["a second", "of the first tenth", "peak memory, MB"]
    title = f"A backlog of {counts.backlog:,} small reads, a client that does nothing"
    made.append(Row("backlog", title, columns, backlog(counts.backlog), rounds_max=1))
    return made
