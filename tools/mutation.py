#!/usr/bin/env python3
"""Plant bugs in the GPU's kernels, one at a time, and see which test on the emulated device catches each.

    mutation.py --build BUILD [--per-kernel 2] [--per-function 1] [--only FILE.cu ...] [--jobs 1] [--list] [--out FILE.csv]

OPERATORS are fixed classes of bugs, found by pattern. Every kernel and every device function of kernels/cuda/ gets
some, of different classes, chosen by a hash of their text: a rerun plants the same ones, whatever stands around them. A
mutant that does not compile does not count; the next takes its place. Those that no test can see, for a reason given in
EQUIVALENT, are not planted but stand in the table.

A mutant is caught when one of the tests of its file, the quickest first, fails, faults or hangs. Before that all these
tests must pass without a mutant. A changed header is compiled into the kernel files that use the changed function, one
after the other, until a test fails. BUILD holds the emulated kernels and the tests (`make mutation` builds them).
"""
import argparse
import collections
import concurrent.futures
import csv
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS, TESTS = ROOT / "kernels" / "cuda", ROOT / "tests" / "emulator"
LEAST_LIMIT, COMPILE_LIMIT = 30, 600  # seconds of computing; a test gets four times what it takes without a mutant
RUNNING = set()

NESTED = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
# class, what is done, pattern, replacement
OPERATORS = [
    ("fence", "removed", r"\b__sync(threads|warp)\(\);", ";"),
    ("fence", "removed", r"\b(mbarrier_init_fence|async_proxy_fence|wgmma_fence)\(\);", ";"),
    ("wait", "removed", r"\b(cp_async|wgmma)_wait<[^;]*>\(\);", ";"),
    ("wait", "removed", r"\b(mbarrier_wait|named_barrier)\([^;]*\);", ";"),
    ("wait", "one group too early", r"\bcp_async_wait<([^;]*)>\(\);", r"cp_async_wait<\1 + 1>();"),
    ("wait", "group not closed", r"\b(cp_async|wgmma|tma_store)_commit\(\);", ";"),
    ("count", "every second left out", r"\b(\w+)\+\+(?=\))", r"\1 += 2"),
    ("count", "begins with 1", r"(?<=\w) = 0(?=[;,])", " = 1"),
    ("count", "begins with the second", r"(?<=[;,(] )(\w+) = (\w+)(?=; \w+ <)", r"\1 = \2 + 1"),
    ("stride", "+ for *", r"(?<=[\w)\]]) \* (?=[\w(])", " + "),
    ("stride", "doubled", r" \+= ([A-Z][\w:]*|32)(?=\))", r" += 2 * \1"),
    ("stride", "shifted one more", r" (>>|<<) (\d)\b", r" \1 (\2 + 1)"),
    ("swizzle", "+ for ^", r"(?<=[\w)\]]) \^ ", " + "),
    ("swizzle", "period halved", r"% 8\b", "% 4"),
    ("tail", "<= for <", r"(?<=[\w)\]]) < (?=[\w(])", " <= "),
    ("tail", "> for >=", r"(?<=[\w)\]]) >= (?=[\w(])", " > "),
    ("tail", "max for min", r"\bmin\(", "max("),
    ("tail", "rounds down", r" \+ ([\w:]+) - 1\) / \1\b", r") / \1"),
    ("scheduler", "blocks in pairs do the same", r"\bblockIdx\.([xy])\b", r"(blockIdx.\1 / 2)"),
    ("scheduler", "warps in pairs do the same", r"\bthreadIdx\.x / 32\b", "threadIdx.x / 64"),
    ("scheduler", "lanes in halves do the same", r"\bthreadIdx\.x % (32|16|8|LANES)\b", r"threadIdx.x % (\1 / 2)"),
    ("sign", "- for +", r"(?<=[\w)\]]) \+ (?=[\w(])", " - "),
    ("sign", "+ for -", r"(?<=[\w)\]]) - (?=[\w(])", " + "),
    ("sign", "-= for +=", r"(?<=[\w)\]]) \+= ", " -= "),
    ("sign", "minus lost", r"(?<=[(,] )-(?=[a-z])", ""),
    ("sign", "least for largest", r"\bfmaxf\(", "fminf("),
    ("mask", "condition lost", r" && [^&|(){}?;]+(?=[);?])", ""),
    ("mask", "condition lost", r"(?:(?<=\()|(?<=return )|(?<= = ))[^&|(){}?;,]+ && ", ""),
    ("mask", "condition reversed", rf"\bif ({NESTED})", r"if (!\1)"),
    ("mask", "always the second", r"(?<=[\w)\]]) \? ", " && false ? "),
    ("mask", "shuffles too near", r"(?<== )(16|8|LANES / 2)(?=; d; )", r"\1 / 2"),
    ("index", "neighbour", r"(?<=&)(\w+)\[(\w[^\][]*)\]", r"\1[(\2) ^ 1]"),
    ("index", "neighbour", r"(?<=[\w\]])\[(\w+)\](?= [=+-])", r"[\1 ^ 1]"),
]

