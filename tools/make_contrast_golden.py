#!/usr/bin/env python3
"""Golden files of contrasts: router distributions of invented pairs, and every number of contrast.json by NumPy.

    python make_contrast_golden.py tests/data/contrast

An implementation of its own: it shares with the C code the definitions (gatetape definitions) and the draws of
Philox4x32-10, as make_statistics_golden.py has them. A file holds what the program measures on a model, so that no
model is needed: f32 softmax probabilities and chosen experts of every token, tokens of both texts of each pair with
those that are not counted, norms of gradients. Made with NumPy 2.4.6 and SciPy 1.17.1."""
import json
import sys
from pathlib import Path

import numpy as np
from make_statistics_golden import bootstrap_indices, uniform
from scipy.spatial.distance import jensenshannon

CONTROL = 7
CURVES = ("js", "overlap", "jaccard")
LAYERS, DECODER_LAYERS, EXPERTS, CHOSEN = (0, 2, 3), 4, 6, 2  # layer 1 is dense
SHAPE = {"hidden_size": 8, "expert_size": 16, "vocab_size": 50, "n_heads": 2, "n_kv_heads": 1, "head_size": 4,
         "dense_size": 12}


# ---- what is measured ----
def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)).astype(np.float32)


def make_text(rng, mean, n):
    """A text of n tokens: probabilities [L,n,E] f32, chosen [L,n,K], counted [n]."""
    probs = softmax(mean[:, None] + rng.normal(size=(len(LAYERS), n, EXPERTS)) * 1.3)
    counted = rng.random(n) > 0.15
    counted[0] = True
    return {"probs": probs, "ids": np.argsort(-probs, axis=-1, kind="stable")[..., :CHOSEN], "counted": counted}


def make_pairs(rng, n, topics):
    means = {t: rng.normal(size=(len(LAYERS), EXPERTS)) for t in topics}
    pairs = []
    for i in range(n):
        topic = topics[i % len(topics)]
        mean, shift = means[topic], rng.normal(size=(len(LAYERS), EXPERTS)) * 0.4
        pairs.append({"topic": topic, "key": 1000 + 7 * i,
                      "texts": [make_text(rng, mean, int(rng.integers(3, 8))),
                                make_text(rng, mean + shift, int(rng.integers(3, 8)))],
                      "l2": rng.gamma(1, size=(len(LAYERS), EXPERTS)).astype(np.float32)})
    return pairs


# ---- statistics ----
def compare(p, q, k):
    """JS in nats, overlap@k and weighted Jaccard of two distributions."""
    p, q = np.asarray(p, float), np.asarray(q, float)
    top = [set(np.argsort(-x, kind="stable")[:k].tolist()) for x in (p, q)]
    js = jensenshannon(p / p.sum(), q / q.sum()) ** 2  # SciPy gives the square root
    return np.array([0.0 if np.isnan(js) else js, len(top[0] & top[1]), np.minimum(p, q).sum() / np.maximum(p, q).sum()])


