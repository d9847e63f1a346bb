import os, signal, sys, time

mark = sys.stdin.buffer.readline().strip()
temporary = sys.stdin.buffer.read()


def holds(pid):
    for name in ("cmdline", "environ"):
        try:
            with open("/proc/%d/%s" % (pid, name), "rb") as file:
                if mark in file.read():
                    return True
        except OSError:
            pass
    return False


def session(pid):
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            words = file.read().rpartition(b")")[2].split()
        return 0 if words[0] in b"ZX" else int(words[3])
    except (OSError, IndexError):
        return 0


sessions = set()
frozen = set()
left = True
for _ in range(40):
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    alive = [(pid, session(pid)) for pid in pids if pid not in (1, os.getpid())]
    marked = [(pid, sid) for pid, sid in alive if sid and holds(pid)]
    sessions.update(sid for _, sid in marked if sid > 1)
    doomed = {pid for pid, _ in marked} | {pid for pid, sid in alive if sid in sessions}
    if not doomed:
        left = False
        break
    fresh = doomed - frozen
    frozen |= fresh
    for pid in fresh or doomed:
        try:
            os.kill(pid, signal.SIGSTOP if fresh else signal.SIGKILL)
        except OSError:
            pass
    time.sleep(0.01)
if temporary:
    try:
        os.unlink(temporary)
    except OSError:
        pass
sys.stdout.write("left" if left else "gone")
