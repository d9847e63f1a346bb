import os, stat, sys, time

os.environ["TZ"] = "UTC0"
time.tzset()
mask = os.umask(0)


def unescape(text):
    first, *rest = text.split(b"\\")
    parts, literal = [first], False
    for part in rest:
        if literal or not part:
            parts.append(part if literal else b"\\")
            literal = not literal
        elif part[:1] == b"n":
            parts += b"\n", part[1:]
        else:
            parts += bytes([int(part[1:4], 8)]), part[4:]
    return b"".join(parts)


def number(name, find):
    try:
        return find(name)[2]
    except KeyError:
        return int(name)


def owners(owner):
    import grp, pwd

    user, _, group = owner.decode().partition(":")
    return number(user, pwd.getpwnam), number(group, grp.getgrnam) if group else -1


def holds(path, sums):
    import hashlib

    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest() in sums.decode().split()


def plant(path, directory, temporary, hidden, mode, owner, stamp, sums, size, content):
    if size or sums and not holds(path, sums):
        raise ValueError
    ids = owners(owner) if owner else None
    made, missing, there = [], [], directory
    while not os.path.lexists(there):
        missing.append(there)
        there = os.path.dirname(there) or b"/"
    try:
        for name in reversed(missing):
            os.mkdir(name, 0o777 & ~mask)
            made.append(name)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 & ~int(hidden, 8))
        made.append(temporary)
        rest = unescape(content)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.close(file)
        if ids:
            for name in made:
                os.chown(name, *ids)
        if mode:
            os.chmod(temporary, int(mode, 8))
        if stamp:
            if len(stamp) != 15:
                raise ValueError
            parts = stamp[:4], stamp[4:6], stamp[6:8], stamp[8:10], stamp[10:12], stamp[13:]
            seconds = time.mktime((*map(int, parts), 0, 0, 0))
            os.utime(temporary, (seconds, seconds))
        os.rename(temporary, path)
    except BaseException:
        for name in reversed(made):
            (os.unlink if name is temporary else os.rmdir)(name)
        raise


def remove(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def run(line):
    try:
        if b"\\''" in line:
            raise ValueError
        words = line[line.index(b"'") + 1 : -1].split(b"' '")
        (plant if line[:1] == b"p" else remove)(*words)
        return b"", 0
    except Exception:
        # Whatever is not plain is for the shell to do, and to tell of, in this program's first environment.
        import subprocess

        with open("/proc/self/environ", "rb") as file:
            env = dict(pair.split(b"=", 1) for pair in file.read().split(b"\0") if b"=" in pair)
        script = os.fsencode(sys.argv[1]) + b"\n" + line
        quiet, told, both = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT
        os.umask(mask)
        ended = subprocess.run([b"sh", b"-c", script], stdin=quiet, stdout=told, stderr=both, env=env)
        os.umask(0)
        return ended.stdout, ended.returncode


code = sys.stdin.buffer.readline()[:-1]
for count, line in enumerate(sys.stdin.buffer):
    if line[-1:] == b"\n":
        said, status = run(line[:-1])
        os.write(1, b"%s\n%s %d %d\n" % (said, code, count, status))
