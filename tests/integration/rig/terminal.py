#!/usr/bin/python3
"""Drives a program through a pseudo-terminal.  terminal.py SCENE COMMAND...

shell   waits for the guest's shell on the console, types commands, resizes the terminal, leaves by "exit"
leave   waits for the shell, then types Ctrl-A x
Prints PASS and FAIL lines; the transcript follows a failure.
"""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time

LIMIT = 150


class Terminal:
    def __init__(self, command):
        self.master, self.slave = pty.openpty()
        self.resize(31, 97)
        self.before = termios.tcgetattr(self.slave)
        self.text = ""
        self.seen = 0
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)
            for fd in (0, 1, 2):
                os.dup2(self.slave, fd)
            os.execvp(command[0], command)

    def resize(self, rows, columns):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def pump(self, wait):
        if select.select([self.master], [], [], wait)[0]:
            self.text += os.read(self.master, 65536).decode(errors="replace")

    def expect(self, pattern):
        """Waits for the pattern in what has come since the last match."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            match = re.search(pattern, self.text[self.seen:])
            if match:
                self.seen += match.end()
                return True
            self.pump(1)
        return False

    def type(self, text):
        os.write(self.master, text.encode())

    def wait(self):
        """The exit code, or None if it does not end."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            self.pump(0.1)
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        return None


def report(name, good, reason):
    print(f"PASS {name}" if good else f"FAIL {name}: {reason}", flush=True)
    return good


def main(scene, command):
    terminal = Terminal(command)
    good = report(f"terminal, {scene}: a shell on hvc0", terminal.expect(r"/ # "), "no prompt")
    if good:
        raw = termios.tcgetattr(terminal.slave)
        good &= report(f"terminal, {scene}: raw while the guest has it", not raw[3] & (termios.ICANON | termios.ECHO),
                       "the terminal still edits or echoes")
    if good and scene == "shell":
        terminal.type("stty size; echo $((6 * 7))\n")
        good &= report("terminal, shell: window size and a command's output", terminal.expect(r"31 97[\r\n]+42[\r\n]"),
                       "not seen")
        terminal.resize(40, 120)
        terminal.type("sleep 1; stty size\n")
        good &= report("terminal, shell: the guest follows a resize", terminal.expect(r"40 120[\r\n]"), "not seen")
        terminal.type("sleep 100\n")
        time.sleep(1)
        terminal.type("\x03")
        terminal.type("echo interrupted=$?\n")
        good &= report("terminal, shell: Ctrl-C is the guest's", terminal.expect(r"interrupted=130"), "not seen")
        terminal.type("exit\n")
    elif scene == "leave":
        terminal.type("\x01x")
    code = terminal.wait()
    good &= report(f"terminal, {scene}: exit code", code == 0, f"is {code}, must be 0")
    good &= report(f"terminal, {scene}: the terminal is as it was", termios.tcgetattr(terminal.slave) == terminal.before,
                   "its settings differ")
    if not good:
        for line in terminal.text.splitlines()[-30:]:
            print("#   " + re.sub(r"[^ -~]", "", line))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
