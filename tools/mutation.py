#!/usr/bin/env python3
"""Plant bugs in the GPU's kernels, one at a time, and see which test on the emulated device catches each.

    mutation.py --build BUILD_FOLDER [--per-kernel 2] [--only FILE.cu] [--jobs 1] [--out bench/results/mutation.csv]

Operators are fixed classes (below). In every kernel and device function of kernels/cuda/ mutants of different
classes are chosen by a hash of the place, so a rerun plants the same ones. A mutant that does not compile is
replaced by the next. A mutant is caught when the parity suite (or the attention suite) fails, faults or hangs.
BUILD_FOLDER must hold the emulated build (`make emulated` and the tests).
"""
import argparse
import concurrent.futures
import csv
import hashlib
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels" / "cuda"
FLAGS = ("-std=c++20 -O1 -w -ffp-contract=off -fno-math-errno -fopenmp -DGATETAPE_EMULATED -D_GNU_SOURCE -x c++").split()
TIMEOUT = 300

# class, pattern, replacement
OPERATORS = [
    ("barrier removed", r"^\s*(__syncthreads|__syncwarp)\(\);", ";"),
    ("wait removed", r"cp_async_wait<[^>]*>\(\);", ";"),
    ("wait too weak", r"cp_async_wait<(\w[^>]*)>\(\);", r"cp_async_wait<\1 + 1>();"),
    ("commit removed", r"cp_async_commit\(\);", ";"),
    ("boundary", r"(?<=[\w\)\]]) < (?=[\w\(])", " <= "),
    ("boundary", r"(?<=[\w\)\]]) >= (?=[\w\(])", " > "),
    ("sign", r"(?<=[\w\)\]]) \+ (?=[\w\(])", " - "),
    ("sign", r" \+= ", " -= "),
    ("swizzle", r" \^ ", " + "),
    ("stride", r"(?<=\w) \* (?=\w)", " + "),
    ("count", r"\bi\+\+", "i += 2"),
    ("mask", r" && [^&|()]+(?=[\)&;])", " "),
    ("minimum", r"\bmin\(", "max("),
    ("maximum", r"\bfmaxf\(", "fminf("),
    ("initial value", r"= 0(?=[;,])", "= 1"),
    ("wrong lane", r"% 32\b", "% 16"),
    ("wrong index", r"\[(\w+)\](?= [=+])", r"[\1 ^ 1]"),
    ("condition", r"\bif \((?!!)", "if (!"),
    ("tail", r" \? ", " && false ? "),
]

# what a file without ops of its own is tested by
COVERED_BY = {
    "gemm": ["dense", "dense_bwd", "moe_gate_up", "moe_gate_up_bwd", "moe_down", "moe_down_bwd"],
    "attention_bwd": ["attention_bwd"],
    "attention": ["attention"],
    "device": ["add", "rmsnorm", "rmsnorm_bwd", "swiglu"],
    "norm": ["rmsnorm", "rmsnorm_bwd", "layernorm", "layernorm_bwd"],
    "row_threads": ["rmsnorm", "rmsnorm_bwd", "layernorm", "layernorm_bwd"],
}


def functions(text):
    """(name, first line, last line) of every kernel and device function."""
    lines, found, at = text.split("\n"), [], 0
    while at < len(lines):
        if re.match(r"(template.*)?(static __global__|DEVICE\b|static __device__)|template <.*> DEVICE", lines[at]):
            head = at
            while at < len(lines) and "{" not in lines[at] and ";" not in lines[at]:
                at += 1
            if at < len(lines) and "{" in lines[at]:
                names = re.findall(r"(\w+)\s*\(", " ".join(lines[head:at + 1]))
                name = next((n for n in names if n not in ("__launch_bounds__", "alignas")), "?")
                end = at
                if not lines[at].rstrip().endswith("}"):
                    while end < len(lines) and not lines[end].startswith("}"):
                        end += 1
                found.append((name, at, end))
                at = end
        at += 1
    return found


def candidates(text, name, first, last):
    """Mutants of a function in a fixed, shuffled order, no class twice before all have come once."""
    by_class = {}
    lines = text.split("\n")
    for number in range(first, last + 1):
        line = lines[number]
        if re.match(r"\s*(/\*|\*|#|static_assert|template)", line):
            continue
        for kind, pattern, new in OPERATORS:
            for match in re.finditer(pattern, line):
                changed = line[:match.start()] + match.expand(new) + line[match.end():]
                key = hashlib.sha256(f"{name}{kind}{line.strip()}{match.start()}".encode()).hexdigest()
                by_class.setdefault(kind, []).append((key, number, kind, changed))
    queues = sorted((sorted(v) for v in by_class.values()), key=lambda v: v[0])
    while any(queues):
        for queue in queues:
            if queue:
                yield queue.pop(0)


def ops_of(path):
    own = re.findall(r'extern "C" void cuda_(\w+)\(', path.read_text())
    if own:
        return own
    for prefix, ops in COVERED_BY.items():
        if path.stem.startswith(prefix):
            return ops
    return None


