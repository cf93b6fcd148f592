#!/usr/bin/env python3
"""Makes the small tokenizers of tests/data/tokenizers and their vectors, with the Hugging Face tokenizers library.

byte_level is of the Qwen kind: NFC, a regex split, ByteLevel, added tokens. byte_fallback is of the Llama kind:
Prepend and Replace, no pre-tokenizer, byte fallback, a template with BOS. Both are trained on the sentences below and
their rearrangements, so the result depends on nothing but this file and the library's version, which the vectors name.

    make_tokenizer_vectors.py [FOLDER]          (default: tests/data/tokenizers beside this file's folder)

Format of the vectors: sections begin with "## NAME"; a vector is TEXT TAB IDS TAB DECODED, TEXT and DECODED JSON
strings in ASCII, DECODED "=" where it is TEXT again. Encoded with special tokens; decoded without those marked special.
"""
import json
import os
import random
import sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = """The lighthouse keeper counts the ships each evening and writes their names in a green book.
A gardener plants beans in May, waters them in June and shares the harvest with the whole street.
Where does the river begin? It begins under the old bridge, says the miller, and nobody has proved him wrong.
In 1887 the town bought a clock; in 1923 it bought another, because the first one kept the time of the moon.
Please don't feed the ducks before 9:30. They're on a schedule, and they'll tell the mayor.
def bake(flour, water):\n    bread = mix(flour, water)\n    return bread if bread.rises() else None
Le caf\u00e9 du village ouvre \u00e0 sept heures; l'\u00e9t\u00e9, il ouvre \u00e0 six heures.
Die Glocke l\u00e4utet, die T\u00fcr \u00f6ffnet sich, und der B\u00e4cker w\u00fcnscht einen sch\u00f6nen Tag.
\u0421\u0435\u0433\u043e\u0434\u043d\u044f \u0445\u043e\u0440\u043e\u0448\u0430\u044f \u043f\u043e\u0433\u043e\u0434\u0430.
\u4eca\u65e5\u306f\u826f\u3044\u5929\u6c17\u3067\u3059\u3002\u7b2c\u4e00\u7ae0\u4ece\u524d\u6709\u4e00\u5ea7\u5c71\u3002""".split("\n")

TEXTS = ["", " ", "\n", "Hello world", " Hello", "  Hello", "Hello  world\n", "a\tb", "don't they'LL we'RE '\u017f",
         "1234567 3.14", "caf\u00e9 cafe\u0301 \u212b", "\u1112\u1161\u11ab \ud55c", "\u4f60\u597d\uff0c\u4e16\u754c \u4eca\u65e5",
         "\U0001f917\U0001f469\u200d\U0001f467", "x\u00a0y\u2028z\u0085w\u180ev", "\u0000\u0001\u007f", "\u2581a \u2581", "foo   \n\n  bar  ",
         "<|user|>\n hi<|end|>\n<|assistant|>\n", "a<|user|>  \n  b", "x <tag>y<tag>", "x<tag> y", " \n<|left|> b", "<|user|><|userx|>",
         "word words sword s.word! word_", "<0x41><0xE4>", "</s><s> <s>", "\ufeffBOM", "\ufb01 \uff21\uff22",
         "\u0928\u092e\u0938\u094d\u0924\u0947", "    return bread\r\n\r\nx", "the lighthouse keeper plants beans" * 3, "=" * 40,
         "a\u0302\u0323\u0301 \U00010f4b\U00010f46"]

QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+")


def training_text():
    generator = random.Random(1)
    words = [word for sentence in SENTENCES for word in sentence.split(" ")]
    yield from SENTENCES * 4
    for _ in range(400):
        yield " ".join(generator.choice(words) for _ in range(12))


def added(content, **flags):
    flags.setdefault("normalized", False)
    return AddedToken(content, **flags)


def make_byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=640, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), special_tokens=["<|end|>"], show_progress=False))
    tokenizer.add_special_tokens([added("<|user|>"), added("<|assistant|>"), added("<|userx|>")])
    tokenizer.add_tokens([added("<tag>", normalized=True), added("word", single_word=True)])
    return tokenizer, {"add_bos_token": False, "bos_token": None, "eos_token": "<|end|>", "tokenizer_class": "Qwen2Tokenizer"}


def make_byte_fallback():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    # Trained word by word, as sentencepiece does: the library would else learn whole sentences.
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.train_from_iterator(training_text(), trainers.BpeTrainer(
        vocab_size=700, special_tokens=specials, limit_alphabet=90, show_progress=False))
    document = json.loads(tokenizer.to_str())
    document["pre_tokenizer"] = None
    document["added_tokens"] = document["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.add_special_tokens([added("<|user|>", rstrip=True), added("<|left|>", lstrip=True), added("<|userx|>"),
                                  added("<|end|>", rstrip=True), added("<|assistant|>", rstrip=True)])
    # None that the normalizer changes: how such a token is decoded differs between versions of the library.
    tokenizer.add_tokens([added("word", single_word=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer, {"add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "legacy": True,
                       "eos_token": {"__type": "AddedToken", "content": "</s>"}, "tokenizer_class": "LlamaTokenizer"}


def write_vectors(tokenizer, name, path):
    strings = random.Random(2)
    pool = "".join(TEXTS) + "".join(SENTENCES)
    texts = TEXTS + ["".join(strings.choice(pool) for _ in range(strings.randint(5, 60))) for _ in range(100)]
    with open(path, "w", encoding="ascii") as out:
        out.write(f"# Vectors of {name}, made by tools/make_tokenizer_vectors.py with tokenizers {tokenizers.__version__}.\n")
        out.write(f"\n## {name}  (ids)\n")
        for text in texts:
            ids = tokenizer.encode(text).ids
            decoded = tokenizer.decode(ids, skip_special_tokens=True)
            out.write(f"{json.dumps(text)}\t{json.dumps(ids, separators=(',', ':'))}\t")
            out.write("=\n" if decoded == text else json.dumps(decoded) + "\n")


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "..", "tests", "data", "tokenizers")
    for name, make in (("byte_level", make_byte_level), ("byte_fallback", make_byte_fallback)):
        tokenizer, config = make()
        os.makedirs(os.path.join(folder, name), exist_ok=True)
        tokenizer.save(os.path.join(folder, name, "tokenizer.json"))
        with open(os.path.join(folder, name, "tokenizer_config.json"), "w", encoding="ascii") as out:
            json.dump(config, out, indent=1)
            out.write("\n")
        write_vectors(tokenizer, name, os.path.join(folder, name + ".txt"))
        print(f"{name}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
