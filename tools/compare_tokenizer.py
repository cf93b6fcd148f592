#!/usr/bin/env python3
"""Compares `gatetape tokenize` with the Hugging Face tokenizers library on random strings.

Strings are made of code points assigned in Unicode 14 (the tables of PCRE2 10.42), without NUL: plain words, hostile
mixtures of spaces, marks, digits and emoji, contractions, pieces of the tokenizer's own added tokens. Both directions
are compared: ids of the text, and the text of the ids. Prints each difference and a count; exit status 1 if any.

    compare_tokenizer.py PROGRAM FOLDER [--strings 100000] [--seed 1]

Needs Python with the `tokenizers` package.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import unicodedata

# Blocks and characters that came after Unicode 14; Python's own table may be older or newer.
AFTER_14 = [(0x1AC1, 0x1AFF), (0x0CF3, 0x0CF3), (0x0ECE, 0x0ECE), (0x10EC0, 0x10EFF), (0x1123F, 0x11241),
            (0x11B00, 0x11B09), (0x11F00, 0x11F59), (0x1342F, 0x13455), (0x1B132, 0x1B132), (0x1B155, 0x1B155),
            (0x1D2C0, 0x1D2D3), (0x1DF25, 0x1DF2A), (0x1E030, 0x1E08F), (0x1E4D0, 0x1E4F9), (0x1F6DC, 0x1F6DC),
            (0x1F774, 0x1F776), (0x1F77B, 0x1F77F), (0x1F7D9, 0x1F7D9), (0x1FA75, 0x1FA77), (0x1FA87, 0x1FA89),
            (0x1FAAD, 0x1FAAF), (0x1FABB, 0x1FABF), (0x1FACE, 0x1FACF), (0x1FADA, 0x1FADF), (0x1FAE8, 0x1FAEF),
            (0x1FAF7, 0x1FAF8), (0x2B739, 0x2B739), (0x2EBF0, 0x2EE5D), (0x31350, 0x323AF), (0x2FFC, 0x2FFF),
            (0x31EF, 0x31EF)]


def assigned():
    """Every assigned code point, surrogates, private use and NUL left out."""
    late = set()
    for first, last in AFTER_14:
        late.update(range(first, last + 1))
    return [c for c in range(1, 0x110000)
            if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co") and c not in late]


class Strings:
    def __init__(self, seed, added):
        self.random = random.Random(seed)
        self.all = assigned()
        by_kind = {}
        for c in self.all:
            by_kind.setdefault(unicodedata.category(chr(c)), []).append(c)
        self.kinds = list(by_kind.values())
        self.spaces = " \t\n\r\v\f\u0085\u00a0\u1680\u180e\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u3000\u2581\ufeff"
        self.pieces = ["'s", "'T", "'re", "'VE", "'m", "'ll", "'d", "'\u017f", "don't", "the ", " of", "\r\n", "\n\n", "  ",
                       "12345", "3.14", "\u00e9", "e\u0301", "\u0344", "\u1112\u1161\u11ab", "\ud55c", "\uac00\u11a8", "\u212b",
                       "\U0001f469\u200d\U0001f467", "\u0915\u094d\u0937", "</", "<|", "|>", "<0x41>", "\u2581", "\u0130",
                       "\u4f60\u597d", "\u30ab\u3099", "_", "...", "!?", "://", "\ufb01", "\u1e9b\u0323"] + added

    def part(self):
        kind = self.random.random()
        if kind < 0.25:
            return "".join(self.random.choice("abcdefghijklmnopqrstuvwxyzABCDE") for _ in range(self.random.randint(1, 9)))
        if kind < 0.45:
            return "".join(self.random.choice(self.spaces) for _ in range(self.random.randint(1, 4)))
        if kind < 0.65:
            return self.random.choice(self.pieces)
        if kind < 0.75:
            return "".join(chr(self.random.randint(32, 126)) for _ in range(self.random.randint(1, 5)))
        if kind < 0.9:
            pool = self.random.choice(self.kinds)
            return "".join(chr(self.random.choice(pool)) for _ in range(self.random.randint(1, 4)))
        return "".join(chr(self.random.choice(self.all)) for _ in range(self.random.randint(1, 4)))

    def next(self):
        return "".join(self.part() for _ in range(self.random.randint(1, 12)))


def run(program, folder, lines, *options):
    done = subprocess.run([program, "tokenize", folder, *options], input="\n".join(lines) + "\n", text=True,
                          stdout=subprocess.PIPE, encoding="utf-8", errors="surrogatepass")
    if done.returncode:
        sys.exit(f"{program}: exit status {done.returncode}")
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder")
    parser.add_argument("--strings", type=int, default=100000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    from tokenizers import Tokenizer
    reference = Tokenizer.from_file(os.path.join(options.folder, "tokenizer.json"))
    added = [token.content for token in list(reference.get_added_tokens_decoder().values())[:40]]
    strings = Strings(options.seed, added)
    texts = [strings.next() for _ in range(options.strings)]
    ids = run(options.program, options.folder, [json.dumps(text) for text in texts])
    expected = [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=False)]
    decoded = run(options.program, options.folder, [json.dumps(line) for line in expected], "--decode")
    n_different = 0
    for text, got, wanted, back in zip(texts, ids, expected, decoded):
        back_wanted = reference.decode(wanted, skip_special_tokens=False)
        if got == wanted and back == back_wanted:
            continue
        n_different += 1
        if n_different <= 20:
            print(f"{json.dumps(text)}\n  expected {wanted}\n  got      {got}")
            if back != back_wanted:
                print(f"  decoded: expected {json.dumps(back_wanted)}\n           got      {json.dumps(back)}")
    if len(ids) != len(texts) or len(decoded) != len(texts):
        sys.exit(f"{options.folder}: expected {len(texts)} lines: got {len(ids)} and {len(decoded)}")
    n_tokens = sum(map(len, expected))
    print(f"{options.folder}: {n_different} differences in {len(texts)} strings ({n_tokens} tokens)")
    return 1 if n_different else 0


if __name__ == "__main__":
    sys.exit(main())
