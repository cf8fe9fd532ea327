"""usage: ./check [--help] [--quick | --long] [--kvm-in-rig] [--only STAGE[,STAGE...]] [--skip STAGE[,STAGE...]] [--list]

Checks everything and ends with a table and the line "N passed, N failed[, N skipped]"; the exit code is 0 only if nothing
failed. A stage that fails does not keep the later ones from running.

  --quick        leave out tsan, tidy and rig: a few minutes
  --long         many more fuzz inputs (a minute for each target, from a random seed), and the integration tests' long variants
  --kvm-in-rig   as on a machine whose /dev/kvm cannot be used (see the stage kvm)
  --only         run these stages alone        --skip    leave these out        --list    name the stages

stages:
  setup     install missing Debian packages (needs root only if one is missing)
  format    clang-format
  build     the release build of everything, by g++ 12
  unit      unit tests, g++ 12, the objects that ship (those that need a KVM: see kvm)
  fuzz      every fuzz target: its corpus and a fixed-seed run, g++ 12; every benchmark once
  asan      everything by clang 14 with thread-safety analysis; unit tests and libFuzzer's fixed-seed runs under
            AddressSanitizer and UndefinedBehaviorSanitizer
  tsan      the unit tests that involve threads, under ThreadSanitizer
  tidy      clang-tidy 14
  kvm       integration tests with guests of our own (tests/integration/kvm), on this machine's KVM; where it has none that
            makes a machine (scripts/kvm-here), in the emulated host, and there the unit tests that need a KVM as well
  rig       integration tests in the emulated host (tests/integration/rig)

environment: POSTERN_CACHE (caches, default ~/.cache/postern), POSTERN_BAZEL_OUTPUT_BASE
"""

import concurrent.futures
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import xml.etree.ElementTree

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
CACHE = os.environ.get("POSTERN_CACHE") or os.path.join(
    os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "postern")
SCRIPT_TIMEOUT = 1200
LONG_SCRIPT_TIMEOUT = 3600
LONG_FUZZ_SECONDS = 60
# Not run without --long: they need a kernel that is built for them, or an emulator that Debian 12 does not have.
LONG_SCRIPTS = ("rig/iommufd.sh", "rig/qemu_vdev.sh", "rig/sriov.sh")
HOST_STOOD_STILL = 75  # see tests/rig/rig --help
PROGRESS_SECONDS = 30
LOG_END_LINES = 80
RESULT_LINE = re.compile(r"^(PASS|FAIL|SKIP) ([^\n]+)$")
RELEASE_BINARY = "src/cli/postern"
# What the scripts of the stage kvm run.
KVM_STAGE_TARGETS = ["//src/cli:postern", "//examples/embed"]


class Results:
    """What one stage found: names of passed cases, and (name, reason) of failed and skipped ones."""

    def __init__(self):
        self.passed = []
        self.failed = []
        self.skipped = []
        self.note = ""
        self.built = 0

    def one(self, code, name, reason):
        if code == 0:
            self.passed.append(name)
        else:
            self.failed.append((name, reason))


