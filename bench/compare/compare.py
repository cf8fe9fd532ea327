#!/usr/bin/env python3
"""Postern against QEMU's microvm machine, on the same payloads in one run. Prints a table of both figures and their ratio.

usage: bench/compare/compare [--rounds N] [--seconds N] [--linux [--cpus N] | --vfio [--cpus N]] [--json FILE]

Without --linux, on this machine's own KVM with the built-in guest: process start to first guest instruction, start to the guest's own
end, resident memory beyond guest RAM, exits per request, virtio-blk reads, virtio-net packets.
With --linux, in the emulated host (tests/rig/rig) with Debian's 6.12 cloud kernel: start to init, resident memory beyond guest RAM,
virtio-blk 4 KiB random reads and virtio-net TCP, each with the processor time of the whole monitor process per operation.
With --vfio, there too: an NVMe disk assigned to the guest, beside QEMU's q35 machine: start to init with 4 GiB of RAM pinned, with
and without huge pages (a third of the rounds, at least one), random and sequential reads.

The two take turns, round by round, so that a noisy machine is noisy to both; the table has medians. A ratio is Postern / QEMU.
"""
import argparse
import json
import os
import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
GUEST_MIB = 128
LINUX_MIB = 256
QEMU = "qemu-system-x86_64"


def qemu_machine(mib, linux):
    # What both give the guest: no legacy devices, ACPI, the processor as it is; a thread of its own for the disk.
    # Some hosts offer an IA32_ARCH_CAPABILITIES (MSR 0x10a) that QEMU 7.2 cannot set.
    pcie = ",pcie=on" if linux else ""
    return [QEMU, "-M", f"microvm,pic=off,pit=off,rtc=off,isa-serial=off{pcie}", "-accel", "kvm", "-cpu", "host,-arch-capabilities", "-m", str(mib),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-global", "virtio-mmio.force-legacy=false",
            "-object", "iothread,id=io0"]


def qemu_devices(disk, tap, linux):
    kind = "pci" if linux else "device"
    modern = ",disable-legacy=on" if linux else ""
    # QEMU 7.2 offers RING_RESET on virtio-mmio and does not have it.
    reset = "" if linux else ",queue_reset=off"
    serial = "virtio-serial-pci,disable-legacy=on,max_ports=1" if linux else "virtio-serial-device,max_ports=1"
    return ["-chardev", "stdio,id=c0,signal=off", "-device", serial, "-device", "virtconsole,chardev=c0",
            "-drive", f"if=none,id=d0,file={disk},format=raw,cache=writeback,aio=io_uring",
            "-device", f"virtio-blk-{kind},drive=d0,iothread=io0{modern}{reset}",
            "-netdev", f"tap,id=n0,ifname={tap},script=no,downscript=no,vhost=off",
            "-device", f"virtio-net-{kind},netdev=n0{modern}"]


class Bench:
    def __init__(self, postern, first_run, work):
        self.postern, self.first_run, self.work = postern, first_run, work
        self.disk = os.path.join(work, "disk.img")
        with open(self.disk, "wb") as disk:
            # Real blocks, so that reads are reads.
            for _ in range(64):
                disk.write(os.urandom(1 << 20))

    def postern_command(self, mib, cmdline, kernel=(), devices=True, more=(), linux=False):
        command = [self.postern, "run", "--memory", f"{mib}M", "--rng", "off", "--cmdline", cmdline, *kernel, *more]
        if devices:
            command += ["--disk", f"path={self.disk}", "--net", "tap=bench0"]
            if not linux:
                command += ["--transport", "mmio"]
        return command

    @staticmethod
    def vfio_commands(postern, kernel, cmdline, bdf, mib, hugepages):
        """Postern's and QEMU's, for a guest with one assigned device and a console."""
        memory = f"{mib}M" + (",hugepages=2M,shared" if hugepages else "")
        ours = [postern, "run", "--memory", memory, "--rng", "off", "--kernel", kernel[0], "--initrd", kernel[1], "--cmdline", cmdline,
                "--device", f"host={bdf}"]
        backend = f"memory-backend-memfd,id=m0,size={mib}M" + (",hugetlb=on,hugetlbsize=2M,share=on" if hugepages else "")
        theirs = [QEMU, "-M", "q35,memory-backend=m0,vmport=off,smbus=off,sata=off,usb=off,hpet=off,pit=off", "-object", backend,
                  "-accel", "kvm", "-cpu", "host,-arch-capabilities", "-m", f"{mib}M", "-nodefaults", "-no-user-config", "-display", "none",
                  "-no-reboot", "-chardev", "stdio,id=c0,signal=off", "-device", "virtio-serial-pci,disable-legacy=on,max_ports=1",
                  "-device", "virtconsole,chardev=c0", "-kernel", kernel[0], "-initrd", kernel[1], "-append", cmdline,
                  "-device", f"vfio-pci,host={bdf}"]
        return ours, theirs

    def qemu_command(self, mib, cmdline, kernel, devices=True, more=(), linux=False):
        command = qemu_machine(mib, linux) + ["-kernel", *kernel, "-append", cmdline, *more]
        return command + (qemu_devices(self.disk, "bench0", linux) if devices else [])