RARE = ("fence", "wait", "swizzle")  # one of these first, where a function has any

# Not planted: file, function, a part of the changed line and the one behind it, why no test can see it.
EQUIVALENT = [
    ("attention.cu", "attend", "if (f.lse) store(", "the 16 threads of a row store the same number"),
    ("attention_bwd_mma.cu", "gradient_mma", "; if (!OF_KEYS) return", "what may still arrive then, nobody reads"),
    ("gemm_f32.cu", "add_block", "first && false", "before the first block the sum is 0"),
    ("measure.cu", "find_nothing", "if (!(threadIdx.x == 0)) store(first", "all threads store the same number"),
    ("sample.cu", "choose_largest", "if (!(threadIdx.x == 0)) store(", "all threads store the same number"),
    ("sample.cu", "batch_bound", "n > SMALL_BATCH", "a batch of another size: the candidates have the same order"),
    ("sample.cu", "reach", "stops = walk(", "all threads walk over the same candidates and end at the same one"),
    ("gemm_mma.cu", "multiply_bf16", "sum[i][j][e ^ 1] = 0", "all four become 0, in another order"),
    ("attention_decode.cu", "is_shared", "return t.rows.n == a.group", "one part alone comes with a capacity of 0"),
    ("attention_decode.cu", "finish_row", "if (f.lse) store(", "the threads of a row store the same number"),
    ("optim.cu", "sum_slots_kernel", "first && false", "before the first slot the sum is 0"),
    ("products.cu", "add_dots", "index <= rows", "the row behind the last is of the same scratch; its sum is not stored"),
]

# Survivors that are known: the same, and why none of the tests catches it.
KNOWN = [
    ("attention.cu", "attend", "i <= 4; i++) row[i] = begin_row",
     "the check of indices lets the address of a struct one behind the end of an array pass"),
    ("attention_decode.cu", "is_shared", "blocks.to + blocks.from", "it sends a prompt the other way, which has the same bits"),
]

# Tests of a file, besides those of its own ops by test_parity; by the beginning of its name, the longest that fits. A
# test is a program and its arguments; one with "=" is a variable of its environment.
PARITY, HOPPER = "test_parity", "GATETAPE_EMULATOR_ARCH=90"
CORES, PRODUCTS, GATED, ROUTER = ("test_attention_cores",), ("test_products",), ("test_gated",), ("test_router",)
TESTED_BY = {
    "attention": [CORES],
    "attention_hopper": [(*CORES, HOPPER)],
    "attention_bwd_hopper": [(*CORES, HOPPER)],
    "gemm": [PRODUCTS, GATED] + [(PARITY, op) for op in ("dense", "dense_bwd", "moe_gate_up", "moe_gate_up_bwd",
                                                         "moe_hidden", "moe_hidden_bwd", "moe_down", "moe_down_bwd")],
    "gemm_hopper": [(*PRODUCTS, HOPPER), (*GATED, HOPPER)],
    "lora": [(PARITY, "lora"), (PARITY, "lora_bwd")],
    "loss": [PRODUCTS],
    "products": [PRODUCTS, GATED],
    "route": [ROUTER],
    "test_hopper": [("test_hopper",)],
    "test_conformance": [("test_conformance",)],
}

HEAD = re.compile(r"^(\s*)(?:template <.*> )?((?:static )?__global__|DEVICE\b|(?:static )?__device__\b)")
Function = collections.namedtuple("Function", "path name first last is_kernel")
Mutant = collections.namedtuple("Mutant", "function line kind what old new behind")


