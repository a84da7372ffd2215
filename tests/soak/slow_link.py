"""A network link that delays packets by 100 ms each way and drops 2 % of them at random.

It replaces `tc netem`, which some kernels lack. A packet that is sent into the device comes back with source and destination
exchanged. So a server at 10.9.0.1 is reached as 10.9.0.2, and both directions pass through here. The checksums stay valid.
"""

import collections, fcntl, os, random, select, struct, subprocess, time

DELAY, LOSS = 0.1, 0.02
device = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(device, 0x400454CA, struct.pack("16sH", b"slow", 0x1001))  # TUNSETIFF: IFF_TUN | IFF_NO_PI
for command in ("address add 10.9.0.1/24 dev slow", "link set slow up"):
    subprocess.run(["ip", *command.split()], check=True)
print("up", flush=True)
waiting = collections.deque()
while True:
    timeout = max(0, waiting[0][0] - time.monotonic()) if waiting else None
    if select.select([device], [], [], timeout)[0]:
        packet = os.read(device, 65536)
        if packet[0] >> 4 == 4 and random.random() >= LOSS:
            waiting.append((time.monotonic() + DELAY, packet[:12] + packet[16:20] + packet[12:16] + packet[20:]))
    while waiting and waiting[0][0] <= time.monotonic():
        os.write(device, waiting.popleft()[1])
