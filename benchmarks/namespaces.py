"""Several hosts on one machine: network namespaces whose links have a bandwidth and a latency.

Every host is a network namespace with one device, eth0, which is a TUN device: what the host sends
arrives in this process as packets, and this process passes each of them on to the host it is for.
Three things make the link:

    sending      at most `bandwidth`, by the kernel's token bucket (`tc qdisc add ... tbf`)
    travelling   `latency` seconds, by holding each packet back in this process
    receiving    at most `bandwidth`, the same way

tc's netem could do all of it, but not every kernel has netem. Needs root, `ip`, `tc` and
/dev/net/tun.
"""

import collections
import contextlib
import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MTU = 9000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
QUEUE = 64 * 2**20        # bytes that may wait to be sent, more than TCP's windows: nothing is lost
BURST = 4 * MTU           # bytes that the token bucket lets pass at once

# mpiexec calls this as it would call ssh: options, the host, the words of a command.
LAUNCHER = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
host=NAME-$((${1##*.} - 1)); shift
exec ip netns exec "$host" unshare --uts sh -c "hostname $host; exec $*"
"""
# Ranks that wait sleep now and then, so that they leave the cores to others.
THROTTLE = {"MPIR_CVAR_CH4_PROGRESS_THROTTLE": "1",
            "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT": "32"}


def missing():
    """-> what this machine lacks for hosts, or None."""
    if not sys.platform.startswith("linux") or os.geteuid():
        return "root on Linux"
    lacking = [name for name in ("ip", "tc", "unshare") if not shutil.which(name)]
    lacking += [] if os.path.exists("/dev/net/tun") else ["/dev/net/tun"]
    return ", ".join(lacking) or None


class Hosts:
    """A context manager: the hosts exist inside, whatever ends it."""

    # MPICH communicates by TCP, also with ranks on the same machine.
    environment = THROTTLE | {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp",
                              "FI_TCP_IFACE": "eth0"}

    def __init__(self, count, bandwidth, latency):
        """count: of hosts. bandwidth: bytes per second in each direction of each link. latency:
        seconds from one host to another."""
        self.count, self.bandwidth, self.latency = count, bandwidth, latency
        self.name = f"npgpt-{os.getpid()}"
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as stack:         # closed if one of these fails
            self._devices = [self._host(number, stack) for number in range(self.count)]
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            self._launcher = Path(directory, "launcher")
            self._launcher.write_text(LAUNCHER.replace("NAME", self.name))
            self._launcher.chmod(0o700)
            self._ended = threading.Event()
            switch = threading.Thread(target=self._switch, daemon=True)
            switch.start()
            stack.callback(switch.join)
            stack.callback(self._ended.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._stack.close()

    def command(self, mpiexec, words):
        """-> the words of a command that runs `words` once on every host, by MPICH's mpiexec on the
        first of them, with `environment`."""
        return ["ip", "netns", "exec", f"{self.name}-0", mpiexec, "-launcher", "ssh",
                "-launcher-exec", str(self._launcher), "-iface", "eth0",
                "-hosts", ",".join(map(_address, range(self.count))), "-ppn", "1",
                "-n", str(self.count), *words]

    def _host(self, number, stack):
        """Create a host -> the file of its TUN device."""
        name, device = f"{self.name}-{number}", f"np{os.getpid()}t{number}"
        _run("ip", "netns", "add", name)
        stack.callback(_delete, name)
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        stack.callback(os.close, file)                # the device goes with it
        fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
        _run("ip", "link", "set", device, "netns", name)
        inside = ("ip", "-n", name, "link", "set")
        _run(*inside, "lo", "up")
        _run(*inside, device, "name", "eth0", "mtu", str(MTU))
        _run("ip", "-n", name, "address", "add", f"{_address(number)}/24", "dev", "eth0")
        _run(*inside, "eth0", "up")
        _run("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate",
             f"{round(8 * self.bandwidth)}bit", "burst", str(BURST), "limit", str(QUEUE))
        return file

    def _switch(self):
        """Pass on the packets, each when it is due. The delay is the same for all, so those for one
        host are due in the order in which they came."""
        with contextlib.suppress(OSError):            # before the ranks, which may keep cores busy
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -20)
        devices = self._devices
        waiting = {file: collections.deque() for file in devices}       # (when, packet)
        free = dict.fromkeys(devices, 0.0)            # when the link to a host is free
        while not self._ended.is_set():
            due = min((queue[0][0] for queue in waiting.values() if queue), default=None)
            pause = 0.1 if due is None else max(0.0, due - time.perf_counter())
            for file in select.select(devices, [], [], pause)[0]:
                packet = os.read(file, 65536)
                to = packet[19] - 1 if packet[0] >> 4 == 4 else self.count
                if to < self.count:                   # IPv4, for one of the hosts
                    target = devices[to]
                    when = max(time.perf_counter() + self.latency, free[target])
                    free[target] = when + len(packet) / self.bandwidth
                    waiting[target].append((when, packet))
            now = time.perf_counter()
            for file, queue in waiting.items():
                while queue and queue[0][0] <= now:
                    os.write(file, queue.popleft()[1])


def _address(number):
    return f"10.98.7.{number + 1}"


def _run(*words):
    subprocess.run(words, check=True)


def _delete(name):
    """Delete a namespace, and end what still runs in it."""
    found = subprocess.run(["ip", "netns", "pids", name], stdout=subprocess.PIPE, text=True)
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", name])