class Study:
    def __init__(self, pairs, options, seed):
        self.pairs, self.o, self.seed = pairs, options, seed
        self.k = options["overlap_k"] or CHOSEN
        self.by_token = options["contrast"] == "continuations"
        self.means = np.array([[t["probs"][:, t["counted"]].astype(float).mean(1) for t in p["texts"]] for p in pairs])
        self.indices = bootstrap_indices(seed, 0, options["bootstraps"], len(pairs))  # [B,P]

    def measure(self, pair, means):
        """curves [L,3] and mean |p - q| [L,E] of one pair."""
        if not self.by_token:
            return (np.array([compare(means[0, l], means[1, l], self.k) for l in range(len(LAYERS))]),
                    np.abs(means[0] - means[1]))
        a, b = pair["texts"]
        places = [j for j in range(min(len(a["counted"]), len(b["counted"]))) if a["counted"][j] and b["counted"][j]]
        curves = [[compare(a["probs"][l, j], b["probs"][l, j], self.k) for j in places] for l in range(len(LAYERS))]
        differences = np.abs(a["probs"].astype(float)[:, places] - b["probs"].astype(float)[:, places])
        return np.array(curves).mean(1), differences.mean(1)

    def partners(self, i):
        others = [j for j, p in enumerate(self.pairs) if p["topic"] != self.pairs[i]["topic"]]
        drawn = []
        for d in range(min(self.o["controls"], len(others))):
            j = d + int(uniform(self.seed, CONTROL, self.pairs[i]["key"], d) * (len(others) - d))
            others[d], others[j] = others[j], others[d]
            drawn.append(others[d])
        return drawn

    def control(self, i):
        own = self.means[i, 1 if self.o["contrast"] == "prefix" else 0]
        return np.mean([[compare(own[l], self.means[j, 1, l], self.k) for l in range(len(LAYERS))]
                        for j in self.partners(i)], axis=0)

    def interval(self, samples):
        tail = (1 - self.o["confidence"]) / 2
        return np.quantile(samples, [tail, 1 - tail], axis=0)

    def put(self, table):
        """Members of a part: mean and interval of [P,3]."""
        low, high = self.interval(table[self.indices].mean(1))
        row = {}
        for v, name in enumerate(CURVES):
            row |= {name: table[:, v].mean(), f"{name}_low": low[v], f"{name}_high": high[v]}
        return row

    def score(self, kind, value):
        if kind != "rate":
            return value
        return {"both": np.abs(value), "first": np.maximum(value, 0), "second": np.maximum(-value, 0)}[self.o["rate_side"]]

    def rates(self, pair):
        rate = []
        for text in pair["texts"]:
            chosen = text["ids"][:, text["counted"]]
            rate.append([[(chosen[l] == e).sum() / text["counted"].sum() for e in range(EXPERTS)]
                         for l in range(len(LAYERS))])
        return np.array(rate[0]) - np.array(rate[1])

    def ranking(self, kind, values, n_total):
        """values [P,C]."""
        n = self.o["select"]
        expert = 3 * SHAPE["hidden_size"] * SHAPE["expert_size"]
        if self.o["select_share"]:
            n = int(self.o["select_share"] * n_total / expert + 1e-9)
        value = values.mean(0)
        score = self.score(kind, value)
        order = np.argsort(-score, kind="stable")
        samples = values[self.indices].mean(1)
        low, high = self.interval(samples)
        taken = np.zeros(len(value), int)
        for sample in samples:
            own = self.score(kind, sample)
            taken[[c for c in np.argsort(-own, kind="stable")[:n] if own[c] > 0]] += 1
        frequency = taken / len(samples)
        chosen = [int(c) for c in order[:n] if score[c] > 0 and frequency[c] >= self.o["select_least"]]
        cell = lambda c: [LAYERS[c // EXPERTS], int(c % EXPERTS)]
        steady = [c for c in range(len(value)) if taken[c] == len(samples)]
        depth = float(np.mean([cell(c)[0] for c in steady])) / (DECODER_LAYERS - 1) if steady else None
        return chosen, {
            "n_wanted": n, "n_selected": len(chosen), "parameter_share": len(chosen) * expert / n_total,
            "stable": {"n": len(steady), "mean_depth": depth, "cells": [cell(c) for c in steady]},
            "selection": [{"layer": cell(c)[0], "expert": cell(c)[1], "rank": int(np.where(order == c)[0][0]) + 1,
                           "score": score[c], "value": value[c], "value_low": low[c], "value_high": high[c],
                           "frequency": frequency[c]} for c in chosen]}

    def run(self):
        measured = [self.measure(p, m) for p, m in zip(self.pairs, self.means)]
        parts = {"contrast": np.array([m[0] for m in measured])}  # [P,L,3]
        if not self.by_token and self.o["controls"]:
            parts["control"] = np.array([self.control(i) for i in range(len(self.pairs))])
            parts["difference"] = parts["contrast"] - parts["control"]
        if self.o["js_log"] == "base2":
            for part in parts.values():
                part[..., 0] /= np.log(2)
        out = {"n_pairs": len(self.pairs), "n_layers": len(LAYERS), "n_decoder_layers": DECODER_LAYERS,
               "n_experts": EXPERTS, "overlap_k": self.k, "seed": self.seed,
               "js_unit": "bits" if self.o["js_log"] == "base2" else "nats",
               "overall": {name: self.put(part.mean(1)) for name, part in parts.items()},
               "layers": [{"layer": layer} | {name: self.put(part[:, l]) for name, part in parts.items()}
                          for l, layer in enumerate(LAYERS)]}
        if "control" in parts:
            draws = [len(self.partners(i)) for i in range(len(self.pairs))]
            out["controls"] = {"n": sum(draws), "least_of_a_pair": min(draws)}
        values = {"rate": [self.rates(p) for p in self.pairs], "probability": [m[1] for m in measured]}
        if self.by_token:
            values["gradient"] = [p["l2"].astype(float) for p in self.pairs]
        chosen, out["rankings"], n_total = {}, {}, count_parameters()
        for kind, value in values.items():
            table = np.array(value).reshape(len(self.pairs), -1)
            chosen[kind], out["rankings"][kind] = self.ranking(kind, table, n_total)
        kinds = list(chosen)
        out["between_rankings"] = [
            {"first": a, "second": b, "shared": len(set(chosen[a]) & set(chosen[b])),
             "jaccard": len(set(chosen[a]) & set(chosen[b])) / len(set(chosen[a]) | set(chosen[b]))}
            for i, a in enumerate(kinds) for b in kinds[i + 1:]]
        return out


def count_parameters():
    """Of a model of that shape: embedding and head, final norm; per layer attention, two norms, experts or dense."""
    d, c = SHAPE["hidden_size"], SHAPE["head_size"]
    attention = 2 * d * c * (SHAPE["n_heads"] + SHAPE["n_kv_heads"]) + 2 * d
    experts = EXPERTS * (d + 3 * d * SHAPE["expert_size"])
    n_dense = DECODER_LAYERS - len(LAYERS)
    return (2 * SHAPE["vocab_size"] * d + d + DECODER_LAYERS * attention + len(LAYERS) * experts
            + n_dense * 3 * d * SHAPE["dense_size"])


CASES = {  # name: (pairs, topics, seed, options)
    "continuations": (9, ["a"], 5, {"contrast": "continuations", "select": 4}),
    "one_sided": (8, ["a"], 6, {"contrast": "continuations", "overlap_k": 3, "js_log": "base2", "rate_side": "second",
                                "select": 18, "select_least": 0.5, "confidence": 0.8}),
    "prefix": (7, ["a", "b"], 7, {"contrast": "prefix", "controls": 2, "select_share": 0.2, "rate_side": "first"}),
    "matched": (11, ["a", "b", "c"], 8, {"contrast": "matched", "controls": 20, "js_log": "base2", "overlap_k": 6,
                                         "select": 3}),
}
PRESETS = {"overlap_k": 0, "js_log": "natural", "rate_side": "both", "select": 8, "select_share": 0.0,
           "select_least": 0.0, "controls": 10, "bootstraps": 60, "confidence": 0.95}


def plain(value):
    """What json can write; f32 as the double that it is."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    return value.item() if isinstance(value, np.generic) else value


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (n, topics, seed, options) in CASES.items():
        rng = np.random.default_rng(seed)
        pairs, options = make_pairs(rng, n, topics), PRESETS | options
        case = {"options": options, "seed": seed, "shape": SHAPE, "moe_layers": list(LAYERS),
                "n_layers": DECODER_LAYERS, "n_experts": EXPERTS, "n_chosen": CHOSEN, "pairs": pairs,
                "expected": Study(pairs, options, seed).run()}
        (folder / f"{name}.json").write_text(json.dumps(plain(case)) + "\n")


if __name__ == "__main__":
    main()
