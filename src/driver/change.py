import os, stat, sys

FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LINKS_MAX = 40
# Other workers may make the same directories meanwhile.
ROUNDS_MAX = 3
# What the names of a fleet have in common in a decky.
PREFIX_BYTES = 9
SHELL = b'read -r c;eval "$(printf %b "$c")"'
me = os.geteuid()
mask = os.umask(0)
held, swept = [], set()


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


# A descriptor that is closed when the line has been done.
def hold(name, flags=os.O_PATH | FOLDER, here=None):
    descriptor = os.open(name, flags, 0o600, dir_fd=here)
    held.append(descriptor)
    return descriptor


def look(name, here):
    return os.stat(name, dir_fd=here, follow_symlinks=False)


# Whether nobody but this user can change the names in a directory.
def is_private(found):
    return found.st_uid == me and not found.st_mode & 0o22


# Whether a link was made by root where none but root can make or move one.
def is_trusted(name, here):
    folder, link = os.fstat(here), look(name, here)
    sticky = folder.st_mode & stat.S_ISVTX
    return folder.st_uid == link.st_uid == 0 and (sticky or not folder.st_mode & 0o22)


# The deepest directory of a path that is there, and the names that are missing below it.
def walk(path, links):
    here, parts, hops = hold(b"/"), path.split(b"/")[::-1], 0
    while parts:
        part = parts.pop()
        if part in (b"", b"."):
            continue
        try:
            here = hold(part, here=here)
        except FileNotFoundError:
            return here, [part, *reversed(parts)]
        except NotADirectoryError:
            if not stat.S_ISLNK(look(part, here).st_mode):
                raise
            hops += 1
            if not links or hops > LINKS_MAX or not is_trusted(part, here):
                raise ValueError
            target = os.readlink(part, dir_fd=here)
            parts += target.split(b"/")[::-1]
            if target[:1] == b"/":
                here = hold(b"/")
    return here, []


def holds(name, here, sums):
    sums = sums.decode().split()
    file = hold(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, here)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or str(found.st_size) not in sums[::2]:
        return False
    try:
        from _sha256 import sha256
    except ImportError:
        from hashlib import sha256
    digest = sha256()
    while piece := os.read(file, 1 << 16):
        digest.update(piece)
    return digest.hexdigest() in sums[1::2]


# A directory's times are set again after what was done in it.
def restore(here, found):
    try:
        os.utime(b".", ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=here)
    except OSError:
        pass


def is_staging(found):
    return stat.S_ISDIR(found.st_mode) and found.st_uid == me and found.st_mode & 0o777 == 0o700


# Removes a staging directory with what this fleet put in there, and no other.
def unstage(name, here, inner):
    folder = hold(name, os.O_RDONLY | FOLDER, here)
    names = os.listdir(folder)
    if not is_staging(os.fstat(folder)) or names not in ([], [os.fsdecode(inner)]):
        return
    if names and stat.S_ISDIR(look(inner, folder).st_mode):
        import shutil

        shutil.rmtree(inner, dir_fd=folder)
    elif names:
        os.unlink(inner, dir_fd=folder)
    os.rmdir(name, dir_fd=here)


# Removes what killed changes left in a directory, once for each.
def sweep(here, found, temporary, inner, age_min):
    import time

    if (found.st_dev, found.st_ino) in swept:
        return
    swept.add((found.st_dev, found.st_ino))
    listed = hold(b".", os.O_RDONLY | FOLDER, here)
    prefix = os.fsdecode(temporary[:PREFIX_BYTES])
    for name in os.listdir(listed):
        if name.startswith(prefix):
            try:
                left = look(name, here)
                if left.st_uid != me or time.time() - left.st_ctime < int(age_min):
                    continue
                if stat.S_ISREG(left.st_mode) and is_private(found):
                    os.unlink(name, dir_fd=here)
                else:
                    unstage(name, here, inner)
            except OSError:
                pass


# Makes and enters a directory that none but this user can enter; a name that is taken is drawn again.
def stage(here, name):
    for count in b"", b"0", b"1", b"2":
        try:
            os.mkdir(name + count, 0o700, dir_fd=here)
        except FileExistsError:
            continue
        folder = hold(name + count, os.O_RDONLY | FOLDER, here)
        if not is_staging(os.fstat(folder)) or os.listdir(folder):
            raise ValueError
        return name + count, folder
    raise ValueError


