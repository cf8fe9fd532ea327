#include "src/cli/options.h"

namespace postern::cli {
namespace {

constexpr Option kRun[] = {
    {"config", "FILE", "Read this JSON file first. Flags win over what it says.", false, false,
     true},
    {"kernel", "FILE",
     "Kernel: a bzImage, or an ELF vmlinux (entered by PVH if it has the note, by the 64-bit\n"
     "protocol else). Without it the built-in guest runs, which tests every device.",
     true, false, true},
    {"initrd", "FILE", "Initial RAM disk.", true, false, true},
    {"cmdline", "TEXT",
     "Kernel command line. Postern adds console= and panic=-1 unless given here.", true},
    {"cpus", "N", "Virtual CPUs (default 1).", true},
    {"memory", "SIZE[,KEY...]",
     "Guest memory (default 512M).\n"
     "hugepages=2M|1G: from the host's reserved huge pages\n"
     "shared: mapped shared, for device back ends in other processes\n"
     "prefault: touch every page before the guest starts\n"
     "thp, mergeable: advise the host's kernel so",
     true},
    {"disk", "path=FILE[,KEY...]",
     "A virtio disk over a raw image file or a block device. Repeat for more.\n"
     "readonly, direct (O_DIRECT), cache=writeback|writethrough|unsafe,\n"
     "engine=auto|io_uring|sync, queues=N, queue_size=N, serial=TEXT, id=NAME",
     true, true, true},
    {"net", "tap=NAME[,KEY...]",
     "A virtio network interface over a TAP interface, which is created if it does not exist.\n"
     "fd=N: an open TAP instead; mac=, mtu=, queue_pairs=N, queue_size=N, offload=off, id=NAME",
     true, true},
    {"vsock", "cid=N,socket=PATH",
     "virtio-vsock served on a UNIX socket. To reach guest port P connect to PATH and send\n"
     "\"CONNECT P\\n\"; the guest's own connections to port P go to PATH_P.",
     true, false, true},
    {"device", "host=BDF|path=SYSFS|fd=N|socket=PATH[,KEY...]",
     "Give the guest a device of this host (VFIO) or of another process (vfio-user). Repeat for\n"
     "more. `postern doctor --device BDF` says whether it can be, and what to do first.\n"
     "iommufd=auto|on|off|fd=N, rombar, intx=on|off, p2p, trap-bar=N, id=NAME",
     true, true, true},
    {"vdev", "type=dsa[,KEY...]",
     "Give the guest a virtual Intel DSA made in this process. Repeat for more.\n"
     "backend=engine|vfio|cdev: its queues are threads' of Postern (default), some of a DSA of "
     "this\n"
     "host: host=BDF (bound to VFIO; `postern vdev list`) or socket=PATH (vfio-user), or one of "
     "the\n"
     "host's idxd driver: path=/dev/dsa/wqX.Y (trapped portals only)\n"
     "profile=ro|cfg: its queues are configured by Postern (default), or by the guest\n"
     "portal=auto|direct|polled|trapped: submission to the device's page, to memory (one CPU),\n"
     "or by an exit each\n"
     "wqs=N, wq-size=N, engines=N (threads), poll-sleep-us=N, id=NAME",
     true, true},
    {"console", "MODE",
     "virtio console hvc0: stdio (default; Ctrl-A x leaves), pty, file=PATH, socket=PATH, null, "
     "off.",
     true},
    {"serial", "MODE", "16550 at COM1 as early console; same modes (default off).", true},
    {"rng", "on|off", "virtio entropy device (default on).", true},
    {"transport", "pci|mmio", "How virtio devices are reached (default pci).", true},
    {"io-threads", "N",
     "Threads for device I/O; queues of disks and interfaces spread over them (default 1).", true},
    {"pit", "on|off", "An 8254 timer, for guests that calibrate with one (default off).", true},
    {"movdir64b", "on|off",
     "Whether the guest is told that its CPU has MOVDIR64B (default: if this host's CPU has).",
     true},
    {"hotplug-ports", "N",
     "Slots into which devices can be put while the guest runs, with postern ctl (default 0).",
     true},
    {"control", "PATH",
     "Serve postern ctl on this UNIX socket: list, add and remove devices, counters.", true, false,
     true},
    {"metrics", "FILE", "Write counters as a line of JSON when the machine ends, and on SIGUSR1.",
     true, false, true},
    {"shutdown-timeout", "SECONDS",
     "After SIGTERM, how long the guest has to power off (default 60).", false},
    {"log-level", "LEVEL", "trace, debug, info, warn (default), error or off.", false},
    {"log-file", "FILE", "Append log lines here instead of standard error.", false, false, true},
    {"dry-run", "", "Check everything, print the machine that would start, and end.", false},
    {"help", "", "This text.", false},
};

constexpr Option kVdevServe[] = {
    {"socket", "PATH",
     "Listen here (required). The socket is this user's alone; one that a dead server left behind\n"
     "is replaced.",
     false, false, true},
    {"type", "dsa[,KEY...]",
     "The device (default dsa): a virtual Intel DSA, 8086:0b25.\n"
     "profile=ro|cfg: its queues are configured here (default), or by the guest\n"
     "portal=trapped|polled: each store of the guest is a message (default), or its pages are\n"
     "memory that this process looks at; see below\n"
     "wqs=N, wq-size=N, engines=N (threads), poll-sleep-us=N, id=NAME",
     false},
    {"metrics", "FILE", "Write counters as a line of JSON at the end, and on SIGUSR1.", false,
     false, true},
    {"log-level", "LEVEL", "trace, debug, info (default), warn, error or off.", false},
    {"log-file", "FILE", "Append log lines here instead of standard error.", false, false, true},
    {"help", "", "This text.", false},
};

constexpr Option kDoctor[] = {
    {"device", "BDF",
     "Look at this PCI device instead: what stands between it and a guest, and what to do about\n"
     "it. Repeat for more.",
     false, true, false, true},
    {"json", "", "Print one JSON object instead of a table.", false},
    {"help", "", "This text.", false},
};

constexpr Option kBind[] = {
    {"driver", "NAME",
     "This VFIO driver (or its module) instead of the one that fits the device best.", false},
    {"force", "",
     "Take the device away although the host uses it: a mounted disk, an interface that is up,\n"
     "virtual functions. Never a bridge or the disk the host runs from.",
     false},
    {"dry-run", "", "Print the commands that do the same, and change nothing.", false},
    {"help", "", "This text.", false},
};

constexpr Option kUnbind[] = {
    {"dry-run", "", "Print the commands that do the same, and change nothing.", false},
    {"help", "", "This text.", false},
};

constexpr Option kCtl[] = {
    {"json", "", "Print the machine's answer, one JSON object, instead of text for people.", false},
    {"force", "", "With remove-device: take the device out at once, without asking the guest.",
     false},
    {"timeout", "SECONDS", "How long remove-device waits for the guest, 1 to 600 (default 30).",
     false},
    {"help", "", "This text.", false},
};

}  // namespace

std::span<const Option> RunOptions() {
  return kRun;
}
std::span<const Option> VdevServeOptions() {
  return kVdevServe;
}
std::span<const Option> DoctorOptions() {
  return kDoctor;
}
std::span<const Option> BindOptions() {
  return kBind;
}
std::span<const Option> UnbindOptions() {
  return kUnbind;
}
std::span<const Option> CtlOptions() {
  return kCtl;
}
std::string_view CtlCommands() {
  return "list add-device remove-device power-button metrics";
}

}  // namespace postern::cli
