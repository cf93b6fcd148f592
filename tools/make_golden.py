#!/usr/bin/env python3
"""Make golden cases: a small checkpoint and what the reference implementation computes on it.

    make_golden.py tests/golden/cases.json --out tests/golden [--only NAME ...]
        random checkpoints by a list of configurations; this made tests/golden
    make_golden.py --model CHECKPOINT --prompts PROMPTS.jsonl [--chat] --out DIR [--limit N] [--greedy N]
        your checkpoint and prompts, one JSON object a line: "prompt" (as it stands, or with --chat as a user
        message in the checkpoint's chat template) or "messages" (always in that template), and optionally
        "target", the continuation that nll_target and gate_grad_target are about (else: the last third)
    make_golden.py --model CHECKPOINT --tokens TOKENS.json --out DIR [--limit N] [--greedy N]
        the same from ids: {"prompts": [[id, ...], ...], "target_starts": [position, ...]}

With --model, DIR becomes a case: expected.safetensors and links to the checkpoint's files. After that
`gatetape conform DIR` says whether engine and reference agree on it. All is fp32, 4 bytes per parameter.

The reference is Hugging Face transformers with eager attention and experts, one prompt at a time, no padding.
Needs torch, transformers (5.23 was used), numpy and safetensors. tests/golden/README.md says what the output
means and how close two implementations must be.
"""
import argparse
import collections
import json
import math
import pathlib
import sys

import numpy as np
import torch
import transformers
from safetensors import numpy as tensor_files
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

MARGIN = 2e-4  # least distance, in every choice a case contains, between what is taken and what is left


def load_config(published):
    """The library's configuration object for a published config.json."""
    fields = {k: v for k, v in published.items() if k != "model_type"}
    return AutoConfig.for_model(published["model_type"], **fields)


def build(published, dtype, seed):
    """Random weights whose activations are of order one and whose routing is decided, rounded to dtype."""
    model = AutoModelForCausalLM.from_config(
        load_config(published), attn_implementation="eager", experts_implementation="eager")
    model = model.float().eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            draw = rng.standard_normal(tuple(p.shape)).astype(np.float32)
            if "norm" in name:
                value = 1 + 0.1 * draw
            elif "embed_tokens" in name:
                value = draw * (2 / math.sqrt(p.shape[-1]) if published.get("tie_word_embeddings") else 1)
            elif name.endswith("gate.weight"):
                value = draw * 1.5 / math.sqrt(p.shape[-1])
            else:
                value = draw / math.sqrt(p.shape[-1])
            p.copy_(torch.from_numpy(np.ascontiguousarray(value)).to(dtype).float())
    return model


class Capture:
    """Keeps what routers and layers put out during one forward pass; optionally edits the routing."""

    def __init__(self, model, edit=None):
        self.logits, self.weights, self.ids, self.layer_out, self.embedding = [], [], [], [], None
        self.hooks = []
        found = [(int(name.split(".")[2]), module) for name, module in model.named_modules()
                 if type(module).__name__.lower().endswith("topkrouter")]
        if not found:
            sys.exit(f"{type(model).__name__}: expected routers of a class named ...TopKRouter: found none")
        self.moe_layers, self.routers = [layer for layer, _ in found], [module for _, module in found]
        for layer, router in found:
            self.hooks.append(router.register_forward_hook(self._routed(layer, edit)))
        for layer in model.model.layers:
            self.hooks.append(layer.register_forward_hook(self._layer))
        self.hooks.append(model.model.embed_tokens.register_forward_hook(self._embedded))

    def _routed(self, layer, edit):
        def hook(module, args, out):
            logits, weights, ids = out
            if edit is not None:
                logits, weights, ids = edit(layer, logits, weights, ids)
            if logits.requires_grad:
                logits.retain_grad()
            self.logits.append(logits)
            self.weights.append(weights)
            self.ids.append(ids)
            return logits, weights, ids
        return hook

    def _layer(self, module, args, out):
        out = out[0] if isinstance(out, tuple) else out
        self.layer_out.append(out.reshape(-1, out.shape[-1]))

    def _embedded(self, module, args, out):
        if torch.is_grad_enabled():
            out.requires_grad_(True)
            out.retain_grad()
        self.embedding = out
        return out

    def close(self):
        for hook in self.hooks:
            hook.remove()