# ---- where bugs can be planted ----
def functions(path):
    """Every kernel and device function with a body; of hopper.cuh, what the emulator compiles."""
    lines, found, at = path.read_text().split("\n"), [], 0
    end_of_host = next((i for i, line in enumerate(lines) if line == "#ifdef GATETAPE_EMULATED"), None)
    if path.name == "hopper.cuh" and end_of_host:
        lines = lines[:end_of_host]
    while at < len(lines):
        match, head = HEAD.match(lines[at]), at
        while match and at < len(lines) - 1 and not re.search(r"[{;]", lines[at]):
            at += 1
        if match and "{" in lines[at]:
            names = re.findall(r"(\w+)(?:<\w+>)?\(", " ".join(lines[head:at + 1]))
            name, last = next(n for n in names if n != "__launch_bounds__"), at
            if lines[at].count("{") != lines[at].count("}"):
                last = next(i for i in range(at + 1, len(lines)) if lines[i].startswith(match.group(1) + "}"))
            found.append(Function(path, name, at, last, "__global__" in match.group(2)))
            at = last
        at += 1
    return found


def candidates(function):
    """Mutants of a function in a fixed order, the first of a rare class, none twice before all have come once."""
    by_class = {}
    lines = function.path.read_text().split("\n")
    for number in range(function.first, function.last + 1):
        code = re.sub(r"\s*/\*.*", "", lines[number])
        if re.match(r"\s*(\*|#|static_assert|template|constexpr|enum)", code):
            continue
        if number == function.first:  # the head is not code
            code = " " * (code.find("{") + 1) + code[code.find("{") + 1:]
        for kind, what, pattern, new in OPERATORS:
            for match in re.finditer(pattern, code):
                changed = lines[number][:match.start()] + match.expand(new) + lines[number][match.end():]
                key = hashlib.sha256(f"{function.name}{what}{code.strip()}{changed}".encode()).hexdigest()
                mutant = Mutant(function, number, kind, what, lines[number].strip(), changed, lines[number + 1])
                by_class.setdefault(kind, []).append((key, mutant))
    queues = sorted((sorted(v) for v in by_class.values()), key=lambda v: v[0])
    rare = next((q for q in queues if q[0][1].kind in RARE), None)
    queues.sort(key=lambda q: q is not rare)
    while any(queues):
        for queue in queues:
            if queue:
                yield queue.pop(0)[1]


def reason(table, mutant):
    changed = " ".join(f"{mutant.new} {mutant.behind}".split())
    for file, function, part, why in table:
        if (file, function) == (mutant.function.path.name, mutant.function.name) and part in changed:
            return why
    return None


# ---- which tests see a file ----
def tests_of(path):
    """[(program, arguments...)]"""
    prefix = max((p for p in TESTED_BY if path.stem.startswith(p)), key=len, default=None)
    ops = re.findall(r'extern "C" void cuda_(\w+)\(', path.read_text())
    rounds = (TESTS / "test_rounds.c").read_text()
    own = [t for op in ops for t in ((PARITY, op), ("test_rounds", f"{op}*")) if t[0] == PARITY or f'{{"{op}",' in rounds]
    return own + [t for t in TESTED_BY.get(prefix, []) if t not in own]


def command_of(test, program):
    return ["env", *(a for a in test[1:] if "=" in a), str(program), *(a for a in test[1:] if "=" not in a)]


def included(path):
    """A file and what it includes of kernels/cuda/ and tests/emulator/."""
    seen, open_ = set(), [path]
    while open_:
        file = open_.pop()
        if file.exists() and file not in seen:
            seen.add(file)
            open_ += [file.parent / name for name in re.findall(r'#include "(\w+\.cuh)"', file.read_text())]
            open_ += [KERNELS / name for name in re.findall(r'#include "kernels/cuda/(\w+\.cuh)"', file.read_text())]
    return seen


def users(function, sources):
    """The sources to compile for a mutant of this function: its own, or those that come to a header's function."""
    if function.path.suffix == ".cu":
        return [s for s in sources if s == function.path]
    headers = [f for header in KERNELS.glob("*.cuh") for f in functions(header)]
    bodies = {f: "\n".join(f.path.read_text().split("\n")[f.first:f.last + 1]) for f in headers}
    names, n_names = {function.name}, 0
    mentioned = lambda text: any(re.search(rf"\b{n}\b", text) for n in names)
    while len(names) > n_names:
        n_names = len(names)
        names |= {f.name for f in headers if mentioned(bodies[f])}
    own_text = lambda s: "\n".join(f.read_text() for f in included(s) if f == s or f.parent == TESTS)
    return [s for s in sources if function.path in included(s) and mentioned(own_text(s))]


