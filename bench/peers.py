#!/usr/bin/env python3
"""The peers' side of the model bench: the same checkpoint, prompts and thread count in Hugging Face transformers on
torch, and in llama.cpp, then one table.

    peers.py CHECKPOINT OWN_ROWS.csv OUT.csv [--only BEGIN] [--prompts N]

OWN_ROWS.csv is what `gatetape bench model` printed (no header). A row of ours is repeated once per peer with peer,
peer_rate and ratio (ours / theirs); rows that no installed peer can do stay as they are. Peers that are not installed are left
out, and said so on stderr. transformers runs its eager experts and its grouped-mm experts, the faster one counts.
--only: rows whose case begins so; --prompts: as given to `gatetape bench model` (16), for a quick try.

lora_forward and lora_step are transformers with PEFT. PEFT can only update all experts of a parameter, so it gets the
layers that have one of our cells, whole, as its peer name says; at our rank, though gate and up share it there.
"""
import argparse
import csv
import os
import statistics
import sys
import tempfile
import time

HEADER = "case,backend,threads,dtype,seconds_median,rate,unit,ceiling,share,peer,peer_rate,ratio".split(",")
N_PROMPTS, PROMPT_TOKENS, VOCABULARY, DECODE_TOKENS, RUNS = 16, 128, 8192, 24, 3
LORA_RANK, LORA_SCALE, CELLS_OF_ALL = 16, 2, 20  # of bench_model.c


def prompts(n):
    """n prompts of PROMPT_TOKENS ids, those of `gatetape bench model`."""
    flat = [(i * 7919 + 13) % VOCABULARY for i in range(n * PROMPT_TOKENS)]
    return [flat[i * PROMPT_TOKENS:(i + 1) * PROMPT_TOKENS] for i in range(n)]


