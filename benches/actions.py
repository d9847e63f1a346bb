"""The actions that are measured, and the seed's commands for the same."""
import base64
import os
import random
import shlex
import uuid

HERE = os.path.dirname(os.path.abspath(__file__))
SUFFIX = "-ssh"
CONTENT = "- [ ] renew the certificate\n- [ ] call Bob about the backup\n"
PROBE = """\
import socket, sys

s = socket.create_connection((sys.argv[1], 22), 3)
b = s.recv(128)
s.close()
sys.stdout.write(b.decode("latin1"))
"""
READ_MAX = "1048577"


def action(kind, decky, **fields):
    return {"kind": kind, "action_id": str(uuid.uuid4()), "dst_uuid": "d-1", "dst_name": decky, **fields}


def fresh_path():
    return "/srv/" + uuid.uuid4().hex


def plants(count, deckies):
    directory = fresh_path()
    look = {"content": CONTENT, "mtime": "2026-04-17T18:05:00Z"}
    return [action("file", deckies[n % len(deckies)], path=f"{directory}/f{n}", **look) for n in range(count)]


def reads(count, deckies, path):
    return [action("read", deckies[n % len(deckies)], path=path) for n in range(count)]


def probes(count, deckies, addresses):
    """Each decky opens a connection to the next one."""
    made = []
    for n in range(count):
        source, target = deckies[n % len(deckies)], deckies[(n + 1) % len(deckies)]
        made.append(action("traffic", target, src_uuid="d-2", src_name=source, dst_ip=addresses[target]))
    return made


def bodies(count, deckies, size):
    start = fresh_path()
    content = base64.b64encode(random.randbytes(size)).decode()
    return [
        action("file", deckies[n % len(deckies)], path=f"{start}.{n}", content_bytes=content)
        for n in range(count)
    ]


def container(of):
    return of.get("src_name", of["dst_name"]) + SUFFIX


def shell_plant(plant):
    """The seed's plant, as a line of shell."""
    path = shlex.quote(plant["path"])
    directory = shlex.quote(os.path.dirname(plant["path"]))
    content = base64.b64encode(plant["content"].encode()).decode()
    return f"mkdir -p {directory} && printf %s {content} | base64 -d > {path} && touch -d '2026-04-17 18:05' {path}"


def command(of):
    """What is run in the container, by the action's kind."""
    match of["kind"]:
        case "file":
            return ["sh", "-c", shell_plant(of)]
        case "read":
            return ["head", "-c", READ_MAX, of["path"]]
        case "traffic":
            return ["python3", "-c", PROBE, of["dst_ip"]]