# ---- compiling and running ----
def run(command, limit, until=None, **more):
    """(code, what it said, seconds); a command is ended after `limit` seconds of computing, or when it says `until`."""
    process = subprocess.Popen(["sh", "-c", 'ulimit -S -t "$0"; exec "$@"', str(int(limit)), *command], text=True,
                               errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more)
    RUNNING.add(process)
    said = []
    for line in process.stdout:
        said.append(line)
        if until and until in line:
            os.kill(process.pid, signal.SIGKILL)
            break
    _, status, usage = os.wait4(process.pid, 0)
    RUNNING.discard(process)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, "".join(said), usage.ru_utime + usage.ru_stime


def stop(*_):
    for process in list(RUNNING):
        os.kill(process.pid, signal.SIGKILL)
    os._exit(130)


def complaint(said):
    """The line that says what a test found, without folders."""
    lines = [line for line in said.split("\n")
             if re.search(r"\.(cu|cuh|c|h|cpp):\d+: |deadlock|not clean|far from|differs|runtime error", line)
             or ("error" in line.lower() and "[" not in line)]
    lines = [line for line in lines if "Failure!" not in line] or [line for line in said.split("\n") if line.strip()]
    return re.sub(r"^ERROR: |(?<!\w)/\S*/", "", lines[0]).strip()[:160] if lines else ""


class Bench:
    def __init__(self, build, folder, jobs):
        self.build, self.folder, self.jobs = build, folder, jobs
        commands = json.loads((build / "compile_commands.json").read_text())
        self.commands = {pathlib.Path(c["file"]): shlex.split(c["command"]) for c in commands
                         if "gatetape_emulated.dir" in c["command"] or "tests/emulator" in c["file"]}
        self.sanitizers = sorted({word for c in self.commands.values() for word in c if word.startswith("-fsanitize")})
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        self.seconds = {}

    def compile(self, source, to, first):
        """A source as the build compiles it, but quicker and with the folder `first` ahead of the others."""
        command = [c for c in self.commands[ROOT / source.relative_to(first)] if c not in ("-g", "-O2", "-O3", "-Werror")]
        command[command.index("-o") + 1] = str(to)
        command[command.index("-c") + 1] = str(source)
        return run([command[0], "-I", str(first), "-w", "-O1", *command[1:]], COMPILE_LIMIT)[0] == 0

    def link(self, program, changed, to):
        objects = [str(o) for o in sorted((TESTS_BUILT(self.build) / f"{program}.dir").glob("*.o"))]
        if any(changed.name == pathlib.Path(o).name for o in objects):
            objects = []  # the test itself was compiled anew
        code, said, _ = run(["g++", "-fopenmp", *self.sanitizers, *objects, str(changed),
                             str(self.build / "tests" / "emulator" / "libgatetape_emulated.a"),
                             str(self.build / "libgatetape_kernels.a"), "-lcmocka", "-lm", "-o", str(to)], COMPILE_LIMIT)
        if code != 0:
            print(f"{program} with a changed {changed.name} does not link:\n{said}")
            stop()

    def time_tests(self, tests):
        """All must pass as they are."""
        def one(test):
            program = self.build / "tests" / "emulator" / test[0]
            code, said, seconds = run(command_of(test, program), COMPILE_LIMIT, env=self.environment)
            if code != 0:
                print(f"{' '.join(test)} fails without a mutant:\n{said}")
                stop()
            return test, seconds
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            self.seconds = dict(pool.map(one, tests))

    def try_mutant(self, mutant, sources, work):
        """None: does not compile. Else (test that caught it or '', what it said)."""
        for folder in ("kernels/cuda", "tests/emulator"):
            (work / folder).mkdir(parents=True)
            for file in (ROOT / folder).iterdir():
                if file.is_file():
                    (work / folder / file.name).symlink_to(file)
        for file in (ROOT / "kernels").glob("*.h"):
            (work / "kernels" / file.name).symlink_to(file)
        changed = work / mutant.function.path.relative_to(ROOT)
        lines = mutant.function.path.read_text().split("\n")
        lines[mutant.line] = mutant.new
        changed.unlink()
        changed.write_text("\n".join(lines))
        for source in sources:
            object_ = work / (source.name + ".o")
            if not self.compile(work / source.relative_to(ROOT), object_, work):
                return None
            linked = set()
            for test in sorted(tests_of(source), key=self.seconds.get):
                program = work / f"{source.name}.{test[0]}"
                if test[0] not in linked:
                    self.link(test[0], object_, program)
                linked.add(test[0])
                limit = max(LEAST_LIMIT, 4 * self.seconds[test])
                code, said, _ = run(["nice", *command_of(test, program)], limit, "Failure!", env=self.environment)
                if code != 0:
                    return " ".join(test), "out of time" if code == -signal.SIGXCPU else complaint(said)
        return "", ""