def run(command, **more):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, **more)
    except subprocess.TimeoutExpired:
        return None


class Bench:
    def __init__(self, build, folder):
        self.build, self.folder = build, folder
        self.includes = ["-I", str(ROOT / "tests" / "emulator"), "-I", str(ROOT)]
        self.objects = {}

    def compile(self, source, to, include_first=None):
        extra = ["-I", include_first] if include_first else []
        return run(["g++", *FLAGS, *extra, *self.includes, "-c", str(source), "-o", str(to)])

    def prepare(self):
        for source in sorted(KERNELS.glob("*.cu")) + sorted((ROOT / "tests" / "emulator").glob("*.cpp")):
            if source.name.startswith("test_"):
                continue
            to = self.folder / (source.name + ".o")
            done = self.compile(source, to)
            if done is None or done.returncode:
                sys.exit(f"{source}: does not compile unchanged:\n{done.stderr if done else 'timeout'}")
            self.objects[source.name] = to
        for test in ["test_parity.c", "test_attention_cores.c"]:
            source = ROOT / "tests" / "emulator" / test
            if source.exists():
                subprocess.run(["gcc", "-std=gnu11", "-O1", "-D_GNU_SOURCE", "-fopenmp", "-I", str(ROOT), "-c",
                                str(source), "-o", str(self.folder / (test + ".o"))], check=True)

    def link(self, test, replaced, to):
        objects = [str(replaced.get(name, o)) for name, o in self.objects.items()]
        done = run(["g++", "-fopenmp", str(self.folder / (test + ".o")), *objects,
                    str(self.build / "libgatetape_kernels.a"), "-lcmocka", "-lm", "-o", str(to)])
        return done is not None and done.returncode == 0

    def try_mutant(self, path, text, number, changed, index):
        """None: does not compile. Else the test that caught it, or ''."""
        work = self.folder / f"mutant{index}"
        (work / "kernels" / "cuda").mkdir(parents=True, exist_ok=True)
        lines = text.split("\n")
        lines[number] = changed
        replaced = {}
        users = [path] if path.suffix == ".cu" else [
            u for u in sorted(KERNELS.glob("*.cu")) if path.name in u.read_text()]
        for user in users:  # the whole folder is copied, so that includes meet the changed file
            for other in KERNELS.iterdir():
                (work / "kernels" / "cuda" / other.name).write_text(other.read_text())
            for other in (ROOT / "kernels").glob("*.h"):
                (work / "kernels" / other.name).write_text(other.read_text())
            (work / "kernels" / "cuda" / path.name).write_text("\n".join(lines))
            to = work / (user.name + ".o")
            done = self.compile(work / "kernels" / "cuda" / user.name, to)
            if done is None or done.returncode:
                return None
            replaced[user.name] = to
        if not self.link("test_parity.c", replaced, work / "test_parity"):
            return None
        for op in ops_of(path):
            done = run(["nice", str(work / "test_parity"), op], env={"OMP_WAIT_POLICY": "passive"})
            if done is None:
                return f"test_parity {op} (hangs)"
            if done.returncode:
                return f"test_parity {op}"
        if path.stem.startswith("attention") and (self.folder / "test_attention_cores.c.o").exists():
            if not self.link("test_attention_cores.c", replaced, work / "test_attention"):
                return None
            done = run(["nice", str(work / "test_attention")], env={"OMP_WAIT_POLICY": "passive"})
            if done is None or done.returncode:
                return "test_attention_cores"
        return ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", required=True, type=pathlib.Path)
    parser.add_argument("--per-kernel", type=int, default=2)
    parser.add_argument("--only")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path)
    a = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(a.build.resolve(), pathlib.Path(folder))
        bench.prepare()
        work = []
        for path in sorted(KERNELS.glob("*.cu*")):
            if (a.only and path.name != a.only) or ops_of(path) is None:
                continue
            text = path.read_text()
            work += [(path, text, f) for f in functions(text)]

        def one(job):
            index, (path, text, (name, first, last)) = job
            found = []
            for n, (_, number, kind, changed) in enumerate(candidates(text, name, first, last)):
                if len(found) == a.per_kernel:
                    break
                caught = bench.try_mutant(path, text, number, changed, f"{index}_{n}")
                if caught is None:
                    continue
                found.append([path.name, name, number + 1, kind, changed.strip(), caught or "SURVIVED"])
                print(",".join(map(str, found[-1][:4])), "->", found[-1][5], flush=True)
                print("    " + found[-1][4], flush=True)
            return found

        with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
            for found in pool.map(one, enumerate(work)):
                rows += found
    n_survived = sum(r[5] == "SURVIVED" for r in rows)
    print(f"{len(rows)} planted, {len(rows) - n_survived} caught, {n_survived} survived")
    if a.out:
        with open(a.out, "w", newline="") as to:
            writer = csv.writer(to)
            writer.writerow(["file", "function", "line", "class", "changed line", "caught by"])
            writer.writerows(rows)
    sys.exit(0 if rows and (len(rows) - n_survived) >= 0.95 * len(rows) else 1)


main()