# Makes missing directories: beside the first of them, then moved there as one.
def make(here, missing, ids, temporary, inner):
    before = os.fstat(here)
    name, folder = stage(here, temporary)
    try:
        below = folder
        for part in inner, *missing[1:]:
            os.mkdir(part, 0o777 & ~mask, dir_fd=below)
            below = hold(part, os.O_RDONLY | FOLDER, below)
            if ids:
                os.fchown(below, *ids)
        try:
            look(missing[0], here)
        except FileNotFoundError:
            os.rename(inner, missing[0], src_dir_fd=folder, dst_dir_fd=here)
            return [(here, missing)]
    finally:
        unstage(name, here, inner)
        restore(here, before)
    return []


def unmake(made):
    for here, names in reversed(made):
        try:
            before = os.fstat(here)
            folders = [here]
            for name in names[:-1]:
                folders.append(hold(name, here=folders[-1]))
            for name, folder in reversed([*zip(names, folders)]):
                os.rmdir(name, dir_fd=folder)
            restore(here, before)
        except OSError:
            pass


# Writes a file under another name, then gives it its own.
def put(folder, aside, here, name, content, mode, ids, time):
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = hold(aside, flags, folder)
    try:
        while content:
            content = content[os.write(file, content) :]
        os.fchmod(file, int(mode, 8))
        if time:
            seconds, fraction = map(int, time.split(b"."))
            os.utime(file, ns=(seconds * 10**9 + fraction,) * 2)
            # A file system may know no such time.
            if os.fstat(file).st_mtime_ns // 10**9 != seconds:
                raise ValueError
        if ids:
            os.fchown(file, *ids)
        os.rename(aside, name, src_dir_fd=folder, dst_dir_fd=here)
    except BaseException:
        os.unlink(aside, dir_fd=folder)
        raise


def plant(links, directory, name, temporary, inner, mode, owner, stamp, time, sums, size, content):
    if size:
        import binascii

        content = binascii.a2b_base64(rest())
        if len(content) != int(size):
            raise ValueError
    else:
        content = unescape(content)
    inner, age_min = inner.split()
    ids, made = owners(owner) if owner else None, []
    try:
        for _ in range(ROUNDS_MAX):
            here, missing = walk(directory, links)
            if not missing:
                break
            if sums:
                raise ValueError
            made += make(here, missing, ids, temporary, inner)
        if missing or sums and not holds(name, here, sums):
            raise ValueError
        before = os.fstat(here)
        try:
            sweep(here, before, temporary, inner, age_min)
            if is_private(before):
                put(here, temporary, here, name, content, mode, ids, time)
                return
            staging, folder = stage(here, temporary)
            try:
                put(folder, inner, here, name, content, mode, ids, time)
            finally:
                os.rmdir(staging, dir_fd=here)
        finally:
            restore(here, before)
    except BaseException:
        unmake(made)
        raise


def remove(links, directory, name, temporary, inner):
    try:
        here, missing = walk(directory, links)
    except NotADirectoryError:
        return
    if missing:
        return
    before = os.fstat(here)
    try:
        sweep(here, before, temporary, *inner.split())
        os.unlink(name, dir_fd=here)
    except FileNotFoundError:
        pass
    finally:
        restore(here, before)


encoded = None


# The rest of standard input, for a plant that runs alone.
def rest():
    global encoded
    if encoded is None:
        encoded = sys.stdin.buffer.read()
    return encoded


# Whatever is not plain is for the shell to do, and to tell of, in this program's first environment.
def hand_over(line):
    import subprocess

    with open("/proc/self/environ", "rb") as file:
        env = dict(pair.split(b"=", 1) for pair in file.read().split(b"\0") if b"=" in pair)
    told = b"%s\n\n%s\n%s" % (shell, line, b"" if code else rest())
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    os.umask(mask)
    ended = subprocess.run([b"sh", b"-c", SHELL], input=told, env=env, **both)
    os.umask(0)
    # The shell says first that the call has arrived.
    return ended.stdout[1:], ended.returncode


def run(line):
    try:
        if b"\\''" in line or b"'\"$N\"'" in line:
            raise ValueError
        words = line[line.index(b"'") + 1 : -1].split(b"' '")
        (plant if line[:1] == b"p" else remove)(*words)
        return b"", 0
    except Exception:
        return hand_over(line)
    finally:
        while held:
            os.close(held.pop())


shell = sys.stdin.buffer.readline()[:-1]
code = sys.stdin.buffer.readline()[:-1]
if not code:
    line = sys.stdin.buffer.readline()
    if line[-1:] == b"\n":
        os.write(1, b".")
        said, status = run(line[:-1])
        os.write(2, said)
        sys.exit(status if status >= 0 else 128 - status)
    sys.exit(74)
for count, line in enumerate(sys.stdin.buffer):
    if line[-1:] == b"\n":
        said, status = run(line[:-1])
        os.write(1, b"%s\n%s %d %d\n" % (said, code, count, status))