def TESTS_BUILT(build):
    return build / "tests" / "emulator" / "CMakeFiles"


def plan(a):
    """(function, how many, sources) for every function that a test can reach."""
    sources = sorted(KERNELS.glob("*.cu")) + sorted(TESTS.glob("test_*.cu"))
    sources = [s for s in sources if tests_of(s)]
    work = []
    for path in sorted(KERNELS.glob("*.cu*")):
        if path.name == "ptx.cuh" or (a.only and path.name not in a.only):  # the emulator has ptx.h in its place
            continue
        found = functions(path)
        each = {f: a.per_kernel if f.is_kernel or len(found) == 1 else a.per_function for f in found}
        work += [(f, each[f], users(f, sources)) for f in found]
    return [w for w in work if w[2]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", required=True, type=pathlib.Path)
    parser.add_argument("--per-kernel", type=int, default=2)
    parser.add_argument("--per-function", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="files of kernels/cuda/")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print what would be planted, run nothing")
    parser.add_argument("--out", type=pathlib.Path)
    a = parser.parse_args()
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, stop)
    work = plan(a)
    if a.list:
        for function, n, sources in work:
            print(f"{function.path.name} {function.name}: by way of {', '.join(s.name for s in sources)}")
            for mutant, _ in zip(candidates(function), range(n)):
                print(f"    {mutant.kind}, {mutant.what}: {mutant.new.strip()}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(a.build.resolve(), pathlib.Path(folder), a.jobs)
        tests = sorted({t for _, _, sources in work for s in sources for t in tests_of(s)})
        bench.time_tests(tests)
        print(f"{len(tests)} tests pass without a mutant, in {sum(bench.seconds.values()):.0f} s", flush=True)
        for _, _, sources in work:
            sources.sort(key=lambda s: sum(bench.seconds[t] for t in tests_of(s)))
        rows = plant_all(bench, work, a.jobs)
    return report(rows, a.out)


def plant_all(bench, work, jobs):
    def one(index):
        function, n, sources = work[index]
        rows = []
        for number, mutant in enumerate(candidates(function)):
            if sum(row[6] != "equivalent" for row in rows) == n:
                break
            row = [function.path.name, function.name, mutant.line + 1, mutant.kind, mutant.old, mutant.new.strip()]
            why = reason(EQUIVALENT, mutant)
            if why:
                rows.append(row + ["equivalent", "", why])
                continue
            folder = bench.folder / f"{index}_{number}"
            found = bench.try_mutant(mutant, sources, folder)
            shutil.rmtree(folder)
            if found is None:
                continue
            test, said = found
            rows.append(row + (["caught", test, said] if test else ["survived", "", reason(KNOWN, mutant) or ""]))
            print(f"{row[0]}:{row[2]} {row[1]}: {row[3]}: {row[5]}\n    {' '.join(rows[-1][6:])}", flush=True)
        return rows

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return [row for rows in pool.map(one, range(len(work))) for row in rows]


def report(rows, out):
    count = collections.Counter(row[6] for row in rows)
    planted = count["caught"] + count["survived"]
    classes = collections.Counter(row[3] for row in rows if row[6] != "equivalent")
    print(f"{planted} planted, {count['caught']} caught, {count['survived']} survived; "
          f"{count['equivalent']} equivalent ones not planted")
    print(", ".join(f"{n} {kind}" for kind, n in sorted(classes.items())))
    unexplained = [row for row in rows if row[6] == "survived" and not row[8]]
    for row in unexplained:
        print(f"survived, not explained: {row[0]}:{row[2]} {row[1]}: {row[5]}")
    if out:
        with open(out, "w", newline="") as to:
            writer = csv.writer(to, lineterminator="\n")
            writer.writerow(["file", "function", "line", "class", "original", "planted", "result", "caught by",
                             "what it said, or why it survives"])
            writer.writerows(sorted(rows))
    return 0 if planted and count["caught"] >= 0.95 * planted and not unexplained else 1


sys.exit(main())
