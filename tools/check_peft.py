#!/usr/bin/env python3
"""Compare gatetape and PEFT on an adapter: the logits of some tokens, with the adapter and without.

    check_peft.py MODEL ADAPTER [--gatetape build/gatetape] [--bound 1e-5]
    check_peft.py MODEL ADAPTER --train [PARAMETER ...]      first train ADAPTER with PEFT, a few steps on random tokens
    check_peft.py MODEL --merged FOLDER --adapter ADAPTER    a merged checkpoint, loaded by transformers alone

PARAMETER: gate_up_proj, down_proj (both by default), as target_parameters name them. Exit status 1 when the logits
differ by more than the bound, as a share of the largest. Needs torch, transformers 5, peft 0.19.1 or later, safetensors.
"""
import argparse
import subprocess
import sys
import tempfile
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def open_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                experts_implementation="eager")


def train(folder, adapter, parameters, rank=4, steps=5):
    """A PEFT adapter on all experts, after a few steps on random tokens."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[], task_type="CAUSAL_LM",
                             target_parameters=[f"mlp.experts.{p}" for p in parameters])
    model = peft.get_peft_model(open_model(folder), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        ids = torch.randint(0, model.config.vocab_size, (1, 24))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(adapter)


def logits_of(model, tokens):
    with torch.no_grad():
        return model.eval()(input_ids=tokens[None]).logits[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapter", nargs="?")
    parser.add_argument("--adapter", dest="named", metavar="ADAPTER")
    parser.add_argument("--merged")
    parser.add_argument("--gatetape", default="build/gatetape")
    parser.add_argument("--bound", type=float, default=1e-5)
    parser.add_argument("--train", nargs="*", metavar="PARAMETER")
    args = parser.parse_args()
    adapter = args.adapter or args.named
    if not adapter:
        parser.error("expected an adapter")
    if args.train is not None:
        train(args.model, adapter, args.train or ["gate_up_proj", "down_proj"])
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        subprocess.run([args.gatetape, "verify-adapter", adapter, "--model", args.model, "--logits", file.name],
                       check=True, stdout=subprocess.DEVNULL)
        ours = load_file(file.name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if args.merged:
            theirs = logits_of(open_model(args.merged), ours["tokens"])
        else:
            theirs = logits_of(peft.PeftModel.from_pretrained(open_model(args.model), adapter), ours["tokens"])
    largest = theirs.abs().max().item()
    off = (ours["logits"] - theirs).abs().max().item() / largest
    changed = (ours["logits"] - ours["logits_without"]).abs().max().item() / largest
    missing = [str(w.message)[:200] for w in said if "missing" in str(w.message).lower()]
    for line in missing:
        print(f"warning of PEFT: {line}")
    print(f"peft {peft.__version__}, transformers {transformers.__version__}: {args.merged or adapter}: logits differ by "
          f"{off:.1e} (bound {args.bound:.0e}); the adapter changes them by {changed:.1e}")
    sys.exit(0 if off <= args.bound and not missing else 1)


if __name__ == "__main__":
    main()