def median_seconds(run, runs=RUNS):
    """Median of several timed calls after one that is not counted."""
    run()
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def gate_gradient(torch, model, ids, checkpointing):
    """Forward, and backward to the router's weights alone."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    gates = [layer.mlp.gate.weight.requires_grad_(True) for layer in model.model.layers]
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    torch.autograd.grad(model(input_ids=ids, labels=ids, use_cache=False).loss, gates)
    if checkpointing:
        model.gradient_checkpointing_disable()
        model.eval()


def lora_layers(config):
    """Layers in which `gatetape bench model` updates a cell: every CELLS_OF_ALL-th of the model's."""
    experts = getattr(config, "num_local_experts", None) or config.num_experts
    cells = range(CELLS_OF_ALL // 2, config.num_hidden_layers * experts, CELLS_OF_ALL)
    return sorted({cell // experts for cell in cells})


class Transformers:
    """Hugging Face transformers on torch CPU; every case returns tokens per second."""

    def __init__(self, folder, dtype, threads):
        import torch
        import transformers
        self.torch = torch
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        kind = torch.float32 if dtype == "f32" else torch.bfloat16
        self.models = {}
        for experts in ("eager", "grouped_mm"):
            try:
                self.models[experts] = transformers.AutoModelForCausalLM.from_pretrained(
                    folder, dtype=kind, experts_implementation=experts).eval()
            except (ValueError, RuntimeError, TypeError) as problem:
                print(f"transformers {experts}: {problem}", file=sys.stderr)
        self.name = f"transformers {transformers.__version__} torch {torch.__version__.split('+')[0]}"

    def best(self, run):
        """The faster implementation's rate for run(model) -> number of tokens."""
        rates = []
        for experts, model in self.models.items():
            try:
                tokens = run(model)
                rates.append(tokens / median_seconds(lambda m=model: run(m)))
            except (RuntimeError, NotImplementedError) as problem:
                print(f"transformers {experts}: {problem}", file=sys.stderr)
        return max(rates) if rates else None

    def forward(self):
        ids = self.torch.tensor(prompts(N_PROMPTS))

        def run(model):
            with self.torch.inference_mode():
                self.loss(model, ids)
            return ids.numel()
        return self.best(run)

    def loss(self, model, ids):
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    def gradient(self, checkpointing):
        ids = self.torch.tensor(prompts(N_PROMPTS))

        def run(model):
            gate_gradient(self.torch, model, ids, checkpointing)
            return ids.numel()
        return self.best(run)

    def lora(self, training):
        """A forward with PEFT's updates; or a step: forward, backward, AdamW on them, activations kept."""
        try:
            import peft
        except ImportError as problem:
            print(f"left out: {problem}", file=sys.stderr)
            return None
        ids = self.torch.tensor(prompts(N_PROMPTS))
        rates = []
        for experts, model in self.models.items():
            names = [f"layers.{layer}.mlp.experts.{parameter}" for layer in lora_layers(model.config)
                     for parameter in ("gate_up_proj", "down_proj")]
            adapted = peft.get_peft_model(model, peft.LoraConfig(
                r=LORA_RANK, lora_alpha=LORA_SCALE * LORA_RANK, target_modules=[], target_parameters=names)).eval()
            weights = [p for p in adapted.parameters() if p.requires_grad]
            optimizer = self.torch.optim.AdamW(weights, lr=1e-4)

            def run():
                if not training:
                    with self.torch.no_grad():
                        self.loss(adapted, ids)
                    return
                optimizer.zero_grad()
                self.loss(adapted, ids).backward()
                optimizer.step()
            try:
                rates.append(ids.numel() / median_seconds(run))
            except (RuntimeError, NotImplementedError) as problem:
                print(f"transformers {experts} with PEFT: {problem}", file=sys.stderr)
            self.models[experts] = adapted.unload()
        return max(rates) if rates else None

    def name_of(self, case):
        if not case.startswith("lora_"):
            return self.name
        import peft
        config = next(iter(self.models.values())).config
        return (f"{self.name} peft {peft.__version__} (all experts of {len(lora_layers(config))} of "
                f"{config.num_hidden_layers} layers)")

    def decode(self, n):
        ids = self.torch.tensor(prompts(n))

        def steps(model, new):
            with self.torch.inference_mode():
                model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
        rates = []
        for model in self.models.values():
            short = median_seconds(lambda m=model: steps(m, 1), 3)
            long = median_seconds(lambda m=model: steps(m, 1 + DECODE_TOKENS), 3)
            rates.append(n * DECODE_TOKENS / (long - short))
        return max(rates) if rates else None

    def rate(self, case):
        return {"forward": self.forward,
                "forward_gate_gradient_kept": lambda: self.gradient(False),
                "forward_gate_gradient": lambda: self.gradient(True),
                "lora_forward": lambda: self.lora(False),
                "lora_step": lambda: self.lora(True),
                "decode_batch_1": lambda: self.decode(1),
                "decode_batch_16": lambda: self.decode(16)}.get(case, lambda: None)()


def write_gguf(folder, path, dtype):
    """The checkpoint as llama.cpp wants it: experts stacked, q and k rows permuted to interleaved rotation."""
    import gguf
    import json
    import torch
    from safetensors import safe_open
    config = json.load(open(os.path.join(folder, "config.json"), encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    file = safe_open(os.path.join(folder, "model.safetensors"), "pt")
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_freq_base(config["rope_theta"])
    out.add_rope_dimension_count(config["hidden_size"] // heads)
    out.add_expert_count(config["num_local_experts"])
    out.add_expert_used_count(config["num_experts_per_tok"])
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model("llama")
    out.add_token_list([f"t{i}" for i in range(config["vocab_size"])])
    out.add_token_scores([0.0] * config["vocab_size"])
    out.add_token_types([1] * config["vocab_size"])
    kind = gguf.GGMLQuantizationType.F32 if dtype == "f32" else gguf.GGMLQuantizationType.BF16

    def add(name, tensor, matrix=True):
        if not matrix or dtype == "f32":
            out.add_tensor(name, tensor.float().numpy())
        else:
            out.add_tensor(name, tensor.contiguous().view(torch.uint8).numpy(), raw_dtype=kind)

    def permuted(tensor, n):
        return tensor.reshape(n, 2, tensor.shape[0] // n // 2, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
    add("token_embd.weight", file.get_tensor("model.embed_tokens.weight"))
    add("output_norm.weight", file.get_tensor("model.norm.weight"), False)
    add("output.weight", file.get_tensor("lm_head.weight"))
    for layer in range(config["num_hidden_layers"]):
        old, new = f"model.layers.{layer}.", f"blk.{layer}."
        add(new + "attn_norm.weight", file.get_tensor(old + "input_layernorm.weight"), False)
        add(new + "ffn_norm.weight", file.get_tensor(old + "post_attention_layernorm.weight"), False)
        add(new + "attn_q.weight", permuted(file.get_tensor(old + "self_attn.q_proj.weight"), heads))
        add(new + "attn_k.weight", permuted(file.get_tensor(old + "self_attn.k_proj.weight"), kv_heads))
        add(new + "attn_v.weight", file.get_tensor(old + "self_attn.v_proj.weight"))
        add(new + "attn_output.weight", file.get_tensor(old + "self_attn.o_proj.weight"))
        add(new + "ffn_gate_inp.weight", file.get_tensor(old + "block_sparse_moe.gate.weight").float(), False)
        for part, source in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            add(new + f"ffn_{part}_exps.weight", torch.stack([
                file.get_tensor(f"{old}block_sparse_moe.experts.{e}.{source}.weight")
                for e in range(config["num_local_experts"])]))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


class LlamaCpp:
    """llama.cpp through llama-cpp-python's low-level interface; prompt evaluation and decoding."""

    def __init__(self, folder, dtype, threads):
        import llama_cpp
        self.api = llama_cpp
        self.name = f"llama-cpp-python {llama_cpp.__version__}"
        path = os.path.join(tempfile.gettempdir(), f"bench_{dtype}.gguf")
        write_gguf(folder, path, dtype)
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = N_PROMPTS * (PROMPT_TOKENS + DECODE_TOKENS + 8)
        params.n_batch = params.n_ubatch = N_PROMPTS * PROMPT_TOKENS
        params.n_seq_max = N_PROMPTS
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        os.remove(path)

    def name_of(self, _case):
        return self.name

    def decode_batch(self, rows):
        """rows: (token, position, sequence); logits for the last row of each sequence only."""
        batch = self.api.llama_batch_init(len(rows), 0, 1)
        last = {sequence: i for i, (_, _, sequence) in enumerate(rows)}
        batch.n_tokens = len(rows)
        for i, (token, position, sequence) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = last[sequence] == i
        status = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}")

    def clear(self):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def prefill(self, n):
        self.clear()
        self.decode_batch([(t, i, s) for s, p in enumerate(prompts(n)) for i, t in enumerate(p)])

    def rate(self, case):
        if case == "forward":
            return N_PROMPTS * PROMPT_TOKENS / median_seconds(lambda: self.prefill(N_PROMPTS))
        if case.startswith("decode_batch_"):
            n = int(case.rsplit("_", 1)[1])
            if n > N_PROMPTS:  # more sequences than the context holds
                return None
            seconds = []
            for _ in range(RUNS):
                self.prefill(n)
                begin = time.perf_counter()
                for step in range(DECODE_TOKENS):
                    self.decode_batch([(step * 31 + s, PROMPT_TOKENS + step, s) for s in range(n)])
                seconds.append((time.perf_counter() - begin) / DECODE_TOKENS)
            return n / statistics.median(seconds)
        return None


def main():
    global N_PROMPTS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "own_rows", "out"):
        parser.add_argument(name)
    parser.add_argument("--only", default="")
    parser.add_argument("--prompts", type=int, default=N_PROMPTS)
    args = parser.parse_args()
    folder, out_path, N_PROMPTS = args.checkpoint, args.out, args.prompts
    with open(args.own_rows, encoding="utf-8") as file:
        own = [dict(zip(HEADER, row)) for row in csv.reader(file)]
    own = [row for row in own if row["case"].startswith(args.only)]
    if not own:
        sys.exit(f"{args.own_rows}: expected rows whose case begins with {args.only!r}: got none")
    threads, dtype = int(own[0]["threads"]), own[0]["dtype"]
    rows = []
    peers = []
    for peer in (Transformers,) if args.only.startswith("lora") else (Transformers, LlamaCpp):
        try:
            peers.append(peer(folder, dtype, threads))
        except ImportError as problem:
            print(f"left out: {problem}", file=sys.stderr)
    for row in own:
        beside = []
        for peer in peers:
            rate = peer.rate(row["case"])
            if rate:
                beside.append(row | {"peer": peer.name_of(row["case"]), "peer_rate": f"{rate:.4g}",
                                     "ratio": f"{float(row['rate']) / rate:.3f}"})
        rows += beside or [row]
    with open(out_path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HEADER, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