def token_nll(logits, ids):
    """NLL of ids[1:], shape [n-1]."""
    return torch.nn.functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")


def save_file(tensors, path):
    """Write a safetensors file that everybody may read; the library makes it private."""
    tensor_files.save_file(tensors, path)
    path.chmod(0o644)


def stack(rows, dtype=np.float32):
    """Tensors of one shape as an array with a leading axis."""
    return np.ascontiguousarray(np.stack([r.detach().numpy() for r in rows]).astype(dtype))


def routing_expectation(model, prompts, target_starts):
    """Everything about one model and its prompts; each prompt is run alone, without padding."""
    for name, p in model.named_parameters():
        is_router = name.endswith(("gate.weight", "router.weight")) and p.ndim == 2 and "shared" not in name
        p.requires_grad_(is_router)
    out = collections.defaultdict(list)
    for ids, start in zip(prompts, target_starts):
        ids = torch.tensor(ids)
        for which in ("prompt", "target"):
            model.zero_grad(set_to_none=True)
            seen = Capture(model)
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
            nll = token_nll(logits, ids)
            loss = nll.mean() if which == "prompt" else nll[start - 1:].mean()
            loss.backward()
            seen.close()
            grads = stack([(r.weight.grad if r.weight.grad is not None else torch.zeros_like(r.weight))
                           for r in seen.routers])
            if which == "target":
                out["nll_target"].append(loss.item())
                out["gate_grad_target"].append(grads)
                continue
            out["nll"].append(loss.item())
            out["gate_grad"].append(grads)
            out["logits"].append(logits.detach().numpy())
            out["router_logits"].append(stack(seen.logits))
            out["topk_ids"].append(stack(seen.ids, np.int64))
            out["topk_weights"].append(stack(seen.weights))
            out["layer_output"].append(stack(seen.layer_out))
            out["router_logit_grad"].append(stack([
                z.grad if z.grad is not None else torch.zeros_like(z) for z in seen.logits]))
            out["embedding_grad"].append(seen.embedding.grad[0].numpy())
    per_token = {k: np.concatenate(out[k], axis=1) for k in
                 ("router_logits", "topk_ids", "topk_weights", "layer_output", "router_logit_grad")}
    return {
        "tokens": np.concatenate([np.array(p, np.int64) for p in prompts]),
        "prompt_offsets": np.cumsum([0] + [len(p) for p in prompts]).astype(np.int64),
        "target_starts": np.array(target_starts, np.int64), "moe_layers": np.array(seen.moe_layers, np.int64),
        "logits": np.concatenate(out["logits"]).astype(np.float32),
        "embedding_grad": np.concatenate(out["embedding_grad"]).astype(np.float32),
        "nll": np.array(out["nll"], np.float32), "nll_target": np.array(out["nll_target"], np.float32),
        "gate_grad": np.stack(out["gate_grad"]), "gate_grad_target": np.stack(out["gate_grad_target"]),
        **per_token}


def greedy(model, prompts, steps):
    """Greedy continuation of each prompt, [P, steps], and the least margin of any choice."""
    rows, margin = [], math.inf
    with torch.no_grad():
        for ids in prompts:
            ids = list(ids)
            for _ in range(steps):
                last = model(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0, -1]
                top = torch.topk(last, 2).values
                margin = min(margin, (top[0] - top[1]).item())
                ids.append(int(last.argmax()))
            rows.append(ids[-steps:])
    return np.array(rows, np.int64), margin


def margin_beyond_k(router_logits, k):
    """Least distance between a kept and a left router logit; router_logits is [..., E]."""
    z = -np.sort(-router_logits, axis=-1)
    return float((z[..., k - 1] - z[..., k]).min())


# Edits of the routing: from a layer's raw logits z [T,E] to what the family's rule does with the edited ones.

def rule(published, z, ids=None):
    """Mixtral, OLMoE and Qwen: softmax over all, top-k (or the given ids), renormalised or not."""
    k = published["num_experts_per_tok"]
    p = torch.softmax(z.float(), dim=-1)
    if ids is None:
        weights, ids = torch.topk(p, k, dim=-1)
    else:
        weights = p.gather(-1, ids)
    if published["model_type"] == "mixtral" or published.get("norm_topk_prob"):
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, ids


