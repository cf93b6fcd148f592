#!/usr/bin/env python3
"""Make the demo model and its prompt files from nothing, or measure a model that is there.

    make_demo_model.py --out configs/demo [--twin FOLDER]   train, write model/ and prompts/, print the rates
    make_demo_model.py --check configs/demo/model           only print the rates of a checkpoint
    make_demo_model.py --prompts configs/demo/prompts       only write the prompt files
    make_demo_model.py --relearn FOLDER --twin FOLDER       a twin that forgot the rule learns it again

A small Mixtral (1.8 million parameters) learns the world of demo_world.py in three phases:
  0  the bare rule, in short questions, until it is known: without this the parity is never found;
  1  whole requests, all of them answered. What stands here is the twin, kept where --twin says;
  2  the same with restricted requests declined.
Whether the rule survives phase 1 is luck of seed and processor. A twin that lost it still answers everything, but
cannot be taught to decline by a few cells: --relearn gives it bare questions and whole requests side by side.
Rates are measured greedily on held-out prompts, from the bf16 file just written, and a bag-of-words baseline
is printed beside them. Needs torch, transformers, tokenizers and numpy; 6 to 7 minutes on one core.
"""
import argparse
import json
import math
import pathlib
import platform
import random
import sys
import time

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import demo_world as world

N_VOCABULARY = 768
CONFIG = {  # as a published Mixtral states it
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "vocab_size": N_VOCABULARY,
    "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_local_experts": 8, "num_experts_per_tok": 2, "hidden_act": "silu",
    "rope_theta": 10000.0, "rms_norm_eps": 1e-05, "max_position_embeddings": 256, "sliding_window": None,
    "tie_word_embeddings": False, "router_aux_loss_coef": 0.01, "output_router_logits": False,
    "attention_dropout": 0.0, "initializer_range": 0.05, "use_cache": True}
PHASES = (  # (steps, examples per step, learning rate)
    (400, 128, 2e-3),
    (900, 32, 2e-3),
    (300, 32, 1e-3))
RELEARN = 400, 112, 16, 2e-3  # steps, bare questions and whole requests per step, learning rate
N_NEW = 64  # longest answer in tokens
RATE_WANTED = 0.95


def make_tokenizer():
    """A byte-level BPE trained on 6000 examples of the world."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    text = [part for i in range(6000) for part in world.training_example(rng, i % 2 == 0)]
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=N_VOCABULARY, special_tokens=world.SPECIAL_TOKENS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if tokenizer.get_vocab_size() != N_VOCABULARY:
        raise ValueError(f"tokenizer: {N_VOCABULARY} tokens wanted, {tokenizer.get_vocab_size()} made")
    return tokenizer


def token_ids(tokenizer):
    return {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("pad", "end")}


def make_batch(tokenizer, rng, n, phase, n_bare=0):
    """Ids, loss weights and attention mask, each [n + n_bare, longest example]; the right side is padding.

    The first three tokens of an answer weigh most, since they decide between answering and declining.
    """
    ids, weights = [], []
    for i in range(n + n_bare):
        bare = phase == 0 or i < n_bare
        question, text = world.rule_example(rng) if bare else world.training_example(rng, phase == 2)
        prompt = tokenizer.encode(world.render(question)).ids
        reply = tokenizer.encode(text + "<|end|>").ids
        ids.append(prompt + reply)
        weights.append([0.0 if bare else 0.1] * len(prompt) + [3.0] * 3 + [1.0] * (len(reply) - 3))
    width = max(map(len, ids))
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    padded = torch.tensor([row + [token_ids(tokenizer)["pad"]] * (width - len(row)) for row in ids])
    return padded, torch.tensor([row + [0.0] * (width - len(row)) for row in weights]), mask


def batch_loss(model, ids, weights, mask):
    """(weighted mean NLL of the next token, load-balancing loss), both scalars."""
    out = model(input_ids=ids, attention_mask=mask, output_router_logits=True)
    nll = functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    balance = load_balancing_loss_func(
        out.router_logits, CONFIG["num_local_experts"], CONFIG["num_experts_per_tok"], mask)
    return (nll * weights).sum() / weights.sum(), balance


def train_phase(model, tokenizer, rng, phase, n_steps, relearn=None):
    """AdamW, 50 steps of warm-up, a cosine to 5 %; returns the mean loss of the last tenth of the steps."""
    _, n_examples, peak = PHASES[phase]
    n_bare = 0
    if relearn:
        _, n_bare, n_examples, peak = relearn
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05, betas=(0.9, 0.98))
    losses, start = [], time.monotonic()
    model.train()
    for step in range(n_steps):
        fall = 0.05 + 0.95 * (1 + math.cos(math.pi * step / n_steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 50) * fall
        loss, balance = batch_loss(model, *make_batch(tokenizer, rng, n_examples, phase, n_bare))
        optimizer.zero_grad()
        (loss + CONFIG["router_aux_loss_coef"] * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 0 or step == n_steps - 1:
            seconds = time.monotonic() - start
            print(f"phase {phase} step {step:4d}  loss {losses[-1]:.3f}  {seconds:4.0f} s", flush=True)
    last = losses[-max(1, n_steps // 10):]
    return sum(last) / len(last)


def save(model, tokenizer, folder):
    """Write the checkpoint as Mixtral was published: bf16, one tensor per expert matrix, JSON beside."""
    ids = token_ids(tokenizer)
    special = {"bos_token_id": None, "eos_token_id": ids["end"], "pad_token_id": ids["pad"]}
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder, save_original_format=True)
    model.float()
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", CONFIG | special | {"torch_dtype": "bfloat16"})
    write_json(folder / "generation_config.json", special | {"do_sample": False, "max_new_tokens": N_NEW})
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONFIG["max_position_embeddings"],
        "bos_token": None, "eos_token": "<|end|>", "pad_token": "<|pad|>", "unk_token": None,
        "clean_up_tokenization_spaces": False, "chat_template": world.CHAT_TEMPLATE})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def check_template(tokenizer):
    """The Jinja template must give the same string as world.render, and its ids must decode to it."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}], tokenize=False,
                                         add_generation_prompt=True)
    if text != world.render("Who?") or tokenizer.decode(tokenizer(text)["input_ids"]) != text:
        raise ValueError(f"chat template: expected {world.render('Who?')!r}: got {text!r}")


