"""deckswain and what would be used instead: each does actions, and tells what they cost.

A way gives figures: `seconds` an action, and where they are asked for `cpu` seconds an action and
the peak `memory` in bytes.
"""
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from actions import HERE, READ_MAX, SUFFIX, command, container, shell_plant
from queues import URL, Queues, binary

AT_ONCE = 8
CLIENTS = os.environ["BENCH_CLIENTS"]
NOTHING = f"{CLIENTS}/nothing"
PAUSE = f"{CLIENTS}/pause"


class Process:
    """One process, with what it and its children cost once it has ended."""

    def __init__(self, argv, **pipes):
        self.popen = subprocess.Popen(argv, **pipes)
        self.cpu = None

    def wait(self):
        _, status, usage = os.wait4(self.popen.pid, 0)
        self.popen.returncode = os.waitstatus_to_exitcode(status)
        self.cpu = usage.ru_utime + usage.ru_stime
        return self.popen.returncode


class Worker:
    """A worker that consumes: from `began` on entry, ended on exit."""

    def __init__(self, argv):
        self.argv = argv

    def __enter__(self):
        # Its log goes to a file: a pipe would have to be read along.
        self.log = tempfile.NamedTemporaryFile(prefix="worker-log")
        self.process = Process(self.argv, stderr=self.log, stdin=subprocess.DEVNULL)
        log = pathlib.Path(self.log.name)
        while "consuming" not in log.read_text():
            assert self.process.popen.poll() is None, log.read_text()
            time.sleep(0.001)
        self.began = time.monotonic()
        return self

    def __exit__(self, *_):
        status = pathlib.Path(f"/proc/{self.process.popen.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s*(\d+) kB", status)
        self.memory = int(peak.group(1)) * 1024 if peak else None
        self.process.popen.send_signal(signal.SIGTERM)
        self.process.wait()
        self.cpu = self.process.cpu
        self.log.close()


def deckswain(client="docker", concurrency=AT_ONCE, content_max=65536):
    """How deckswain is started on the queues with a prefix."""
    options = ["--container-cli", client, "--container-suffix", SUFFIX, "--concurrency", str(concurrency)]
    if content_max:
        options += ["--content-max", str(content_max)]
    return lambda prefix: [binary(), "worker", "--prefix", prefix, *options]


def python_worker(client="docker"):
    return lambda prefix: [sys.executable, f"{HERE}/python_worker.py", URL, prefix, client, str(AT_ONCE)]


def through_queue(worker, actions):
    """From a worker's first delivery to its last result; the backlog is there beforehand."""
    with Queues() as queues:
        queues.submit(actions)
        with Worker(worker(queues.prefix)) as running:
            took = queues.wait_for(queues.results, len(actions)) - running.began
        queues.check_results(len(actions))
    return {"seconds": took / len(actions), "cpu": running.cpu / len(actions), "memory": running.memory}


def timed(processes, count):
    """Runs processes beside each other until all have ended well."""
    began = time.monotonic()
    running = [Process(argv, **pipes) for argv, pipes in processes]
    ended = [process.wait() for process in running]
    took = time.monotonic() - began
    assert not any(ended), f"ended with {ended}"
    return {"seconds": took / count, "cpu": sum(process.cpu for process in running) / count}


def amqp_consume(texts, script, at_once=AT_ONCE):
    """So many `amqp-consume` beside each other; each runs a shell script a message, one after the other."""
    with Queues() as queues, tempfile.TemporaryDirectory() as folder:
        queues.publish_texts(texts)
        program = pathlib.Path(folder, "script")
        program.write_text("#!/bin/sh\n" + script)
        program.chmod(0o755)
        base = ["amqp-consume", f"--url={URL}", f"--queue={queues.texts}", "--prefetch-count=4"]
        shares = [len(range(n, len(texts), at_once)) for n in range(at_once)]
        commands = [[*base, f"--count={share}", str(program)] for share in shares if share]
        return timed([(command, {"stdout": subprocess.DEVNULL}) for command in commands], len(texts))


def amqp_consume_plants(actions, client="docker"):
    texts = [f"{container(action)}\n{shell_plant(action)}\n" for action in actions]
    return amqp_consume(texts, f'read -r container\nexec {client} exec -i "$container" sh\n')


def amqp_consume_reads(actions, client, at_once=AT_ONCE):
    texts = [f"{container(action)} {action['path']}\n" for action in actions]
    script = f'read -r container path\nexec {client} exec "$container" head -c {READ_MAX} "$path"\n'
    return amqp_consume(texts, script, at_once)


def xargs(argvs, base, at_once=AT_ONCE):
    """The base with each of the argument lists, so many at once."""
    with tempfile.TemporaryFile("w+") as items:
        items.write("\0".join("\0".join(argv) for argv in argvs))
        items.seek(0)
        command = ["xargs", "-0", "-n", str(len(argvs[0])), "-P", str(at_once), *base]
        return timed([(command, {"stdin": items, "stdout": subprocess.DEVNULL})], len(argvs))


def bare_exec(actions, at_once=AT_ONCE):
    return xargs([[container(action), *command(action)] for action in actions], ["docker", "exec"], at_once)


def bare_exec_of_bodies(actions):
    """Each body from a file of base64, as an action carries it."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(actions[0]["content_bytes"])
        file.flush()
        script = 'exec docker exec -i "$0" sh -c "base64 -d >$1" <"$2"'
        argvs = [[container(action), action["path"], file.name] for action in actions]
        return xargs(argvs, ["sh", "-c", script])


def by_hand(actions):
    """One exec a decky, fed the seed's plants as lines."""
    lines = {}
    for action in actions:
        lines.setdefault(container(action), []).append(shell_plant(action) + "\n")
    processes = []
    for name, plants in lines.items():
        file = tempfile.TemporaryFile("w+")
        file.writelines(plants)
        file.seek(0)
        processes.append((["docker", "exec", "-i", name, "sh"], {"stdin": file}))
    return timed(processes, len(actions))
