#!/usr/bin/env python3
"""The GPU bench: every case of `gatetape bench ops` with PyTorch's best way of the same work measured right after it, then
whole models beside Hugging Face transformers. Random data, rotated buffers, the two ceilings before and after.

    peers_gpu.py GATETAPE ops OUT.csv [CASE ...]
    peers_gpu.py GATETAPE model OUT.csv SHAPE LAYERS PROMPTS TOKENS STEPS BATCH...

C is a bf16 matrix product of 8192^3 by cuBLAS, W a device copy of 2 GiB, bytes read plus written; share is of C for what
multiplies, of W else. A peer that this PyTorch lacks is left out, and said so on stderr.
"""
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from peers import gate_gradient

SHAPES = {"mixtral": (4096, 14336, 8, 2, 32, 8, 128, 32000), "qwen3": (2048, 768, 128, 8, 32, 4, 128, 151936),
          "olmoe": (2048, 1024, 64, 8, 16, 16, 128, 50304)}
HEADER = ("device,driver,commit,case,seconds_median,seconds_least,seconds_most,tflops,gbs,ceiling,share,"
          "peer,peer_seconds,ratio").split(",")
BF16, RUNS, SPREAD_BYTES = torch.bfloat16, 20, 256 << 20


def events(run):
    begin, end = torch.cuda.Event(True), torch.cuda.Event(True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def seconds(calls, capture=True):
    """Median seconds of one of several calls on different data, done in turn; from a graph unless the work cannot be
    captured."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    once = events(lambda: [call() for call in calls]) / len(calls)
    rounds = max(1, min(64, int(2e-3 / once) + 1) // len(calls))
    turn = [call for _ in range(rounds) for call in calls]
    run = lambda: [call() for call in turn]
    if capture:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
    run()
    return statistics.median(events(run) for _ in range(RUNS)) / len(turn)


def ceilings():
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=BF16) for _ in range(2))
    product = 2 * 8192 ** 3 / statistics.median(events(lambda: a @ b) for _ in range(RUNS))
    x = torch.empty(1 << 31, device="cuda", dtype=torch.uint8)
    y = torch.empty_like(x)
    copy = 2 * x.numel() / statistics.median(events(lambda: y.copy_(x)) for _ in range(RUNS))
    return {"C": product, "W": copy}


def random(*sizes):
    return torch.randn(*sizes, device="cuda", dtype=BF16) * 0.5


def repeat(make, n_bytes):
    """Calls of make() on as much data as no cache holds."""
    return [make() for _ in range(max(1, min(8, math.ceil(SPREAD_BYTES / max(1, n_bytes)))))]


class Routing:
    """Choices by the popularity that `gatetape bench` uses, and what Python needs to group rows by expert."""

    def __init__(self, rows, experts, choices, skew):
        u = (torch.arange(experts, device="cuda") + 0.5) / experts
        popularity = skew * torch.log(u / (1 - u)) / 1.702
        gumbel = -torch.log(-torch.log(torch.rand(rows, experts, device="cuda").clamp(1e-30, 1 - 1e-7)))
        self.ids = (popularity + gumbel).topk(choices, -1).indices
        flat = self.ids.flatten()
        self.order = torch.argsort(flat, stable=True)
        self.token, self.back = self.order // choices, torch.argsort(self.order)
        self.counts = torch.bincount(flat, minlength=experts)
        self.offsets = torch.cumsum(self.counts, 0, dtype=torch.int32)
        self.weights = torch.rand(rows, choices, device="cuda")


swiglu = torch.compile(lambda z: F.silu(z[:, :z.shape[1] // 2]) * z[:, z.shape[1] // 2:], dynamic=True)


def swiglu_gradient(z, da, w):
    gate, up = z[:, :da.shape[1]].float(), z[:, da.shape[1]:].float()
    sigmoid = torch.sigmoid(gate)
    hidden = gate * sigmoid
    grad = da.float() * w[:, None]
    return (torch.cat([grad * up * (sigmoid + hidden * (1 - sigmoid)), grad * hidden], 1).to(BF16),
            (da.float() * hidden * up).sum(1))


swiglu_gradient = torch.compile(swiglu_gradient, dynamic=True)
weights_of = {}


def weights(shape):
    """The experts' weights of a shape, kept for the next case of the same shape alone."""
    if shape not in weights_of:
        weights_of.clear()
        hidden, inner, experts = SHAPES[shape][:3]
        weights_of[shape] = random(experts, 2 * inner, hidden), random(experts, hidden, inner)
    return weights_of[shape]


def expert_peers(op, shape, rows, skew):
    hidden, inner, experts, choices = SHAPES[shape][:4]
    pairs, (up, down) = rows * choices, weights(shape)
    n_bytes = rows * choices * (hidden + 2 * inner) * 2 + min(experts, pairs) * inner * hidden * 2

    def products(width, matrix):
        def make():
            r, x = Routing(rows, experts, choices, skew), random(pairs, width)
            return lambda: torch._grouped_mm(x, matrix, offs=r.offsets)
        return repeat(make, n_bytes)

    def gathered():
        r, x = Routing(rows, experts, choices, skew), random(rows, hidden)
        return lambda: swiglu(torch._grouped_mm(x[r.token], up.transpose(1, 2), offs=r.offsets))

    def loop():
        r, x = Routing(rows, experts, choices, skew), random(pairs, hidden)
        ends = [0] + r.offsets.tolist()
        z = torch.empty(pairs, 2 * inner, device="cuda", dtype=BF16)

        def run():
            for e in range(experts):
                if ends[e + 1] > ends[e]:
                    torch.mm(x[ends[e]:ends[e + 1]], up[e].t(), out=z[ends[e]:ends[e + 1]])
        return run

    def combine():
        r, y, into = Routing(rows, experts, choices, skew), random(pairs, hidden), random(rows, hidden)
        return lambda: into + (y[r.back].view(rows, choices, hidden) * r.weights[..., None]).sum(1)

    def gradient():
        z, da, w = random(pairs, 2 * inner), torch.randn(pairs, inner, device="cuda"), torch.rand(pairs, device="cuda")
        return lambda: swiglu_gradient(z, da, w)
    def hidden_gradient():
        r, dout, z = Routing(rows, experts, choices, skew), random(rows, hidden), random(pairs, 2 * inner)
        w = r.weights.flatten()[r.order]
        return lambda: swiglu_gradient(z, torch._grouped_mm(dout[r.token], down, offs=r.offsets), w)
    return {"moe_gate_up": lambda: {"grouped_mm, rows gathered before": products(hidden, up.transpose(1, 2)),
                                    **({"loop of cuBLAS, rows gathered before": repeat(loop, n_bytes)}
                                       if experts == 8 and rows >= 512 else {})},
            "moe_hidden": lambda: {"gather, grouped_mm, compiled swiglu": repeat(gathered, n_bytes)},
            "moe_down": lambda: {"grouped_mm": products(inner, down.transpose(1, 2))},
            "moe_down_bwd": lambda: {"grouped_mm, rows gathered before": products(hidden, down)},
            "moe_hidden_bwd": lambda: {"gather, grouped_mm, compiled swiglu backward": repeat(hidden_gradient, n_bytes)},
            "moe_gate_up_bwd": lambda: {"grouped_mm, choices not summed": products(2 * inner, up)},
            "moe_combine": lambda: {"eager": repeat(combine, pairs * hidden * 2)},
            "moe_swiglu_bwd": lambda: {"compiled": repeat(gradient, pairs * inner * 12)}}[op]()


def lora_peers(op, shape, rows, skew):
    """Two more grouped products on the rows of the experts with an update (gate projection); back, five."""
    hidden, inner, experts, choices = SHAPES[shape][:4]
    rank, back = int(op.split("_r")[1]), "bwd" in op
    n = experts if "_all" in op else (experts + 19) // 20
    chosen = torch.tensor([(2 * i + 1) * experts // (2 * n) for i in range(n)], device="cuda")

    def make():
        r, x, y = Routing(rows, experts, choices, skew), random(rows, hidden), random(rows * choices, 2 * inner)
        a, b = random(n, rank, hidden), random(n, inner, rank)
        expert = r.ids.flatten()[r.order]
        here = torch.isin(expert, chosen).nonzero().flatten()
        token, offsets = r.token[here], torch.cumsum(r.counts[chosen], 0, dtype=torch.int32)
        dx = random(rows, hidden)

        def forward():
            u = torch._grouped_mm(x[token], a.transpose(1, 2), offs=offsets)
            y[here, :inner] += torch._grouped_mm(u, b.transpose(1, 2), offs=offsets)

        def backward():
            into, dy = x[token], y[here, :inner]
            u, g = torch._grouped_mm(into, a.transpose(1, 2), offs=offsets), torch._grouped_mm(dy, b, offs=offsets)
            dx.index_add_(0, token, torch._grouped_mm(g, a, offs=offsets))
            return (torch._grouped_mm(g.t(), into, offs=offsets), torch._grouped_mm(dy.t(), u, offs=offsets))
        return backward if back else forward
    n_bytes = rows * choices * (hidden + 2 * inner) * 2
    return {"gather, grouped_mm x 5, examples not kept apart" if back else "gather, grouped_mm x 2":
            repeat(make, n_bytes)}


def adamw_peers(shape, rows):
    def make():
        parameter = torch.nn.Parameter(torch.randn(rows, SHAPES[shape][0], device="cuda"))
        parameter.grad = torch.randn_like(parameter)
        return torch.optim.AdamW([parameter], lr=1e-4, fused=True, capturable=True).step
    return {"torch.optim.AdamW fused": repeat(make, rows * SHAPES[shape][0] * 28)}


def router_peers(op, shape, rows, skew):
    experts, choices = SHAPES[shape][2:4]

    def choose(logits):
        values, ids = torch.softmax(logits, -1).topk(choices, -1)
        return values / values.sum(-1, keepdim=True), ids
    compiled = torch.compile(choose, dynamic=False)

    def route(how):
        def make():
            logits = torch.randn(rows, experts, device="cuda")
            return lambda: how(logits)
        return repeat(make, rows * experts * 8)

    def plan():
        flat = Routing(rows, experts, choices, skew).ids.flatten()

        def run():
            order = torch.argsort(flat, stable=True)
            return torch.argsort(order), torch.cumsum(torch.bincount(flat, minlength=experts), 0)
        return run
    return {"eager": route(choose), "compiled": route(compiled)} if op == "route" else {"argsort": [plan()]}


def row_peers(op, shape, rows, skew):
    hidden, inner, _, choices, heads, _, head, vocabulary = SHAPES[shape]
    width = heads * head
    w = random(width, hidden)
    table = random(vocabulary, hidden) if op in ("embed", "cross_entropy") else None
    scale = random(hidden)

    def rope():
        x, angle = random(rows, heads, head), torch.rand(rows, 1, head, device="cuda") * 4096
        cos, sin = angle.cos().to(BF16), angle.sin().to(BF16)
        return lambda: x * cos + torch.cat((-x[..., head // 2:], x[..., :head // 2]), -1) * sin

    def loss():
        x, ids = random(rows, hidden), torch.randint(vocabulary, (rows,), device="cuda")
        return lambda: F.cross_entropy((x @ table.t()).float(), ids)

    def simple(f, *sizes):
        def make():
            operands = [random(rows, n) for n in sizes]
            return lambda: f(*operands)
        return make

    def embed():
        ids = torch.randint(vocabulary, (rows,), device="cuda")
        return lambda: F.embedding(ids, table)
    norm = torch.compile(lambda x: F.rms_norm(x, (hidden,), scale, 1e-5), dynamic=True)
    makers = {"dense": {"cuBLAS": simple(lambda x: x @ w.t(), hidden)},
              "dense_bwd": {"cuBLAS": simple(lambda dy: dy @ w, width)},
              "rmsnorm": {"compiled": simple(norm, hidden)},
              "swiglu": {"compiled": simple(lambda z: swiglu(z.view(rows * choices, 2 * inner)), choices * 2 * inner)},
              "rope": {"eager, cos and sin given": rope},
              "embed": {"F.embedding": embed},
              "cross_entropy": {"cuBLAS and F.cross_entropy": loss}}.get(op, {})
    return {name: repeat(make, rows * hidden * 4) for name, make in makers.items()}


def attention_peers(op, shape, prompts, length):
    heads, kv_heads, head = SHAPES[shape][4:7]
    queries = 1 if op == "attention_decode" else length

    def make(backend, backward):
        q = torch.randn(prompts, heads, queries, head, device="cuda", dtype=BF16, requires_grad=backward)
        k, v = (torch.randn(prompts, kv_heads, length, head, device="cuda", dtype=BF16, requires_grad=backward)
                for _ in range(2))

        def forward():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=queries > 1, enable_gqa=True)
        if not backward:
            return forward
        out = forward()
        dout = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
    torch.use_deterministic_algorithms(op == "attention_bwd")
    found = {}
    for name, backend in (("SDPA flash", SDPBackend.FLASH_ATTENTION), ("SDPA cuDNN", SDPBackend.CUDNN_ATTENTION)):
        try:
            found[name] = [make(backend, op == "attention_bwd") for _ in range(2)]
            found[name][0]()
        except RuntimeError as problem:
            found.pop(name, None)
            print(f"{op} {name}: {str(problem).splitlines()[0]}", file=sys.stderr)
    return found


def peers_of(case):
    shape, op, rows, *skew = case.split("/")
    if op.startswith("attention"):
        return attention_peers(op, shape, *map(int, rows.split("x")))
    if op == "adamw":
        return adamw_peers(shape, int(rows))
    if op.startswith("lora"):
        return lora_peers(op, shape, int(rows), float(skew[0]))
    group = router_peers if op in ("route", "moe_plan") else expert_peers if op.startswith("moe_") else row_peers
    return group(op, shape, int(rows), float(skew[0]) if skew else 0.0)


def timed_peers(case):
    """[(seconds, name)], the fastest first; of attention all, else the fastest alone."""
    found = []
    try:
        for name, calls in peers_of(case).items():
            found.append((seconds(calls, "attention_bwd" not in case), name))
    except (RuntimeError, KeyError, TypeError) as problem:
        print(f"{case}: {problem}", file=sys.stderr)
    torch.use_deterministic_algorithms(False)
    return sorted(found)[:None if "attention" in case else 1]


def machine(gatetape):
    ask = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    device, driver = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip().split("\n")[0].split(", ")
    version = subprocess.run([gatetape, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {"device": device, "driver": driver, "commit": version.split("(")[-1].rstrip(")")}


def bench_ops(gatetape, cases, put):
    command = [gatetape, "bench", "ops", "--device", "cuda", "--compute", "bf16"]
    if not cases:
        cases = subprocess.run(command + ["--list"], capture_output=True, text=True, check=True).stdout.split()
    own = subprocess.Popen(command + ["--cases", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for case in cases:
        own.stdin.write(case + "\n")
        own.stdin.flush()
        row = own.stdout.readline().strip().split(",")
        if len(row) < 9:
            sys.exit(f"{case}: expected a row of gatetape bench: got {row}")
        for peer in timed_peers(case) or [None]:
            put(case, *map(float, row[2:5]), *map(float, row[7:9]), peer)
    own.stdin.close()
    own.wait()


def clock(run, times=3):
    run()
    taken = []
    for _ in range(times):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def transformers_rates(folder, prompts, tokens, steps, batches):
    """Tokens a second by case, the faster of two implementations of the experts."""
    import transformers
    transformers.utils.logging.disable_progress_bar()
    best = {}
    for experts in ("grouped_mm", "eager"):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=BF16, experts_implementation=experts, device_map="cuda").eval()
        size = model.config.vocab_size
        flat = torch.tensor([(i * 7919 + 13) % size for i in range(max(prompts, *batches) * tokens)], device="cuda")
        ids = flat[:prompts * tokens].view(prompts, tokens)

        @torch.inference_mode()
        def forward():
            model(input_ids=ids, labels=ids, use_cache=False)

        @torch.inference_mode()
        def decode(n, new):
            model.generate(flat[:n * tokens].view(n, tokens), max_new_tokens=new, min_new_tokens=new, do_sample=False,
                           pad_token_id=0)
        rates = {"forward": lambda: ids.numel() / clock(forward),
                 "forward_gate_gradient": lambda: ids.numel() / clock(lambda: gate_gradient(torch, model, ids, True))}
        if experts == "grouped_mm":
            for n in batches:
                rates[f"decode_batch_{n}"] = lambda n=n: n * steps / (
                    clock(lambda: decode(n, 3 + steps), 1) - clock(lambda: decode(n, 3), 1))
        for case, rate in rates.items():
            try:
                best[case] = max(best.get(case, 0), rate())
            except (RuntimeError, AttributeError, torch.OutOfMemoryError) as problem:
                print(f"{experts} {case}: {str(problem).splitlines()[0]}", file=sys.stderr)
        del model
        torch.cuda.empty_cache()
    return best, f"transformers {transformers.__version__} torch {torch.__version__}"


def bench_model(gatetape, put, shape, layers, prompts, tokens, steps, batches):
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        subprocess.run([gatetape, "bench", "checkpoint", "--model", folder, "--shape", shape, "--layers", str(layers),
                        "--compute", "bf16", "--device", "cpu"], check=True)
        command = [gatetape, "bench", "model", "--model", folder, "--device", "cuda", "--compute", "bf16", "--prompts",
                   str(prompts), "--tokens", str(tokens), "--steps", str(steps)]
        for n in batches:
            command += ["--batch", str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(done.stderr, file=sys.stderr)
        flops = {line.split(":")[0]: float(line.split()[1]) for line in done.stderr.splitlines() if "TFLOP/s" in line}
        peers, name = transformers_rates(folder, prompts, tokens, steps, batches)
    for row in csv.reader(done.stdout.splitlines()):
        case, taken, rate, copy_share = row[0], float(row[4]), float(row[5]), float(row[8])
        peer = (taken * rate / peers[case], name) if case in peers else None
        put(f"{shape} x{layers}/{case}/{prompts}x{tokens}", taken, taken, taken, flops.get(case, 0),
            copy_share * float(row[7]) / 1e9 if case.startswith("decode_batch") else 0, peer)


def main():
    gatetape, what, out, *rest = sys.argv[1:]
    facts, before, rows = machine(gatetape), ceilings(), []
    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HEADER, lineterminator="\n")
        writer.writeheader()

        def put(case, median, least, most, tflops, gbs, peer):
            multiplies = tflops > 0.02 * before["C"] / 1e12 and "decode" not in case and gbs < 0.3 * before["W"] / 1e9
            ceiling = "C" if multiplies else "W"
            share = tflops * 1e12 / before["C"] if multiplies else gbs * 1e9 / before["W"]
            writer.writerow(facts | {
                "case": case, "seconds_median": f"{median:.4g}", "seconds_least": f"{least:.4g}",
                "seconds_most": f"{most:.4g}", "tflops": f"{tflops:.1f}", "gbs": f"{gbs:.1f}", "ceiling": ceiling,
                "share": f"{share:.3f}", "peer": peer[1] if peer else "", "peer_seconds": f"{peer[0]:.4g}" if peer else "",
                "ratio": f"{peer[0] / median:.3f}" if peer else ""})
            file.flush()
            beside = f"{peer[0] / median:6.2f} x {peer[1]}" if peer else ""
            print(f"{case:36s} {median * 1e6:10.1f} us {tflops:7.1f} TF {gbs:7.0f} GB/s {share:6.3f} {ceiling} {beside}",
                  flush=True)
        if what == "ops":
            bench_ops(gatetape, rest, put)
        else:
            shape, *numbers = rest
            layers, prompts, tokens, steps, *batches = map(int, numbers)
            bench_model(gatetape, put, shape, layers, prompts, tokens, steps, batches)
        after = ceilings()
        for name, unit in (("C", "tflops"), ("W", "gbs")):
            for when, value in (("before", before), ("after", after)):
                writer.writerow(facts | {"case": f"ceiling {name} {when}",
                                         unit: f"{value[name] / (1e12 if name == 'C' else 1e9):.1f}"})
        print(json.dumps({"before": before, "after": after}))


if __name__ == "__main__":
    main()