class Check:
    def __init__(self, options):
        self.long = options["long"]
        self.logs = tempfile.mkdtemp(prefix="postern-check.")
        self.terminal = sys.stdout.isatty()
        self.children = set()
        self.missing = None

    # --- running things ---------------------------------------------------------------------------------------------

    def run(self, stage, command, env=None, timeout=None, on_line=None):
        """Runs a command with its output in the stage's log. Returns its exit code, or None after the timeout. Several
        may run at once, each with a log of its own."""
        log_path = self.log(stage)
        with open(log_path, "ab") as log:
            log.write(("$ " + " ".join(command) + "\n").encode())
            log.flush()
            offset = log.tell()
            child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                     start_new_session=True, env=dict(os.environ, **(env or {})))
        self.children.add(child)
        start = shown = time.monotonic()
        pending, last = b"", b""
        with open(log_path, "rb") as reader:
            reader.seek(offset)
            while True:
                try:
                    code = child.wait(0.2)
                except subprocess.TimeoutExpired:
                    code = None
                pending += reader.read()
                *lines, pending = pending.split(b"\n")
                for line in lines:
                    last = line if line.strip() else last
                    if on_line:
                        on_line(line.decode(errors="replace"))
                now = time.monotonic()
                if code is not None:
                    break
                if timeout and now - start > timeout:
                    self.kill(child)
                    return None
                if now - shown > (2 if self.terminal else PROGRESS_SECONDS):
                    shown = now
                    self.progress(last, now - start)
        if pending and on_line:
            on_line(pending.decode(errors="replace"))
        # A test may leave nothing behind that goes on running.
        self.kill(child)
        return code

    def kill(self, child):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            pass
        self.children.discard(child)

    def progress(self, line, seconds):
        last = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line.decode(errors="replace").strip())[:90]
        if self.terminal:
            print(f"\r\x1b[K    {seconds:.0f} s  {last}", end="", flush=True)
        else:
            print(f"    {seconds:.0f} s  {last}", flush=True)

    def show_end(self, stage):
        """Of a log that nobody may be able to look into later."""
        with open(self.log(stage), "rb") as file:
            for line in file.read().decode(errors="replace").splitlines()[-LOG_END_LINES:]:
                print(f"    | {line[:200]}", flush=True)

    def log(self, stage):
        return os.path.join(self.logs, stage + ".log")

    # --- Bazel --------------------------------------------------------------------------------------------------------

    def bazel_command(self, command, *args):
        startup = []
        if os.environ.get("POSTERN_BAZEL_OUTPUT_BASE"):
            startup.append("--output_base=" + os.environ["POSTERN_BAZEL_OUTPUT_BASE"])
        return ["bazel"] + startup + [command] + list(args)

    def bazel(self, stage, results, command, args):
        """Builds or tests, and counts by what Bazel reports of each target."""
        events = os.path.join(self.logs, f"{stage}.events.json")
        common = [f"--disk_cache={CACHE}/bazel", "--experimental_convenience_symlinks=ignore", "--keep_going",
                  "--show_progress_rate_limit=5", "--curses=no", "--color=no", "--show_result=0",
                  f"--build_event_json_file={events}"]
        code = self.run(stage, self.bazel_command(command, *common, *args))
        self.read_events(events, results)
        no_tests_code = 4
        if code not in (0, no_tests_code) and not results.failed:
            results.failed.append((f"bazel {command}", f"ended with {code}"))

    def read_events(self, path, results):
        try:
            with open(path, encoding="utf-8") as file:
                events = [json.loads(line) for line in file if line.strip()]
        except (OSError, ValueError) as error:
            results.failed.append(("bazel", f"its report cannot be read: {error}"))
            return
        status_of, xml_of, built, own_fault = {}, {}, 0, set()
        for event in events:
            key = event.get("id", {})
            if "testSummary" in key:
                status_of[key["testSummary"]["label"]] = event.get("testSummary", {}).get("overallStatus", "?")
            elif "testResult" in key:
                for output in event.get("testResult", {}).get("testActionOutput", []):
                    if output.get("name") == "test.xml":
                        xml_of.setdefault(key["testResult"]["label"], []).append(output.get("uri", ""))
            elif "actionCompleted" in key:
                if not event.get("action", {}).get("success"):
                    own_fault.add(key["actionCompleted"].get("label"))
            elif "targetCompleted" in key:
                label = key["targetCompleted"]["label"]
                if event.get("completed", {}).get("success"):
                    built += 1
                elif "aborted" in event or "completed" in event:
                    results.failed.append((label, "does not build"))
            elif "aborted" in event and ("pattern" in key or "unconfiguredLabel" in key or "configuredLabel" in key):
                label = (key.get("unconfiguredLabel") or key.get("configuredLabel") or {}).get("label", "")
                description = event["aborted"].get("description", "")
                if label:
                    results.failed.append((label, description or "cannot be analysed"))
        # Where one thing does not build, what depends on it does not either: the cause first.
        results.failed = [(label, "does not compile or link" if label in own_fault and reason == "does not build" else reason)
                          for label, reason in results.failed]
        results.failed.sort(key=lambda pair: pair[1] == "does not build")
        results.built = built
        not_built = {label for label, _ in results.failed}
        for label, status in sorted(status_of.items()):
            if label in not_built:
                continue
            failed_before = len(results.failed)
            for uri in xml_of.get(label, []):
                self.read_junit(label, urllib.parse.unquote(urllib.parse.urlparse(uri).path), results)
            if status not in ("PASSED", "FLAKY") and len(results.failed) == failed_before:
                results.failed.append((label, f"Bazel says {status}"))

    @staticmethod
    def read_junit(label, path, results):
        try:
            root = xml.etree.ElementTree.parse(path).getroot()
        except (OSError, xml.etree.ElementTree.ParseError) as error:
            results.failed.append((label, f"no readable result: {error}"))
            return
        for case in root.iter("testcase"):
            name = f"{label}: {case.get('name')}"
            bad = case.find("failure") if case.find("failure") is not None else case.find("error")
            skipped = case.find("skipped")
            # A script has no other way to say so than its output.
            said = re.search(r"^SKIPPED: (.+)$", "".join(root.itertext()), re.M) if root.find(".//system-out") is not None else None
            if bad is not None:
                results.failed.append((name, bad.get("message", "failed")))
            elif skipped is not None:
                results.skipped.append((name, skipped.get("message", "no reason given")))
            elif said is not None:
                results.skipped.append((name, said.group(1)))
            else:
                results.passed.append(name)

    def kvm_missing(self):
        """Why this machine cannot run our guests; empty if it can."""
        if self.missing is None:
            done = subprocess.run([os.path.join(ROOT, "scripts/kvm-here")], stdout=subprocess.PIPE, text=True, check=False)
            self.missing = "" if done.returncode == 0 else done.stdout.strip().replace("\n", "; ") or "scripts/kvm-here failed"
        return self.missing

    def tag_filter(self, results, tags, where):
        """Without a KVM, tests that need one are left out, not run to be skipped: `where` says where they run then."""
        if self.kvm_missing():
            tags += ",-requires-kvm"
            results.note = f"no KVM here: what needs one {where}"
        return f"--test_tag_filters={tags}"

    def tests_with_tag(self, tag):
        command = self.bazel_command("query", f"attr(tags, '\\b{tag}\\b', tests(//...))")
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        return done.stdout.split()

    # --- stages -------------------------------------------------------------------------------------------------------

    def setup(self, results):
        command = ["scripts/setup"] + (["--long"] if self.long else [])
        results.one(self.run("setup", command), "setup", "see the log")

    def format(self, results):
        results.one(self.run("format", ["scripts/format"]), "format", "run scripts/format --fix")

    def build(self, results):
        self.bazel("build", results, "build", ["--config=release", "//..."])
        if not results.failed:
            results.passed.append("release build")
            results.note = f"{results.built} targets"
        binary = os.path.join(self.release_folder(), RELEASE_BINARY)
        if os.path.exists(binary):
            size = os.path.getsize(binary)
            limit = 4 * 1000 * 1000
            results.one(0 if size <= limit else 1, "the release binary is at most 4 MB", f"it has {size} bytes")
            results.note += f", postern {size / 1e6:.2f} MB"

    def unit(self, results):
        tags = self.tag_filter(results, "-fuzz,-bench,-requires-vfio", "runs in the stage kvm")
        # Tests that count descriptors count ten times as many.
        more = ["--test_env=POSTERN_SOAK=1", "--test_timeout=1800"] if self.long else []
        self.bazel("unit", results, "test", ["--config=release", *more, "--build_tests_only", tags, "//..."])

    def fuzz(self, results):
        self.bazel("fuzz", results, "test",
                   ["--config=release", "--build_tests_only", "--test_tag_filters=fuzz,bench", "//..."])

    def asan(self, results):
        more = []
        if self.long:
            more = [f"--test_env=POSTERN_FUZZ_SECONDS={LONG_FUZZ_SECONDS}", "--test_timeout=900"]
        tags = self.tag_filter(results, "-bench,-one-config,-requires-vfio", "is built and not run")
        self.bazel("asan", results, "test", ["--config=asan", tags, *more, "//..."])

    def tsan(self, results):
        tags = self.tag_filter(results, "tsan", "is left out")
        self.bazel("tsan", results, "test", ["--config=tsan", "--build_tests_only", "--build_tag_filters=tsan", tags, "//..."])

    def tidy(self, results):
        def line(text):
            if text.startswith("tidy: "):
                results.note = text[len("tidy: "):]
        code = self.run("tidy", ["scripts/tidy"], on_line=line)
        results.one(code, "tidy", results.note or "see the log")

    def kvm(self, results):
        targets, env = list(KVM_STAGE_TARGETS), {}
        if self.kvm_missing():
            tests = self.tests_with_tag("requires-kvm")
            targets += tests
            env["KVM_TESTS"] = " ".join(label[2:].replace(":", "/") for label in tests)
            results.note = f"in the emulated host: {self.kvm_missing()}"
        self.bazel("kvm", results, "build", ["--config=release", *targets])
        if not results.failed:
            self.scripts("kvm", results, env=env)

    def rig(self, results):
        # Emulated hosts have one processor each.
        self.scripts("rig", results, at_once=os.cpu_count() or 1)

    def release_folder(self):
        command = self.bazel_command("info", "--config=release", "bazel-bin")
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        return done.stdout.strip()

    def scripts(self, stage, results, at_once=1, env=None):
        """Runs tests/integration/STAGE/*.sh. Each prints "PASS name", "FAIL name: reason" or "SKIP name: reason" lines."""
        tests = os.path.join(ROOT, "tests/integration")
        names = [os.path.relpath(path, tests) for path in sorted(glob.glob(os.path.join(tests, stage, "*.sh")))
                 if os.access(path, os.X_OK)]
        paths = [os.path.join(tests, name) for name in names if self.long or name not in LONG_SCRIPTS]
        if not paths:
            results.note = f"tests/integration/{stage} holds no test"
            return
        folder = self.release_folder()
        env = {**(env or {}), "POSTERN_BIN_DIR": folder, "POSTERN": os.path.join(folder, RELEASE_BINARY),
               "POSTERN_CACHE": CACHE, "POSTERN_LONG": "1" if self.long else ""}
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            for part in pool.map(lambda path: self.script(stage, path, env), paths):
                results.passed += part.passed
                results.failed += part.failed
                results.skipped += part.skipped
                results.note = "; ".join(note for note in (results.note, part.note) if note)

    def script(self, stage, path, env):
        name = os.path.relpath(path, os.path.join(ROOT, "tests/integration"))
        results = Results()

        def line(text):
            match = RESULT_LINE.match(text.rstrip("\r"))
            if not match:
                return
            case, _, reason = match.group(2).partition(": ")
            case = f"{name}: {case}"
            if match.group(1) == "PASS":
                results.passed.append(f"{name}: {match.group(2)}")
            elif match.group(1) == "FAIL":
                results.failed.append((case, reason or "no reason given"))
            else:
                results.skipped.append((case, reason or "no reason given"))

        timeout = LONG_SCRIPT_TIMEOUT if self.long else SCRIPT_TIMEOUT
        log = f"{stage}-{os.path.basename(path)}"
        code = self.run(log, [path], env=env, timeout=timeout, on_line=line)
        if code == HOST_STOOD_STILL:
            results = Results()
            results.note = f"{name} twice: its emulated host stood still"
            code = self.run(log, [path], env=env, timeout=timeout, on_line=line)
        if code is None:
            results.failed.append((name, f"did not end within {timeout} s"))
        elif code != 0 and not results.failed:
            results.failed.append((name, f"ended with {code} and reported no failure"))
        elif not (results.passed or results.failed or results.skipped):
            results.failed.append((name, "reported no result"))
        if code is None or code > 1:
            self.show_end(log)
        return results


