"""Compares deckswain with what a user would use instead, in one run, as ratios.

    compare.py ROUNDS    reads the broker and the deckies from the environment that scripts/bench sets

Each row is measured in turn, round after round, so that a busy machine troubles all of them alike.
Printed is the median of the rounds with its smallest and largest, and the ratio of the medians.
"""
import base64
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import uuid

import pika

HERE = os.path.dirname(os.path.abspath(__file__))
URL = os.environ["DECKSWAIN_BROKER"]
DECKSWAIN = os.environ["DECKSWAIN_BIN"]
DECKIES = os.environ["BENCH_DECKIES"].split()
SUFFIX = "-ssh"
CONTENT = "- [ ] renew the certificate\n- [ ] call Bob about the backup\n"


class Queues:
    """The exchanges and queues of one measurement, gone with it."""

    def __enter__(self):
        self.prefix = "b" + uuid.uuid4().hex[:10]
        subprocess.run([DECKSWAIN, "topology", "--declare", "--prefix", self.prefix], check=True, capture_output=True)
        self.connection = pika.BlockingConnection(pika.URLParameters(URL))
        self.channel = self.connection.channel()
        return self

    def __exit__(self, *_):
        for name in ["actions", "results", "dead"] + ["retry." + delay for delay in "1s 5s 30s 2m 10m".split()]:
            self.channel.queue_delete(f"{self.prefix}.{name}")
        for name in ["actions", "results", "dead"]:
            self.channel.exchange_delete(f"{self.prefix}.{name}")
        self.connection.close()

    def submit(self, actions):
        text = "\n".join(json.dumps(action) for action in actions)
        command = [DECKSWAIN, "submit", "--prefix", self.prefix]
        subprocess.run(command, input=text, text=True, check=True, capture_output=True)

    def wait_for_results(self, count):
        """Takes so many results; gives how many were no success."""
        failed = 0
        for _, _, body in self.channel.consume(self.prefix + ".results", auto_ack=True, inactivity_timeout=120):
            assert body is not None, "no result for two minutes"
            failed += not json.loads(body)["success"]
            count -= 1
            if count == 0:
                break
        self.channel.cancel()
        return failed


def plants(count, deckies, directory):
    return [
        {
            "kind": "file", "action_id": str(uuid.uuid4()), "dst_uuid": "d-1", "dst_name": deckies[n % len(deckies)],
            "path": f"{directory}/f{n}", "content": CONTENT, "mtime": "2026-04-17T18:05:00Z",
        }
        for n in range(count)
    ]


def shell_plant(action):
    """The seed's plant, as a line of shell."""
    path = shlex.quote(action["path"])
    directory = shlex.quote(os.path.dirname(action["path"]))
    content = base64.b64encode(action["content"].encode()).decode()
    return f"mkdir -p {directory} && printf %s {content} | base64 -d > {path} && touch -d '2026-04-17 18:05' {path}"


def through_queue(worker, actions):
    """Seconds an action, from the first delivery to the last result; the backlog is there beforehand."""
    with Queues() as queues:
        queues.submit(actions)
        process = subprocess.Popen(worker(queues.prefix), stderr=subprocess.PIPE, text=True)
        try:
            for line in process.stderr:
                if "consuming" in line:
                    break
            began = time.monotonic()
            # What the worker logs is read along, or it would block on a full pipe.
            reader = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            failed = queues.wait_for_results(len(actions))
            took = time.monotonic() - began
            assert failed == 0, f"{failed} failed"
        finally:
            process.terminate()
            process.wait()
            reader.wait()
    return took / len(actions)


def deckswain(client, *options):
    def command(prefix):
        base = [DECKSWAIN, "worker", "--prefix", prefix, "--container-cli", client, "--container-suffix", SUFFIX]
        return base + ["--content-max", "65536", *options]

    return command


def python_worker(client, concurrency):
    return lambda prefix: [sys.executable, f"{HERE}/python_worker.py", URL, prefix, client, SUFFIX, str(concurrency)]


def fresh():
    return "/srv/" + uuid.uuid4().hex


def backlog(deckies, batched, alone):
    """The same backlog of plants: by deckswain, and by the others in numbers that take as long."""
    many = lambda: plants(batched, deckies, fresh())
    few = lambda: plants(alone, deckies, fresh())
    yield "deckswain", lambda: through_queue(deckswain("docker"), many())
    yield "Python worker (the seed's way)", lambda: through_queue(python_worker("docker", 8), few())
    yield "`docker exec` in a loop", lambda: executed(few(), 1)
    yield "`xargs -P 8 docker exec`", lambda: executed(few(), 8)
    yield "by hand: one `docker exec` a decky fed all plants", lambda: by_hand(many(), deckies)


def executed(actions, at_once):
    lines = "\0".join(f"{action['dst_name']}{SUFFIX}\0{shell_plant(action)}" for action in actions)
    command = ["xargs", "-0", "-n", "2", "-P", str(at_once), "sh", "-c", 'exec docker exec "$0" sh -c "$1"']
    began = time.monotonic()
    subprocess.run(command, input=lines, text=True, check=True, capture_output=True)
    return (time.monotonic() - began) / len(actions)


