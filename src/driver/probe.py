import socket, sys, time

# The lines of a server before its banner are skipped, and no more is read than this.
BYTES_MAX, BANNER_BYTES_MAX, SECONDS_MAX = 8192, 128, 3
peer = socket.create_connection((sys.stdin.readline().strip(), 22), SECONDS_MAX)
ends = time.monotonic() + SECONDS_MAX
heard = b""
banners, is_whole = [], False
try:
    while len(heard) < BYTES_MAX and not is_whole:
        peer.settimeout(max(ends - time.monotonic(), 0.001))
        piece = peer.recv(256)
        if not piece:
            break
        heard += piece
        lines = heard.split(b"\n")
        banners = [line for line in lines if line.startswith(b"SSH-")]
        is_whole = banners and (banners[0] is not lines[-1] or len(banners[0]) >= BANNER_BYTES_MAX)
except socket.timeout:
    pass
peer.close()
sys.stdout.write(b"".join(banners[:1])[:BANNER_BYTES_MAX].decode("latin1"))