STAGES = ["setup", "format", "build", "unit", "fuzz", "asan", "tsan", "tidy", "kvm", "rig"]
QUICK_LEAVES_OUT = ["tsan", "tidy", "rig"]


def parse(argv):
    options = {"long": False, "stages": list(STAGES)}
    only, skip, quick = None, [], False

    def names(text):
        chosen = [name for name in text.split(",") if name]
        for name in chosen:
            if name not in STAGES:
                sys.exit(f"check: there is no stage '{name}'; stages: {' '.join(STAGES)}")
        return chosen

    args = list(argv)
    while args:
        arg = args.pop(0)
        value = None
        if arg.startswith("--only") or arg.startswith("--skip"):
            arg, equals, value = arg.partition("=")
            if not equals:
                if not args:
                    sys.exit(f"check: {arg} wants the name of a stage")
                value = args.pop(0)
        if arg == "--only":
            only = (only or []) + names(value)
        elif arg == "--skip":
            skip += names(value)
        elif arg == "--quick":
            quick = True
        elif arg == "--long":
            options["long"] = True
        elif arg == "--kvm-in-rig":
            os.environ["POSTERN_KVM_IN_RIG"] = "1"
        elif arg == "--list":
            print("\n".join(STAGES))
            sys.exit(0)
        else:
            sys.exit(f"check: unknown argument '{arg}' (try --help)")
    if quick:
        skip += QUICK_LEAVES_OUT
    if only is not None:
        options["stages"] = [name for name in STAGES if name in only]
    options["stages"] = [name for name in options["stages"] if name not in skip]
    return options