def by_hand(actions, deckies):
    began = time.monotonic()
    running = []
    for decky in deckies:
        lines = "\n".join(shell_plant(action) for action in actions if action["dst_name"] == decky)
        process = subprocess.Popen(["docker", "exec", "-i", decky + SUFFIX, "sh"], stdin=subprocess.PIPE, text=True)
        process.stdin.write(lines + "\n")
        process.stdin.close()
        running.append(process)
    assert all(process.wait() == 0 for process in running)
    return (time.monotonic() - began) / len(actions)


def nothing(count):
    """A client program that does nothing: what is left is the worker itself. Reads share no exec."""
    reads = lambda: [
        {"kind": "read", "action_id": str(uuid.uuid4()), "dst_uuid": "d-1", "dst_name": f"d{n % 64}", "path": "/f", "content": ""}
        for n in range(count)
    ]
    bare = lambda: [{key: value for key, value in action.items() if key != "content"} for action in reads()]
    yield "deckswain", lambda: through_queue(deckswain("true"), bare())
    yield "Python worker", lambda: through_queue(python_worker("true", 8), bare())
    yield "`amqp-consume` running a script", lambda: amqp_consume(bare())
    yield "`xargs -P 8 true`: spawning alone", lambda: spawned(count)


def amqp_consume(actions):
    with Queues() as queues, tempfile.TemporaryDirectory() as folder:
        queues.submit(actions)
        script = f"{folder}/script"
        with open(script, "w") as file:
            file.write("#!/bin/sh\ncat >/dev/null\ntrue exec d-ssh head -c 1048577 /f\n")
        os.chmod(script, 0o755)
        command = ["amqp-consume", f"--url={URL}", f"--queue={queues.prefix}.actions", f"--count={len(actions)}", "--prefetch-count=16", script]
        began = time.monotonic()
        subprocess.run(command, check=True, capture_output=True)
        return (time.monotonic() - began) / len(actions)


def spawned(count):
    lines = "\0".join("x" for _ in range(count))
    began = time.monotonic()
    subprocess.run(["xargs", "-0", "-n", "1", "-P", "8", "true"], input=lines, text=True, check=True)
    return (time.monotonic() - began) / count


def latency(count):
    """One action at a time, from its publish to its result; beside it the same command by a bare exec."""
    decky = DECKIES[0]

    def queued():
        took = []
        with Queues() as queues:
            process = subprocess.Popen(deckswain("docker")(queues.prefix), stderr=subprocess.PIPE, text=True)
            for line in process.stderr:
                if "consuming" in line:
                    break
            reader = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            publisher = queues.connection.channel()
            results = queues.channel.consume(queues.prefix + ".results", auto_ack=True)
            for n in range(count + 3):
                action = {"kind": "read", "action_id": str(uuid.uuid4()), "dst_uuid": "d-1", "dst_name": decky, "path": "/etc/hostname"}
                began = time.monotonic()
                publisher.basic_publish(f"{queues.prefix}.actions", "decky.x", json.dumps(action), pika.BasicProperties(delivery_mode=2))
                next(results)
                if n >= 3:
                    took.append(time.monotonic() - began)
            queues.channel.cancel()
            process.terminate()
            process.wait()
            reader.wait()
        return statistics.median(took)

    def bare():
        took = []
        for _ in range(count):
            began = time.monotonic()
            command = ["docker", "exec", decky + SUFFIX, "head", "-c", "1048577", "/etc/hostname"]
            subprocess.run(command, check=True, capture_output=True)
            took.append(time.monotonic() - began)
        return statistics.median(took)

    yield "deckswain, publish to result, p50", queued
    yield "bare `docker exec`, p50", bare


def measure(title, ways, rounds):
    ways = list(ways)
    seconds = {name: [] for name, _ in ways}
    for _ in range(rounds):
        for name, way in ways:
            seconds[name].append(way())
    first = statistics.median(seconds[ways[0][0]])
    print(f"\n### {title}\n\n| way | ms an action (smallest to largest) | a second | deckswain is faster by |")
    print("| --- | --- | --- | --- |")
    for name, _ in ways:
        median = statistics.median(seconds[name])
        spread = f"{min(seconds[name]) * 1000:.2f} to {max(seconds[name]) * 1000:.2f}"
        print(f"| {name} | {median * 1000:.2f} ({spread}) | {1 / median:.0f} | {median / first:.2f} |")
    sys.stdout.flush()


def told(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def machine():
    model = re.search(r"model name\s*: (.*)", open("/proc/cpuinfo").read())
    memory = int(re.search(r"MemTotal: *(\d+)", open("/proc/meminfo").read()).group(1)) // 1024 // 1024
    print(f"Machine: {os.cpu_count()} cores ({model.group(1) if model else 'unknown'}), {memory} GiB; shared with others.")
    print(f"Versions: {told(DECKSWAIN, '--version')}; {told('docker', '--version')}; Python {sys.version.split()[0]}, pika {pika.__version__}.")
    print(f"Date: {time.strftime('%Y-%m-%d')}; {ROUNDS} rounds.")


ROUNDS = int(sys.argv[1])
machine()
scale = 5 if ROUNDS >= 5 else 2
measure("A backlog of small plants on one decky", backlog(DECKIES[:1], 100 * scale, 10 * scale), ROUNDS)
measure("The same over all deckies", backlog(DECKIES, 100 * scale, 10 * scale), ROUNDS)
measure("A client program that does nothing", nothing(400 * scale), ROUNDS)
measure("One action at a time", latency(8 * scale), ROUNDS)