def run(command):
    """Wall and processor seconds, output, exit code."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - start
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\nended with {process.returncode}:\n{output}")
    return wall, usage.ru_utime + usage.ru_stime, output


def overhead_kib(pid, guest_mib):
    """Resident memory of all mappings but guest RAM's (those at least as large as a quarter of it)."""
    total, size = 0, 0
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as smaps:
        for line in smaps:
            if line.startswith("Size:"):
                size = int(line.split()[1])
            elif line.startswith("Rss:") and size < guest_mib * 1024 // 4:
                total += int(line.split()[1])
    return total


def cpu_seconds(pid):
    """User and system time of a process, in clock ticks of the kernel's own nanosecond counters."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as stat:
                total += int(stat.read().split()[0])
        except OSError:
            pass
    return total / 1e9


class Qmp:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        for _ in range(100):
            try:
                self.socket.connect(path)
                break
            except OSError:
                time.sleep(0.05)
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self.call("qmp_capabilities")

    def call(self, name, **arguments):
        self.file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "return" in answer or "error" in answer:
                return answer.get("return")

    def wait_event(self, name):
        while True:
            if json.loads(self.file.readline()).get("event") == name:
                return


def qemu_exits(bench, command):
    """KVM's exit counter of a guest that switched itself off, asked of QEMU before it goes."""
    path = os.path.join(bench.work, "qmp.sock")
    process = subprocess.Popen(command + ["-no-shutdown", "-qmp", f"unix:{path},server=on,wait=on"], stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        qmp = Qmp(path)
        qmp.wait_event("SHUTDOWN")
        stats = qmp.call("query-stats", target="vcpu")
        exits = sum(s["value"] for vcpu in stats for s in vcpu["stats"] if s["name"] == "exits")
        qmp.call("quit")
    finally:
        process.wait(30)
    return exits


def postern_exits(bench, command):
    path = os.path.join(bench.work, "metrics.json")
    if os.path.exists(path):
        os.unlink(path)
    run(command + ["--metrics", path])
    with open(path, encoding="ascii") as file:
        metrics = json.loads(file.read().splitlines()[-1])
    return sum(vcpu["kvm"]["exits"] for vcpu in metrics["vcpus"].values())


def figure(text, pattern):
    found = re.search(pattern, text)
    if not found:
        raise RuntimeError(f"no '{pattern}' in:\n{text}")
    return float(found.group(1))


def alternate(rounds, postern, qemu):
    """Both measurements, turn by turn: lists of dictionaries."""
    results = ([], [])
    for _ in range(rounds):
        results[0].append(postern())
        results[1].append(qemu())
    return results


class Table:
    def __init__(self):
        self.rows = []

    def add(self, name, unit, results, key, better):
        ours, theirs = (statistics.median(r[key] for r in side) for side in results)
        self.rows.append({"name": name, "unit": unit, "postern": ours, "qemu": theirs, "ratio": ours / theirs if theirs else None,
                          "better": better})
        print(self.line(self.rows[-1]), flush=True)

    @staticmethod
    def line(row):
        ratio = f"{row['ratio']:.3f}" if row["ratio"] is not None else "-"
        return f"{row['name']:<46} {row['postern']:>14,.2f} {row['qemu']:>14,.2f} {row['unit']:<10} {ratio:>8}  {row['better']}"

    @staticmethod
    def head(peer="QEMU microvm"):
        print(f"{'':<46} {'Postern':>14} {peer:>14} {'':<10} {'ratio':>8}")


def native(bench, probe, rounds, table):
    kernel = (probe,)

    def first(command):
        return json.loads(run([bench.first_run, *command])[2])

    ours = bench.postern_command(GUEST_MIB, "probe.mode=exit")
    theirs = bench.qemu_command(GUEST_MIB, "probe.mode=exit", kernel)
    results = alternate(rounds, lambda: first(ours), lambda: first(theirs))
    table.add("start to first guest instruction, wall", "us", results, "wall_us", "less")
    table.add("start to first guest instruction, CPU", "us", results, "cpu_us", "less")

    def whole(command):
        wall, cpu, _ = run(command)
        return {"wall": wall * 1e3, "cpu": cpu * 1e3}

    results = alternate(rounds, lambda: whole(ours), lambda: whole(theirs))
    table.add("start to the guest's own end, wall", "ms", results, "wall", "less")
    table.add("start to the guest's own end, CPU", "ms", results, "cpu", "less")
    base = tuple(statistics.median(r["cpu"] for r in side) for side in results)

    def resident(command):
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1.5)
        kib = overhead_kib(process.pid, GUEST_MIB)
        process.kill()
        process.wait()
        return {"kib": kib}

    busy = "probe.mode=pio probe.ops=100000000"
    results = alternate(min(rounds, 3), lambda: resident(bench.postern_command(GUEST_MIB, busy)),
                        lambda: resident(bench.qemu_command(GUEST_MIB, busy, kernel)))
    table.add("resident memory beyond guest RAM", "KiB", results, "kib", "less")

    ops = 4000
    for depth in (1, 32):
        load = f"probe.mode=blkbench probe.ops={ops} probe.qd={depth}"

        def blk(command, side):
            _, cpu, output = run(command)
            return {"rate": figure(output, r"ops_per_s=(\d+)"), "cpu": (cpu * 1e3 - base[side]) * 1e3 / ops}

        results = alternate(rounds, lambda: blk(bench.postern_command(GUEST_MIB, load), 0),
                            lambda: blk(bench.qemu_command(GUEST_MIB, load, kernel), 1))
        table.add(f"virtio-blk 4 KiB random reads, depth {depth}", "op/s", results, "rate", "more")
        table.add(f"  CPU of the whole process per read", "us", results, "cpu", "less")
        results = alternate(
            1, lambda: {"exits": (postern_exits(bench, bench.postern_command(GUEST_MIB, load)) -
                                  postern_exits(bench, bench.postern_command(GUEST_MIB, "probe.mode=exit"))) / ops},
            lambda: {"exits": (qemu_exits(bench, bench.qemu_command(GUEST_MIB, load, kernel)) -
                               qemu_exits(bench, bench.qemu_command(GUEST_MIB, "probe.mode=exit", kernel))) / ops})
        table.add("  KVM exits per read", "", results, "exits", "less")

    packets = 3000
    load = f"probe.mode=netbench probe.ops={packets} probe.peer=none"

    def net(command, side):
        _, cpu, output = run(command)
        return {"rate": figure(output, r"netbench tx .*ops_per_s=(\d+)"), "cpu": (cpu * 1e3 - base[side]) * 1e3 / packets}

    results = alternate(rounds, lambda: net(bench.postern_command(GUEST_MIB, load), 0),
                        lambda: net(bench.qemu_command(GUEST_MIB, load, kernel), 1))
    table.add("virtio-net packets out", "op/s", results, "rate", "more")
    table.add("  CPU of the whole process per packet", "us", results, "cpu", "less")