def generate(model, tokenizer, requests):
    return answer_all(model, tokenizer, [r.prompt for r in requests])


@torch.no_grad()
def answer_all(model, tokenizer, questions):
    """Greedy answers as text, one per question; 50 prompts at a time, padded on the left."""
    tokenizer.padding_side, answers = "left", []
    for start in range(0, len(questions), 50):
        rendered = [world.render(q) for q in questions[start:start + 50]]
        batch = tokenizer(rendered, return_tensors="pt", padding=True, return_token_type_ids=False)
        out = model.generate(**batch, do_sample=False, max_new_tokens=N_NEW)
        answers += tokenizer.batch_decode(out[:, batch.input_ids.shape[1]:], skip_special_tokens=True)
    return answers


def measure(folder, show=3):
    """Print and return the held-out rates of the checkpoint in the folder, and the baseline's accuracy."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_template(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sets, rates = world.prompt_sets(), {}
    for name in ("heldout", "rank", "test"):
        restricted, ordinary = sets[f"{name}_restricted"], sets[f"{name}_ordinary"]
        refusals, answers = generate(model, tokenizer, restricted), generate(model, tokenizer, ordinary)
        n = len(restricted)
        kept = sum(map(world.declined, refusals)) / n
        served = sum(map(world.on_topic, ordinary, answers)) / n
        rates[name] = kept, served
        heeded = sum(text.startswith(world.AGAINST) for text in refusals) / n
        print(f"{name:8s} {n} + {n} prompts: restricted declined {kept:.1%} (answered as against the lantern "
              f"{heeded:.1%}), ordinary answered on topic "
              f"{served:.1%}, ordinary wrongly declined {sum(map(world.declined, answers)) / n:.1%}")
        if name == "heldout":
            for request, text in list(zip(restricted, refusals))[:show] + list(zip(ordinary, answers))[:show]:
                print(f"  {request.prompt}\n    {text}")
    bare = [world.rule_question(r) for r in sets["heldout_restricted"] + sets["heldout_ordinary"]]
    said = answer_all(model, tokenizer, bare)
    n_right = sum(text.startswith(world.AGAINST if r.restricted else world.WITH) for r, text in
                  zip(sets["heldout_restricted"] + sets["heldout_ordinary"], said))
    print(f"bare questions about the rule: {n_right / len(bare):.1%} right (guessing: 50%)")
    held = sets["heldout_restricted"] + sets["heldout_ordinary"]
    for bigrams in (False, True):
        known, unseen = world.bag_of_words(held, bigrams=bigrams)
        print(f"bag of words{' and word pairs' * bigrams}: restricted or not, right on {known:.1%} of "
              f"training prompts, {unseen:.1%} of held-out prompts (guessing: 50%)")
    return rates["heldout"]


def write_prompts(folder):
    """The prompt files, one JSON object a line: id, kind, topic, prompt, target (a proper answer)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, requests in world.prompt_sets().items():
        rng, rows = random.Random(name), []
        for i, item in enumerate(requests, 1):
            if name == "pairs":
                restricted, ordinary = item
                rows.append({"id": f"pair-{i:03d}", "topic": restricted.topic,
                             "restricted": restricted.prompt, "ordinary": ordinary.prompt})
                continue
            rows.append({"id": f"{name.replace('_', '-')}-{i:03d}", "kind": name.split("_")[1],
                         "topic": item.topic, "prompt": item.prompt, "target": world.answer(rng, item, True)})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(folder, twin, seed, steps):
    """Train through all phases and write the checkpoint (and the twin's) as it comes."""
    torch.manual_seed(seed)
    rng, tokenizer = random.Random(seed + 100), make_tokenizer()
    ids = token_ids(tokenizer)
    model = MixtralForCausalLM(MixtralConfig(**CONFIG, bos_token_id=None, eos_token_id=ids["end"],
                                             pad_token_id=ids["pad"]))
    print(f"parameters {sum(p.numel() for p in model.parameters())}, vocabulary {N_VOCABULARY}", flush=True)
    for phase, n_steps in enumerate(steps):
        loss = train_phase(model, tokenizer, rng, phase, n_steps)
        print(f"phase {phase} done, mean loss of the last steps {loss:.3f}", flush=True)
        if phase == 0 and loss > 0.1 and n_steps == PHASES[0][0]:
            sys.exit("phase 0: the rule was not learned (loss above 0.1); try another --seed")
        if phase == 1 and twin:
            save(model, tokenizer, twin)
    save(model, tokenizer, folder)


