"""The build rules of Postern. Every C++ target of ours is declared with one of these, never with a bare cc_* rule.

    load("//bazel:defs.bzl", "postern_cc_bench", "postern_cc_fuzz", "postern_cc_library", "postern_cc_test")

    postern_cc_library(
        name = "queue",
        srcs = ["queue.cc"],
        hdrs = ["queue.h"],
        visibility = ["//bazel:may_use_devices_virtio"],   # who may depend on it; private if left out
        deps = ["//src/memory:guest_memory"],
    )

    postern_cc_test(            # doctest; main() comes with it
        name = "queue_test",
        srcs = ["queue_test.cc"],
        tsan = True,            # threads are involved: ./check also runs it under ThreadSanitizer
        deps = [":queue"],
    )

    postern_cc_bench(           # Google Benchmark; also makes :queue_bench_smoke, which runs each benchmark once
        name = "queue_bench",
        srcs = ["queue_bench.cc"],
        deps = [":queue"],
    )

    postern_cc_fuzz(            # LLVMFuzzerTestOneInput; also makes :queue_fuzz_smoke, a fixed-seed run in every configuration
        name = "queue_fuzz",
        srcs = ["queue_fuzz.cc"],
        corpus = glob(["corpus/**"]),
        deps = [":queue"],
    )

    postern_cc_binary(name = "postern", srcs = ["main.cc"], deps = [...])   # fully static with --config=release
"""

# g++ 12 and clang 14 both know every flag here; what only one of them knows goes into the select() below.
_WARNINGS = [
    "-Wall",
    "-Wextra",
    # A designated initializer names what differs from the member's default; naming the rest too would hide it.
    "-Wno-missing-field-initializers",
    "-Wconversion",
    "-Wshadow",
    "-Wcast-align",
    "-Wcast-qual",
    "-Wold-style-cast",
    "-Wnon-virtual-dtor",
    "-Woverloaded-virtual",
    "-Wmissing-declarations",
    "-Wvla",
    "-Werror",
]

POSTERN_COPTS = _WARNINGS + select({
    "//bazel:clang": ["-Wthread-safety"],
    "//conditions:default": [],
})

# The text of a test is not what is tested: unoptimized it compiles in half the time, under g++ and under the sanitizers.
_TEST_COPTS = [
    "-O0",
    "-U_FORTIFY_SOURCE",
]

_COLD_COPTS = select({
    "//bazel:release": ["-Os"],
    "//conditions:default": [],
})

def _static_when_released(linkopts):
    return linkopts + select({
        # gold, which Bazel picks where it finds it, cannot link static-pie.
        "//bazel:release": [
            "-static-pie",
            "-s",
            "-fuse-ld=bfd",
        ],
        "//conditions:default": [],
    })

def postern_cc_library(name, copts = [], cold = False, **kwargs):
    """cold: it runs at start, at the end or on request, never while a guest works: smaller beats faster."""
    native.cc_library(
        name = name,
        copts = POSTERN_COPTS + (_COLD_COPTS if cold else []) + copts,
        linkstatic = True,
        **kwargs
    )

def postern_cc_binary(name, copts = [], linkopts = [], cold = False, **kwargs):
    """An executable that ships. With --config=release: one static-pie file without a dynamic loader. cold: as for a library."""
    native.cc_binary(
        name = name,
        copts = POSTERN_COPTS + (_COLD_COPTS if cold else []) + copts,
        linkopts = _static_when_released(linkopts),
        linkstatic = True,
        **kwargs
    )

def postern_cc_test(name, copts = [], deps = [], tags = [], tsan = False, size = "small", **kwargs):
    """A doctest binary; one per library.

    tsan: the code under test runs on several threads. tags: "requires-kvm" and "requires-vfio" name what the test needs;
    it must still check at run time and leave by SKIP_TEST (//bazel/testing:skip) where that is missing. ./check runs the
    former in the emulated host where the machine has no KVM, and tests/integration/rig/vfio.sh the latter.
    """
    native.cc_test(
        name = name,
        size = size,
        copts = POSTERN_COPTS + _TEST_COPTS + copts,
        linkstatic = True,
        tags = tags + (["tsan"] if tsan else []),
        deps = deps + [
            "//bazel/testing:doctest_main",
            "//bazel/testing:skip",
            "//third_party/doctest",
        ],
        **kwargs
    )

def postern_cc_bench(name, copts = [], deps = [], tags = [], **kwargs):
    """A Google Benchmark binary, and `<name>_smoke` which runs every benchmark of it for a moment."""
    native.cc_binary(
        name = name,
        testonly = True,
        copts = POSTERN_COPTS + copts,
        linkstatic = True,
        tags = tags,
        deps = deps + ["//third_party/benchmark"],
        **kwargs
    )
    native.sh_test(
        name = name + "_smoke",
        size = "small",
        srcs = ["//bazel/testing:bench_smoke.sh"],
        args = ["$(rootpath :" + name + ")"],
        data = [":" + name],
        tags = tags + ["bench"],
    )

def postern_cc_fuzz(name, copts = [], linkopts = [], deps = [], corpus = [], runs = 20000, tags = [], **kwargs):
    """A fuzz target, and `<name>_smoke` which runs it `runs` times from a fixed seed.

    With --config=asan it is libFuzzer; elsewhere //tests/fuzz:standalone_main.cc drives it without coverage feedback.
    """
    native.cc_binary(
        name = name,
        testonly = True,
        copts = POSTERN_COPTS + ["-Wno-missing-declarations"] + copts + select({
            "//bazel:clang": ["-Wno-missing-prototypes"],
            "//conditions:default": [],
        }),
        linkopts = linkopts + select({
            "//bazel:libfuzzer": ["-fsanitize=fuzzer"],
            "//conditions:default": [],
        }),
        linkstatic = True,
        tags = tags,
        deps = deps + select({
            "//bazel:libfuzzer": [],
            "//conditions:default": ["//bazel/testing:fuzz_main"],
        }),
        **kwargs
    )
    native.sh_test(
        name = name + "_smoke",
        size = "medium",
        srcs = ["//bazel/testing:fuzz_smoke.sh"],
        args = ["$(rootpath :" + name + ")", str(runs)] + ["$(rootpath %s)" % f for f in corpus],
        data = [":" + name] + corpus,
        tags = tags + ["fuzz"],
    )