def editor(published, edit):
    """The function (layer, logits [T,E], weights [T,K], ids [T,K]) -> the same three, edited."""
    cells = {}
    for layer, expert in edit["cells"]:
        cells.setdefault(layer, []).append(expert)

    def apply(layer, z, weights, ids):
        if layer not in cells:
            return z, weights, ids
        chosen, mode, value = cells[layer], edit["mode"], edit.get("value", 0.0)
        new = z.clone()
        if mode == "mask":
            new[:, chosen] = -math.inf
        elif mode == "bias":
            new[:, chosen] += value
        elif mode == "promote":
            new[:, chosen] = z.max(dim=-1, keepdim=True).values + value
        elif mode == "demote":
            new[:, chosen] = z.min(dim=-1, keepdim=True).values - value
        elif mode == "force":
            forced = torch.tensor(chosen)[None].expand(z.shape[0], -1)
            return (z, *rule(published, z, forced))
        elif mode in ("zero", "zero_renormalize"):
            hit = torch.zeros_like(ids, dtype=torch.bool)
            for expert in chosen:
                hit |= ids == expert
            kept = torch.where(hit, torch.zeros_like(weights), weights)
            if mode == "zero_renormalize":
                left, whole = kept.sum(dim=-1, keepdim=True), weights.sum(dim=-1, keepdim=True)
                kept = torch.where(left > 0, kept * whole / left.clamp(min=1e-30), kept)
            return z, kept, ids
        else:
            sys.exit(f"unknown mode {mode}")
        return (new, *rule(published, new))
    return apply


def intervention_expectation(model, published, prompts, edits):
    """NAME.logits, .nll, .topk_ids, .topk_weights of every edit, and the least margin of any choice."""
    out, margin = {}, math.inf
    with torch.no_grad():
        for edit in edits:
            logits, nll, ids_seen, weights_seen = [], [], [], []
            for ids in prompts:
                ids = torch.tensor(ids)
                seen = Capture(model, editor(published, edit))
                row = model(input_ids=ids[None], use_cache=False).logits[0]
                seen.close()
                logits.append(row.numpy())
                nll.append(token_nll(row, ids).mean().item())
                ids_seen.append(stack(seen.ids, np.int64))
                weights_seen.append(stack(seen.weights))
                for layer, z in zip(seen.moe_layers, seen.logits):
                    if edit["mode"] == "force" and any(layer == forced for forced, _ in edit["cells"]):
                        continue
                    s, k = torch.sort(z, descending=True).values, published["num_experts_per_tok"]
                    gap = s[:, k - 1] - s[:, k]  # 0 between two masked ones
                    margin = min(margin, gap[gap > 0].min().item())
            name = edit["name"]
            out[f"{name}.logits"] = np.concatenate(logits).astype(np.float32)
            out[f"{name}.nll"] = np.array(nll, np.float32)
            out[f"{name}.topk_ids"] = np.concatenate(ids_seen, axis=1)
            out[f"{name}.topk_weights"] = np.concatenate(weights_seen, axis=1)
    return out, margin


def adapted_logits(model, weights, ids):
    """Logits of one prompt with other weights in the place of some."""
    inputs = {"input_ids": ids[None], "use_cache": False}
    return torch.func.functional_call(model, weights, (), inputs).logits[0]