def show_reasons(kind, pairs, limit):
    for name, reason in pairs[:limit]:
        first = reason.strip().split("\n")[0][:300]
        print(f"    {kind} {name}: {first}")
    if len(pairs) > limit:
        print(f"    {kind} ... and {len(pairs) - limit} more, in the log")


def main(argv):
    options = parse(argv)
    check = Check(options)
    table = []
    begun = time.monotonic()

    def interrupted(number, _frame):
        for child in list(check.children):
            check.kill(child)
        print(f"\ncheck: stopped by signal {number}; logs: {check.logs}", file=sys.stderr)
        os._exit(128 + number)

    signal.signal(signal.SIGINT, interrupted)
    signal.signal(signal.SIGTERM, interrupted)
    stages = options["stages"]
    for number, name in enumerate(stages, 1):
        print(f"[{number}/{len(stages)}] {name}", flush=True)
        results = Results()
        start = time.monotonic()
        getattr(check, name)(results)
        seconds = time.monotonic() - start
        if check.terminal:
            print("\r\x1b[K", end="")
        show_reasons("FAIL", results.failed, 40)
        show_reasons("SKIP", results.skipped, 100)
        table.append((name, results, seconds))
        print(f"    {len(results.passed)} passed, {len(results.failed)} failed, {len(results.skipped)} skipped, {seconds:.0f} s"
              + (f"; {results.note}" if results.note else ""), flush=True)
    passed = sum(len(r.passed) for _, r, _ in table)
    failed = sum(len(r.failed) for _, r, _ in table)
    skipped = sum(len(r.skipped) for _, r, _ in table)
    print(f"\n{'stage':<8} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}")
    for name, results, seconds in table:
        print(f"{name:<8} {len(results.passed):>7} {len(results.failed):>7} {len(results.skipped):>8} {seconds:>8.0f}"
              + (f"  {results.note}" if results.note else ""))
    print(f"{'':<8} {passed:>7} {failed:>7} {skipped:>8} {time.monotonic() - begun:>8.0f}")
    if failed:
        print(f"\nlogs: {check.logs}")
    else:
        shutil.rmtree(check.logs, ignore_errors=True)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