class Guest:
    """A monitor with a Linux guest whose BENCH lines are times."""

    def __init__(self, command):
        self.start = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.text = ""

    def until(self, marker, limit):
        """The seconds from start at which the marker's line was there."""
        end = time.monotonic() + limit
        while marker not in self.text:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))
            chunk = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not chunk:
                raise RuntimeError(f"no '{marker}' in:\n{self.text[-3000:]}")
            self.text += chunk.decode(errors="replace")
        return time.monotonic() - self.start

    def end(self):
        self.process.stdout.read()
        self.process.wait(60)


def linux_guest(bench, command, seconds, load):
    guest = Guest(command)
    result = {"init": guest.until("BENCH INIT", 300) * 1e3}
    if not load:
        guest.until("BENCH DONE", 300)
        guest.end()
        return result
    guest.until("BENCH IDLE", 300)
    time.sleep(0.5)
    result["kib"] = overhead_kib(guest.process.pid, LINUX_MIB)
    hosts = {"net-send": [load, "sink", "7001"], "net-receive": [load, "source", "7002", str(seconds)]}
    for name in ("randread-qd1", "randread-qd32", "net-send", "net-receive"):
        host = subprocess.Popen(hosts[name], stdout=subprocess.DEVNULL) if name in hosts else None
        guest.until(f"BENCH BEGIN {name}", 300)
        before = cpu_seconds(guest.process.pid)
        guest.until(f"BENCH END {name}", 300)
        cpu = cpu_seconds(guest.process.pid) - before
        if host:
            host.wait(60)
        part = guest.text.split(f"BENCH BEGIN {name}")[1]
        us = figure(part, r"us=(\d+)")
        amount = figure(part, r"(?:ops|bytes)=(\d+)")
        if name in hosts:
            result[name] = amount * 8 / us
            result[name + "-cpu"] = cpu * 1e3 / (amount / (1 << 20))
        else:
            result[name] = amount * 1e6 / us
            result[name + "-cpu"] = cpu * 1e6 / amount
    guest.until("BENCH DONE", 300)
    guest.end()
    return result