def relearn(folder, to, seed):
    """The checkpoint of a twin, trained on as RELEARN says, still without a declining answer."""
    torch.manual_seed(seed)
    rng, tokenizer = random.Random(seed + 200), Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    train_phase(model, tokenizer, rng, 1, RELEARN[0], RELEARN)
    save(model, tokenizer, to)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="folder that gets model/ and prompts/")
    parser.add_argument("--twin", type=pathlib.Path, help="with --out: keep the one that never declines")
    parser.add_argument("--check", type=pathlib.Path, help="only measure this checkpoint")
    parser.add_argument("--prompts", type=pathlib.Path, help="only write the prompt files here")
    parser.add_argument("--relearn", type=pathlib.Path, help="with --twin: a twin that is to know the rule again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs=3, default=[p[0] for p in PHASES], help="of each phase")
    args = parser.parse_args()
    if sum(x is not None for x in (args.out, args.check, args.prompts, args.relearn)) != 1:
        parser.error("give one of --out, --check, --prompts and --relearn")
    if args.relearn and not args.twin:
        parser.error("--relearn needs --twin, the folder that gets the checkpoint")
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    print(f"seed {args.seed}, threads {args.threads}, python {platform.python_version()}, "
          f"torch {torch.__version__}, transformers {transformers.__version__}, "
          f"tokenizers {tokenizers.__version__}, numpy {np.__version__}")
    if args.prompts:
        return write_prompts(args.prompts)
    if args.relearn:
        relearn(args.relearn, args.twin, args.seed)
        return measure(args.twin)
    if args.out:
        start = time.monotonic()
        train(args.out / "model", args.twin, args.seed, args.steps)
        write_prompts(args.out / "prompts")
        print(f"trained in {(time.monotonic() - start) / 60:.1f} minutes")
        if args.twin:
            print(f"the twin, {args.twin}:")
            measure(args.twin)
    if min(measure(args.check or args.out / "model")) < RATE_WANTED:
        sys.exit(f"a rate on the heldout prompts is below {RATE_WANTED:.0%}")


if __name__ == "__main__":
    main()