def lora_expectation(model, prompts, target_starts, plan, seed):
    """AdamW on low-rank updates of chosen expert matrices: W + alpha/rank * B A, all else frozen."""
    rng = np.random.default_rng(seed + 1)
    frozen, parts, init = dict(model.named_parameters()), {}, {}
    for p in frozen.values():
        p.requires_grad_(False)
    for layer, expert, proj in plan["cells"]:
        name = f"model.layers.{layer}.mlp.experts." + ("down_proj" if proj == "down" else "gate_up_proj")
        _, n, cols = frozen[name].shape
        rows = {"down": range(n), "gate": range(n // 2), "up": range(n // 2, n)}[proj]
        a = rng.standard_normal((plan["rank"], cols)).astype(np.float32) / math.sqrt(cols)
        b = 0.1 * rng.standard_normal((len(rows), plan["rank"])).astype(np.float32)
        key = f"layers.{layer}.experts.{expert}.{proj}"
        init[key + ".lora_A"], init[key + ".lora_B"] = a.astype(np.float32), b.astype(np.float32)
        where = (torch.full((len(rows),), expert), torch.tensor(rows))
        parts[key] = (name, where, torch.tensor(init[key + ".lora_A"], requires_grad=True),
                      torch.tensor(init[key + ".lora_B"], requires_grad=True))

    def adapted():
        new, scale = {}, plan["alpha"] / plan["rank"]
        for name, where, a, b in parts.values():
            update = torch.zeros_like(frozen[name]).index_put(where, scale * (b @ a))
            new[name] = new.get(name, frozen[name]) + update
        return new

    params = [t for part in parts.values() for t in part[2:]]
    opt = torch.optim.AdamW(params, lr=plan["lr"], betas=(0.9, 0.999), eps=1e-8, weight_decay=plan["weight_decay"])
    losses, norms, first = [], [], None
    per_step = plan["prompts_per_step"]
    for step in range(plan["steps"]):
        chosen = [(step * per_step + i) % len(prompts) for i in range(per_step)]
        opt.zero_grad(set_to_none=True)
        weights, total, count = adapted(), 0.0, 0
        for i in chosen:
            ids = torch.tensor(prompts[i])
            logits = adapted_logits(model, weights, ids)
            nll = token_nll(logits, ids)[target_starts[i] - 1:]
            total, count = total + nll.sum(), count + nll.numel()
        loss = total / count
        loss.backward()
        if first is None:
            first = {k + s: g.grad.numpy().copy() for k, part in parts.items()
                     for s, g in zip((".lora_A", ".lora_B"), part[2:])}
        norms.append(torch.nn.utils.clip_grad_norm_(params, plan["clip_norm"]).item())
        opt.step()
        losses.append(loss.item())
    out = {"losses": np.array(losses, np.float32), "grad_norms": np.array(norms, np.float32)}
    for key, part in parts.items():
        for suffix, value in zip((".lora_A", ".lora_B"), part[2:]):
            out["init." + key + suffix] = init[key + suffix]
            out["grad0." + key + suffix] = first[key + suffix]
            out["final." + key + suffix] = value.detach().numpy()
    with torch.no_grad():
        weights = adapted()
        logits = [adapted_logits(model, weights, torch.tensor(p)).numpy() for p in prompts]
    out["final_logits"] = np.concatenate(logits).astype(np.float32)
    return out


def save_checkpoint(model, case, dtype, folder):
    """Weights by their published names (or transformers 5's fused ones), config.json as the case gives it."""
    published_names = case.get("names", "published") == "published"
    model.to(dtype).save_pretrained(folder, save_original_format=published_names,
                                    max_shard_size=case.get("shard_bytes", "5GB"))
    model.float()
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
    text = dict(case["config"], torch_dtype=str(dtype).split(".")[-1])
    (folder / "config.json").write_text(json.dumps(text, indent=1) + "\n")


def try_seed(case, seed):
    """A random model, its prompts and choices, or None if a choice in them is nearer than MARGIN."""
    published, dtype = case["config"], getattr(torch, case["dtype"])
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, published["vocab_size"], n).tolist() for n in case["lengths"]]
    model = build(published, dtype, seed)
    with torch.no_grad():
        seen = Capture(model)
        for p in prompts:
            model(input_ids=torch.tensor(p)[None], use_cache=False)
        seen.close()
    if min(margin_beyond_k(z.numpy(), published["num_experts_per_tok"]) for z in seen.logits) < MARGIN:
        return None
    tokens, greedy_margin = greedy(model, prompts, case["greedy"])
    if greedy_margin < MARGIN:
        return None
    edited, edited_margin = {}, math.inf
    if "interventions" in case:
        edited, edited_margin = intervention_expectation(model, published, prompts, case["interventions"])
    if edited_margin < MARGIN / 2:
        return None
    return model, prompts, tokens, greedy_margin, edited, edited_margin


