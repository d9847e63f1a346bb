import socket, sys

s = socket.create_connection((sys.argv[1], 22), 3)
b = s.recv(128)
s.close()
sys.stdout.write(b.decode("latin1"))