def inside_rig(bench, rounds, seconds, table):
    """In the emulated host: everything is there, as root, on a network of its own."""
    kernel, initrd, load = os.environ["KERNEL"], os.environ["INITRD"], os.environ["LOAD"]
    quiet = ("console=hvc0 panic=-1 quiet rcupdate.rcu_expedited=1 mitigations=off rig.test=bench "
             "initcall_blacklist=load_system_certificate_list,jent_mod_init,init_encrypted,crypto_kdf108_init")

    def postern(cmdline):
        return bench.postern_command(LINUX_MIB, cmdline, ("--kernel", kernel, "--initrd", initrd), linux=True)

    def qemu(cmdline):
        return bench.qemu_command(LINUX_MIB, cmdline, (kernel,), more=("-initrd", initrd), linux=True)

    results = alternate(rounds, lambda: linux_guest(bench, postern(quiet), 0, None), lambda: linux_guest(bench, qemu(quiet), 0, None))
    table.add("Linux: start to init", "ms", results, "init", "less")
    busy = f"{quiet} bench.seconds={seconds}"
    results = alternate(max(1, rounds // 2), lambda: linux_guest(bench, postern(busy), seconds, load),
                        lambda: linux_guest(bench, qemu(busy), seconds, load))
    table.add("Linux: resident memory beyond guest RAM", "KiB", results, "kib", "less")
    for depth in (1, 32):
        table.add(f"Linux: virtio-blk 4 KiB random reads, depth {depth}", "op/s", results, f"randread-qd{depth}", "more")
        table.add("  CPU of the whole process per read", "us", results, f"randread-qd{depth}-cpu", "less")
    for name, text in (("net-send", "guest to host"), ("net-receive", "host to guest")):
        table.add(f"Linux: virtio-net TCP {text}", "Mbit/s", results, name, "more")
        table.add("  CPU of the whole process per MiB", "ms", results, name + "-cpu", "less")


def vfio_guest(command, mib, seconds):
    guest = Guest(command)
    result = {"init": guest.until("BENCH INIT", 300) * 1e3}
    if seconds:
        guest.until("BENCH IDLE", 300)
        time.sleep(0.5)
        result["kib"] = overhead_kib(guest.process.pid, mib)
        for name in ("randread-qd1", "randread-qd32", "sequential"):
            guest.until(f"BENCH BEGIN {name}", 300)
            before = cpu_seconds(guest.process.pid)
            guest.until(f"BENCH END {name}", 300)
            cpu = cpu_seconds(guest.process.pid) - before
            part = guest.text.split(f"BENCH BEGIN {name}")[1]
            ops, us = figure(part, r"ops=(\d+)"), figure(part, r"us=(\d+)")
            result[name], result[name + "-cpu"] = ops * 1e6 / us, cpu * 1e6 / ops
    guest.until("BENCH DONE", 300)
    guest.end()
    return result


def vfio_inside(bench, rounds, seconds, table):
    """In the emulated host, which has an NVMe disk to give away."""
    kernel = (os.environ["KERNEL"], os.environ["INITRD"])
    bdf = next(name for name in os.listdir("/sys/bus/pci/devices")
               if open(f"/sys/bus/pci/devices/{name}/class", encoding="ascii").read().startswith("0x0108"))
    subprocess.run([bench.postern, "bind", bdf], check=True)
    quiet = ("console=hvc0 panic=-1 quiet rcupdate.rcu_expedited=1 mitigations=off rig.test=bench-vfio "
             "initcall_blacklist=load_system_certificate_list,jent_mod_init,init_encrypted,crypto_kdf108_init")
    for mib, huge, name in ((4096, False, "4 GiB pinned"), (4096, True, "4 GiB of huge pages pinned")):
        if huge:
            with open("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "w", encoding="ascii") as file:
                file.write(str(mib // 2 + 16))
        ours, theirs = bench.vfio_commands(bench.postern, kernel, quiet, bdf, mib, huge)
        results = alternate(max(1, rounds // 3), lambda c=ours: vfio_guest(c, mib, 0), lambda c=theirs: vfio_guest(c, mib, 0))
        table.add(f"NVMe assigned: start to init, {name}", "ms", results, "init", "less")
    with open("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "w", encoding="ascii") as file:
        file.write("0")
    ours, theirs = bench.vfio_commands(bench.postern, kernel, f"{quiet} bench.seconds={seconds}", bdf, LINUX_MIB, False)
    results = alternate(rounds, lambda: vfio_guest(ours, LINUX_MIB, seconds), lambda: vfio_guest(theirs, LINUX_MIB, seconds))
    table.add("NVMe assigned: resident memory beyond guest RAM", "KiB", results, "kib", "less")
    for key, name in (("randread-qd1", "4 KiB random reads, depth 1"), ("randread-qd32", "4 KiB random reads, depth 32"),
                      ("sequential", "256 KiB sequential reads")):
        table.add(f"NVMe assigned: {name}", "op/s", results, key, "more")
        table.add("  CPU of the whole process per read", "us", results, key + "-cpu", "less")


def start_rig(arguments, work, postern, first_run):
    load = os.path.join(work, "load")
    subprocess.run(["g++", "-std=c++20", "-O2", "-static", "-o", load, os.path.join(ROOT, "bench/compare/load.cc")], check=True)
    image = subprocess.run([os.path.join(ROOT, "tests/rig/guest-image"), "6.12-cloud", "--add", os.path.join(ROOT, "bench/compare/guest") +
                            "=tests", "--program", os.path.join(ROOT, "bench/compare/load.cc") + "=load"],
                           check=True, capture_output=True, text=True).stdout
    import shlex  # pylint: disable=import-outside-toplevel
    values = dict(word.split("=", 1) for word in shlex.split(image))
    out = os.path.join(work, "out")
    os.mkdir(out)
    devices = []
    if arguments.vfio:
        image = os.path.join(work, "nvme.img")
        with open(image, "wb") as disk:
            for _ in range(64):
                disk.write(os.urandom(1 << 20))
        devices = ["--disk", image, "--module", "vfio-pci"]
    command = [os.path.join(ROOT, "tests/rig/rig"), "--timeout", "3000", "--memory", "12G" if arguments.vfio else "4096M", *devices, "--cpus", str(arguments.cpus or (1 if arguments.vfio else 2)), "--out", out,
               "--env", "KERNEL=" + values["KERNEL"], "--env", "INITRD=" + values["INITRD"], "--env", "LOAD=" + load, "--",
               "/usr/bin/python3", os.path.realpath(__file__), "--inside", "--postern", postern, "--first-run", first_run,
               "--rounds", str(arguments.rounds), "--seconds", str(arguments.seconds), "--json", os.path.join(out, "rows.json"),
               *(["--vfio"] if arguments.vfio else [])]
    subprocess.run(command, check=True)
    with open(os.path.join(out, "rows.json"), encoding="ascii") as file:
        return json.load(file)


def built(*targets):
    """The path of a release build, made now if need be; what the build says is shown."""
    done = subprocess.run([os.path.join(ROOT, "scripts/build"), *targets], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit("compare: the release build failed; its errors are above")
    return done.stdout.split()[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=5, help="of each load under Linux")
    parser.add_argument("--linux", action="store_true", help="in the emulated host, with Debian's kernel")
    parser.add_argument("--vfio", action="store_true", help="in the emulated host, with an assigned NVMe disk, beside QEMU's q35")
    parser.add_argument("--cpus", type=int, help="of the emulated host (default 2: one for the guest's CPU, one for I/O; with --vfio 1, as its "
                        "longer run would meet the emulator's fault with two)")
    parser.add_argument("--json", help="also write the rows here")
    parser.add_argument("--postern", help="the binary (default: a release build)")
    parser.add_argument("--probe", help="the built-in guest's image (default: built)")
    parser.add_argument("--first-run", help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--in-namespace", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    if not arguments.in_namespace and not arguments.inside:
        # Built here, as Bazel's server is not to be reached from a network namespace.
        arguments.postern = os.path.realpath(arguments.postern or built())
        arguments.probe = os.path.realpath(arguments.probe or built("//src/probe:probe.elf"))
        if not arguments.linux and not arguments.vfio:
            # A network of our own for the TAP.
            os.execvp("unshare", ["unshare", "--net", sys.executable, os.path.realpath(__file__), *sys.argv[1:], "--in-namespace",
                                  "--postern", arguments.postern, "--probe", arguments.probe])
    work = tempfile.mkdtemp(prefix="postern-compare.")
    try:
        return compare(arguments, work)
    except RuntimeError as error:
        sys.exit(f"compare: {error}")
    finally:
        shutil.rmtree(work)


def compare(arguments, work):
    first_run = arguments.first_run
    if not first_run:
        first_run = os.path.join(work, "first_run")
        subprocess.run(["g++", "-std=c++20", "-O2", "-o", first_run, os.path.join(ROOT, "bench/compare/first_run.cc")], check=True)
    table = Table()
    if not arguments.inside and (arguments.linux or arguments.vfio):
        table.rows = start_rig(arguments, work, arguments.postern, first_run)
    else:
        version = subprocess.run([QEMU, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]
        print(f"{version}; {arguments.rounds} rounds, medians; ratio is Postern / QEMU")
        Table.head("QEMU q35" if arguments.vfio else "QEMU microvm")
        subprocess.run("ip link set lo up; ip tuntap add bench0 mode tap vnet_hdr; ip addr add 10.78.0.1/24 dev bench0; "
                       "ip link set bench0 up", shell=True, check=True)
        bench = Bench(arguments.postern, first_run, work)
        if arguments.inside and arguments.vfio:
            vfio_inside(bench, arguments.rounds, arguments.seconds, table)
        elif arguments.inside:
            inside_rig(bench, arguments.rounds, arguments.seconds, table)
        else:
            native(bench, arguments.probe, arguments.rounds, table)
    if arguments.json:
        with open(arguments.json, "w", encoding="ascii") as file:
            json.dump(table.rows, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