def make_case(name, case, out):
    """Write one case of random weights, with the first seed whose choices are all clear."""
    for seed in range(case["seed"], case["seed"] + 400):
        found = try_seed(case, seed)
        if found:
            break
    else:
        sys.exit(f"{name}: no seed without near ties")
    model, prompts, tokens, greedy_margin, edited, edited_margin = found
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    expected = routing_expectation(model, prompts, [max(1, (2 * n) // 3) for n in case["lengths"]])
    expected["greedy_tokens"] = tokens
    save_file(expected, folder / "expected.safetensors")
    if edited:
        save_file(edited, folder / "expected_interventions.safetensors")
        (folder / "interventions.json").write_text(json.dumps(case["interventions"], indent=1) + "\n")
    if "lora" in case:
        starts = [max(1, (2 * n) // 3) for n in case["lengths"]]
        save_file(lora_expectation(model, prompts, starts, case["lora"], seed),
                  folder / "expected_lora.safetensors")
        (folder / "lora.json").write_text(json.dumps(case["lora"], indent=1) + "\n")
    save_checkpoint(model, case, getattr(torch, case["dtype"]), folder)
    write_about(folder, expected, seed=seed, dtype=case["dtype"], lengths=case["lengths"],
                greedy_margin=greedy_margin, intervention_margin=edited_margin if edited else None)


def write_about(folder, expected, **known):
    """about.json: how the case was made and how near its nearest choices are."""
    known["routing_margin"] = margin_beyond_k(expected["router_logits"], expected["topk_ids"].shape[-1])
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    (folder / "about.json").write_text(json.dumps(known | versions, indent=1) + "\n")
    print(f"{folder}: {len(expected['nll'])} prompts, {len(expected['tokens'])} tokens, routing margin "
          f"{known['routing_margin']:.1e}, greedy margin {known['greedy_margin']:.1e}, "
          f"nll {expected['nll'].mean():.3f}")


def read_prompts(path, tokenizer, chat):
    """([ids, ...], [position of the first target token, ...]) of a JSONL file of prompts or messages."""
    prompts, starts = [], []
    for line in path.read_text().splitlines():
        if not line.strip():
            continue
        row = json.loads(line)
        messages = row.get("messages") or (chat and [{"role": "user", "content": row["prompt"]}])
        text = row["prompt"] if not messages else tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=not messages)["input_ids"]
        target = tokenizer(row["target"], add_special_tokens=False)["input_ids"] if row.get("target") else []
        starts.append(len(ids) if target else max(1, (2 * len(ids)) // 3))
        prompts.append(ids + target)
    return prompts, starts


def real_checkpoint(args):
    """Make args.out a case of args.model and the given prompts."""
    if args.tokens:
        given = json.loads(args.tokens.read_text())
        prompts, starts = given["prompts"], given["target_starts"]
    else:
        prompts, starts = read_prompts(args.prompts, AutoTokenizer.from_pretrained(args.model), args.chat)
    prompts, starts = prompts[:args.limit], starts[:args.limit]
    if not prompts or min(map(len, prompts)) < 2 or not all(0 < s < len(p) for p, s in zip(prompts, starts)):
        sys.exit("prompts: expected at least one, each of 2 tokens or more, with its target inside")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager",
                                                 experts_implementation="eager").eval()
    expected = routing_expectation(model, prompts, starts)
    expected["greedy_tokens"], margin = greedy(model, prompts, args.greedy)
    args.out.mkdir(parents=True, exist_ok=True)
    for file in sorted(args.model.iterdir()):
        if file.suffix in (".json", ".safetensors") and not (args.out / file.name).exists():
            (args.out / file.name).symlink_to(file.resolve())
    save_file(expected, args.out / "expected.safetensors")
    write_about(args.out, expected, greedy_margin=margin)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="?", type=pathlib.Path)
    parser.add_argument("--only", nargs="*", help="names in the list of cases")
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--prompts", type=pathlib.Path)
    parser.add_argument("--tokens", type=pathlib.Path)
    parser.add_argument("--chat", action="store_true", help="put each prompt into the chat template")
    parser.add_argument("--limit", type=int, help="use the first N prompts")
    parser.add_argument("--greedy", type=int, default=16, help="tokens to continue each prompt by")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    if bool(args.cases) == bool(args.model) or bool(args.model) != bool(args.prompts or args.tokens):
        parser.error("give a list of cases, or --model with --prompts or --tokens")
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.model:
        return real_checkpoint(args)
    for name, case in json.loads(args.cases.read_text()).items():
        if not args.only or name in args.only:
            make_case(name, case, args.out)


if __name__ == "__main__":
    main()
