#!/usr/bin/env python3
"""Golden files of the statistics: tables of counts, and every number of statistics.json computed by NumPy and SciPy.

    python make_statistics_golden.py tests/data/statistics

An implementation of its own: it shares with the C code the definitions (gatetape definitions) and the draws. Those come
from Philox4x32-10 by (seed, purpose, key, sample, draw) as kernels/random.h has it; the index matrices are written
too, so that the test can say whether a difference lies in the draws or in what is made of them.
Made with NumPy 2.4.6 and SciPy 1.17.1."""
import json
import math
import sys
from pathlib import Path

import numpy as np
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, pearsonr

SPLIT, BOOTSTRAP, PERMUTATION, ROTATION = 2, 4, 5, 6
SHARES = {"k80": 0.80, "k90": 0.90, "k95": 0.95}
MASK = 0xFFFFFFFF


# ---- draws ----
def uniform(seed, purpose, ident, position):
    counter = [position & MASK, purpose, ident & MASK, ident >> 32 & MASK]
    key = [seed & MASK, seed >> 32 & MASK]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(b >> 32) ^ counter[1] ^ key[0], b & MASK, (a >> 32) ^ counter[3] ^ key[1], a & MASK]
        key = [(key[0] + 0x9E3779B9) & MASK, (key[1] + 0xBB67AE85) & MASK]
    return ((counter[1] << 32 | counter[0]) >> 11) * 2.0**-53


def bootstrap_indices(seed, key, n, items):
    return np.array([[int(uniform(seed, BOOTSTRAP, (key << 32) + b, i) * items) for i in range(items)] for b in range(n)])


def shuffle_indices(seed, purpose, key, n, items):
    rows = []
    for b in range(n):
        row = list(range(items))
        for i in range(items - 1, 0, -1):
            j = int(uniform(seed, purpose, (key << 32) + b, i) * (i + 1))
            row[i], row[j] = row[j], row[i]
        rows.append(row)
    return np.array(rows)


# ---- tables ----
class Table:
    """Cells by layer and expert; per group the counts [P,C] and tokens [P,C]."""

    def __init__(self, cells, groups, has_prompts):
        self.cells, self.groups, self.has_prompts = cells, groups, has_prompts
        self.layers = sorted({layer for layer, _ in cells})
        self.members = [[c for c, cell in enumerate(cells) if cell[0] == layer] for layer in self.layers]
        self.last = max(self.layers)

    def write(self, path, rng):
        rows = []
        for name, (selected, tokens) in self.groups.items():
            for p in range(len(selected)):
                for c, (layer, expert) in enumerate(self.cells):
                    rows.append([layer, expert, name, int(selected[p][c]), int(tokens[p][c]), p])
        rng.shuffle(rows)  # the order of cells must not matter; groups and prompts are numbered as they first come
        rows.sort(key=lambda r: (list(self.groups).index(r[2]), r[5]))
        with open(path, "w") as to:
            to.write("layer,expert,group,selected,tokens" + (",prompt" if self.has_prompts else "") + "\n")
            for *row, p in rows:
                to.write(",".join(map(str, row + ([f"prompt {p}"] if self.has_prompts else []))) + "\n")


def make_table(rng, experts_in, sizes, has_prompts, unused=()):
    cells = [(layer, e) for layer, n in experts_in.items() for e in range(n)]
    groups = {}
    draw = lambda: np.concatenate([rng.dirichlet(np.full(k, 0.8)) * 2 for k in experts_in.values()])
    common = draw()
    for name, n in sizes.items():
        rate = 0.85 * common + 0.15 * draw()  # groups differ, but not everywhere
        selected, tokens = [], []
        for _ in range(n):
            by_layer = {layer: int(rng.integers(150, 600)) for layer in experts_in}
            t = np.array([by_layer[layer] for layer, _ in cells])
            s = rng.binomial(t, np.clip(rate * rng.uniform(0.5, 1.5, len(cells)), 0, 0.95))
            for c in unused:
                s[cells.index(c)] = 0
            selected.append(s)
            tokens.append(t)
        groups[name] = (np.array(selected), np.array(tokens))
    return Table(cells, groups, has_prompts)


# ---- statistics ----
class Study:
    def __init__(self, table, settings, seed):
        self.t, self.o, self.seed = table, settings, seed
        self.names = list(table.groups)
        self.C = len(table.cells)
        self.indices = {}

    def rates(self, g):
        selected, tokens = self.t.groups[self.names[g]]
        return selected / tokens

    def mean(self, pairs):
        """Scores of a list of (group, prompt)."""
        selected = np.array([self.t.groups[self.names[g]][0][p] for g, p in pairs], dtype=float)
        tokens = np.array([self.t.groups[self.names[g]][1][p] for g, p in pairs], dtype=float)
        if self.o["average"] == "tokens" or not self.t.has_prompts:
            return selected.sum(0) / tokens.sum(0)
        return (selected / tokens).mean(0)

    def size(self, g):
        return len(self.t.groups[self.names[g]][0])

    def scores(self, g):
        return self.mean([(g, p) for p in range(self.size(g))])

    # -- of scores --
    @staticmethod
    def order(scores):
        return np.argsort(-scores, kind="stable")

    def coverage(self, scores):
        cumulative = np.cumsum(np.sort(scores)[::-1]) / scores.sum()
        return {k: int(np.argmax(cumulative >= share - 1e-12)) + 1 for k, share in SHARES.items()}

    def layer_numbers(self, scores):
        rows = []
        for members in self.t.members:
            s = scores[members]
            p = s / s.sum()
            h = entropy(s)
            rows.append([s.max() if self.o["dominant"] == "raw" else p.max(), h, math.exp(h), 1 / (p**2).sum()])
        return np.array(rows)

    def layers_of(self, pairs):
        if self.o["layer_statistics"] == "prompts" and self.t.has_prompts:
            return np.mean([self.layer_numbers(self.rates(g)[p]) for g, p in pairs], axis=0)
        return self.layer_numbers(self.mean(pairs))

    def depth(self, chosen):
        if not len(chosen) or self.t.last == 0:
            return None
        return float(np.mean([self.t.cells[c][0] / self.t.last for c in chosen]))

    def cell_set(self, chosen):
        chosen = sorted(int(c) for c in chosen)
        return {"n": len(chosen), "mean_depth": self.depth(chosen), "cells": [list(self.t.cells[c]) for c in chosen]}

    def bounds(self, samples):
        a = (1 - self.o["confidence"]) / 2
        return np.quantile(samples, a, axis=0), np.quantile(samples, 1 - a, axis=0)

    def put(self, to, key, value, samples=None):
        to[key] = value
        if samples is None:
            to[key + "_low"] = to[key + "_high"] = None
        else:
            low, high = self.bounds(samples)
            to[key + "_low"], to[key + "_high"] = float(low), float(high)

    def tops(self):
        return [(int(k), k <= self.C) for k in self.o["top_sets"]]

    def overlap_of(self, a, b):
        values = []
        for k, fits in self.tops():
            shared = len(set(a[:k]) & set(b[:k]))
            values.append((shared, shared / (2 * k - shared)) if fits else (None, None))
        return values

    # -- resamples --
    def bootstraps(self, g):
        """Pairs of every resample, or None."""
        if not self.t.has_prompts:
            return None
        name = f"bootstrap {self.names[g]}"
        if name not in self.indices:
            self.indices[name] = bootstrap_indices(self.seed, g, self.o["bootstraps"], self.size(g))
        return [[(g, p) for p in row] for row in self.indices[name]]

    def halves(self, g):
        name = f"split {self.names[g]}"
        if name not in self.indices:
            self.indices[name] = shuffle_indices(self.seed, SPLIT, g, self.o["splits"], self.size(g))
        half = self.size(g) // 2
        return [(self.mean([(g, p) for p in row[:half]]), self.mean([(g, p) for p in row[half:]]))
                for row in self.indices[name]]

    def stable(self, g):
        kept = set(range(self.C))
        for sample in self.bootstraps(g):
            order = list(self.order(self.mean(sample)))
            top = set()
            for members in self.t.members:
                n = math.floor(self.o["stable_share"] * len(members) + 1e-9)
                top |= set([c for c in order if c in members][:n])
            kept &= top
        return kept

    def rotation(self, g):
        """k80, k90, k95 of every draw."""
        selected, tokens = (x.astype(float) for x in self.t.groups[self.names[g]])
        pooled = self.o["average"] == "tokens"
        values = selected if pooled else selected / tokens
        P, rows = self.size(g), []
        for b in range(self.o["permutations"]):
            scores = np.zeros(self.C)
            for l, members in enumerate(self.t.members):
                n = len(members)
                for p in range(P):
                    shift = int(uniform(self.seed, ROTATION, (g << 40) + b * P + p, l) * n)
                    scores[members] += np.roll(values[p][members], -shift)
                scores[members] /= tokens[:, members[0]].sum() if pooled else P
            rows.append(list(self.coverage(scores).values()))
        return np.array(rows)

    # -- the file --
    def correlations(self, pairs):
        r = np.array([pearsonr(a, b).statistic for a, b in pairs])
        to = {"n": len(pairs)}
        self.put(to, "correlation", float(r.mean()), r)
        to["reliability"] = 2 * r.mean() / (1 + r.mean())
        return to

    def group(self, g):
        scores, samples = self.scores(g), self.bootstraps(g)
        means = None if samples is None else np.array([self.mean(s) for s in samples])
        order, k = self.order(scores), self.coverage(scores)
        tokens = self.t.groups[self.names[g]][1]
        to = {"n_prompts": self.size(g) if self.t.has_prompts else None,
              "n_tokens": int(tokens.max(axis=1).sum()), "n_cells": self.C, "total_score": float(scores.sum()),
              "unused_cells": int((scores == 0).sum())}
        ks = None if means is None else [self.coverage(m) for m in means]
        for key in SHARES:
            self.put(to, key, k[key], ks and [x[key] for x in ks])
        self.put(to, "effective_cells", math.exp(entropy(scores)),
                 None if means is None else [math.exp(entropy(m)) for m in means])
        to["bootstrap"] = {"n": len(means), "confidence": self.o["confidence"]} if samples else None
        layers = self.layers_of([(g, p) for p in range(self.size(g))])
        of_samples = None if samples is None else np.array([self.layers_of(s) for s in samples])
        to["layers"] = []
        for l, layer in enumerate(self.t.layers):
            row = {"layer": layer}
            for i, key in enumerate(("dominant_score", "entropy", "effective_experts", "effective_experts_simpson")):
                self.put(row, key, float(layers[l][i]), None if samples is None else of_samples[:, l, i])
            to["layers"].append(row)
        cumulative = np.cumsum(scores[order]) / scores.sum()
        to["curve"] = []
        for i, c in enumerate(order):
            row = {"layer": self.t.cells[c][0], "expert": self.t.cells[c][1], "rank": i + 1}
            self.put(row, "score", float(scores[c]), None if means is None else means[:, c])
            row["cumulative"] = float(cumulative[i])
            to["curve"].append(row)
        to["depth"] = []
        for n, fits in self.tops():
            row = {"k": n}
            self.put(row, "mean_depth", self.depth(order[:n]) if fits else None,
                     [self.depth(self.order(m)[:n]) for m in means] if fits and samples else None)
            to["depth"].append(row)
        uniform_k = {key: math.ceil(share * self.C - 1e-9) for key, share in SHARES.items()}
        to["concentration"] = {"uniform": {**uniform_k, "effective_cells": self.C}, "rotation": None}
        to["split_half"] = to["stable_selection"] = to["near_ties"] = None
        if samples:
            self.group_resampled(g, to, k, means)
        return to

    def group_resampled(self, g, to, k, means):
        draws = self.rotation(g)
        rotation = to["concentration"]["rotation"] = {"n": len(draws)}
        for s, key in enumerate(SHARES):
            rotation[key + "_mean"] = float(draws[:, s].mean())
            low, high = self.bounds(draws[:, s])
            rotation[key + "_low"], rotation[key + "_high"] = float(low), float(high)
            rotation[key + "_p"] = (1 + int((draws[:, s] <= k[key]).sum())) / (1 + len(draws))
        halves = self.halves(g)
        to["split_half"] = self.correlations(halves)
        both = [self.overlap_of(self.order(a), self.order(b)) for a, b in halves]
        to["split_half"]["overlap"] = [
            {"k": n, "shared": float(np.mean([x[i][0] for x in both])) if fits else None,
             "jaccard": float(np.mean([x[i][1] for x in both])) if fits else None}
            for i, (n, fits) in enumerate(self.tops())]
        tops = [{"k": n, "set": self.cell_set(set.intersection(*[set(self.order(m)[:n]) for m in means]))
                 if fits else None} for n, fits in self.tops()]
        to["stable_selection"] = {"layer_top": self.cell_set(self.stable(g)), "top": tops}

    def permutation_test(self, a, b):
        pool = [(a, p) for p in range(self.size(a))] + [(b, p) for p in range(self.size(b))]
        name = f"permutation {self.names[a]} {self.names[b]}"
        self.indices[name] = orders = shuffle_indices(self.seed, PERMUTATION, a * 1000 + b, self.o["permutations"],
                                                      len(pool))
        n = self.size(a)
        x, y = self.scores(a), self.scores(b)
        rates = np.concatenate([self.rates(a), self.rates(b)])
        deviation = rates.std(0)
        scale = np.ones(self.C)
        if self.o["test_statistic"] == "t":
            scale = np.divide(1, deviation, out=np.zeros(self.C), where=deviation > 1e-12 * rates.mean(0))
        observed, slack = np.abs(x - y) * scale, 1e-12 * (x + y) * scale
        samples = [(self.mean([pool[i] for i in row[:n]]), self.mean([pool[i] for i in row[n:]])) for row in orders]
        permuted = np.array([np.abs(u - v) * scale for u, v in samples])
        p = lambda larger: (1 + larger.sum(0)) / (1 + len(orders))
        cells = p(permuted >= observed - slack)
        largest = p(permuted.max(1)[:, None] >= observed - slack)
        layers = [p(permuted[:, m].max(1) >= observed[m].max() - slack[m].max()) for m in self.t.members]
        test = {"n": len(orders)}
        for key in SHARES:
            own = self.coverage(x)[key] - self.coverage(y)[key]
            others = np.array([abs(self.coverage(u)[key] - self.coverage(v)[key]) for u, v in samples])
            test[key + "_difference"], test[key + "_p"] = own, float(p(others >= abs(own)))
        return test, cells, largest, layers

    def pair(self, a, b):
        x, y = self.scores(a), self.scores(b)
        means = None
        if self.t.has_prompts:
            means = [np.array([self.mean(s) for s in self.bootstraps(g)]) for g in (a, b)]
        test, cells, largest, layers = self.permutation_test(a, b) if means else (None, None, None, None)
        to = {"differences": [], "overlap": [], "selectivity": [], "permutation": test}
        for c in np.argsort(-np.abs(x - y), kind="stable"):
            row = {"layer": self.t.cells[c][0], "expert": self.t.cells[c][1]}
            self.put(row, "risk_difference", float(x[c] - y[c]), means and means[0][:, c] - means[1][:, c])
            row["risk_ratio"] = float(x[c] / y[c]) if y[c] > 0 else None
            row["p_value"] = float(cells[c]) if test else None
            row["p_value_max"] = float(largest[c]) if test else None
            to["differences"].append(row)
        own = self.overlap_of(self.order(x), self.order(y))
        both = means and [self.overlap_of(self.order(u), self.order(v)) for u, v in zip(*means)]
        for i, (n, fits) in enumerate(self.tops()):
            row = {"k": n}
            for v, key in enumerate(("shared", "jaccard")):
                row[key] = own[i][v]
                if means:
                    self.put(row, key, own[i][v], [s[i][v] for s in both] if fits else None)
            to["overlap"].append(row)
        for l, members in enumerate(self.t.members):
            row = {"layer": self.t.layers[l],
                   "expert": self.t.cells[members[int(np.argmax(np.abs(x - y)[members]))]][1]}
            numbers = lambda u, v: (np.abs(u - v)[members].max(), np.abs(u - v)[members].mean(),
                                    jensenshannon(u[members], v[members]) ** 2)
            of_samples = means and np.array([numbers(u, v) for u, v in zip(*means)])
            for i, key in enumerate(("max_abs_difference", "mean_abs_difference", "js_divergence")):
                self.put(row, key, float(numbers(x, y)[i]), of_samples[:, i] if means else None)
            row["p_value"] = float(layers[l]) if test else None
            to["selectivity"].append(row)
        to["stable_selection"] = to["split_half"] = None
        if means:
            u, v = self.stable(a), self.stable(b)
            to["stable_selection"] = {"shared": self.cell_set(u & v),
                                      "only": {self.names[a]: self.cell_set(u - v), self.names[b]: self.cell_set(v - u)}}
            to["split_half"] = self.correlations([(p[0] - q[0], p[1] - q[1])
                                                  for p, q in zip(self.halves(a), self.halves(b))])
        return to

    def class_of(self, scores, tau):
        """Index of the group that each cell prefers, or the number of groups."""
        rule, out = self.o["class_rule"], []
        if rule == "z":
            errors = [self.rates(g).var(0, ddof=1) / self.size(g) for g in range(len(scores))]
        for c in range(self.C):
            found = len(scores)
            for g, s in enumerate(scores):
                rest = [(scores[h][c], h) for h in range(len(scores)) if h != g]
                rival, h = max(rest, key=lambda r: r[0])
                if s[c] == 0 and rival == 0:
                    continue
                if rule == "ratio":
                    ratio = (s[c] / rival if rival else math.inf) if g < h else (rival / s[c] if s[c] else math.inf)
                    prefers = ratio > tau if g < h else ratio < 1 / tau
                elif rule == "difference":
                    prefers = s[c] - rival > tau
                else:
                    prefers = (s[c] - rival) / math.sqrt(errors[g][c] + errors[h][c]) > tau
                if prefers:
                    found = g
                    break
            out.append(found)
        return np.array(out)

    def classes(self):
        names, rows = self.names + ["shared"], []
        counts = lambda k: {name: int((k == i).sum()) for i, name in enumerate(names)}
        for tau in self.o["thresholds"]:
            k = self.class_of([self.scores(g) for g in range(len(self.names))], tau)
            row = {"tau": tau, "counts": counts(k), "counts_low": None, "counts_high": None}
            if self.t.has_prompts:
                samples = zip(*[[self.mean(s) for s in self.bootstraps(g)] for g in range(len(self.names))])
                of_samples = [counts(self.class_of(s, tau)) for s in samples]
                bounds = {name: self.bounds([x[name] for x in of_samples]) for name in names}
                row["counts_low"] = {name: float(b[0]) for name, b in bounds.items()}
                row["counts_high"] = {name: float(b[1]) for name, b in bounds.items()}
            row["mean_depth"] = {name: self.depth(np.flatnonzero(k == i)) for i, name in enumerate(names)}
            row["layers"] = [{"layer": layer, "counts": counts(k[self.t.members[l]])}
                             for l, layer in enumerate(self.t.layers)]
            rows.append(row)
        return rows

    def file(self):
        to = {"schema_version": 1, "signal": "counts", "seed": self.seed, "n_cells": self.C,
              "n_layers": len(self.t.layers), "n_decoder_layers": self.t.last + 1, "group_order": self.names,
              "groups": {name: self.group(g) for g, name in enumerate(self.names)}}
        pairs = [(a, b) for a in range(len(self.names)) for b in range(a + 1, len(self.names))]
        to.update(self.pair(*pairs[0]))
        to["classes"] = self.classes()
        to["other_pairs"] = [{"groups": [self.names[a], self.names[b]], **self.pair(a, b)} for a, b in pairs[1:]]
        to["between_steps"] = None
        return to


DEFAULTS = {"average": "prompts", "dominant": "share", "layer_statistics": "scores", "thresholds": [1.2, 1.5, 2.0],
            "top_sets": [3, 5, 8, 50], "bootstraps": 40, "confidence": 0.9, "stable_share": 0.5, "permutations": 60,
            "test_statistic": "t", "splits": 12, "class_rule": "ratio"}


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20240611)
    tables = {
        "counts": make_table(rng, {0: 6, 1: 6, 3: 4}, {"calm": 1, "formal": 1}, False, unused=[(1, 2)]),
        "prompts": make_table(rng, {0: 6, 2: 6, 3: 5}, {"a": 9, "b": 12}, True, unused=[(0, 4)]),
        "three": make_table(rng, {1: 5, 2: 5}, {"x": 5, "y": 6, "z": 4}, True),
    }
    cases = [("counts", "counts", {}, 0), ("prompts", "prompts", {}, 7),
             ("pooled", "prompts", {"average": "tokens", "test_statistic": "difference", "dominant": "raw",
                                     "class_rule": "difference", "thresholds": [0.05, 0.1]}, 8),
             ("of_prompts", "prompts", {"layer_statistics": "prompts", "confidence": 0.5, "class_rule": "z",
                                         "thresholds": [1.0, 2.5]}, 2**40 + 3),
             ("three", "three", {"thresholds": [1.1, 3.0], "stable_share": 0.25}, 9)]
    for name, table in tables.items():
        table.write(out / f"{name}.csv", rng)
    listed = []
    for name, table, changes, seed in cases:
        settings = {**DEFAULTS, **changes}
        study = Study(tables[table], settings, seed)
        expected = study.file()
        expected["indices"] = {key: rows.tolist() for key, rows in study.indices.items()}
        (out / f"{name}.json").write_text(json.dumps(expected) + "\n")
        sets = [f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in settings.items()]
        listed.append({"name": name, "table": f"{table}.csv", "seed": seed, "sets": sets})
    (out / "cases.json").write_text(json.dumps(listed, indent=1) + "\n")


if __name__ == "__main__":
    main()
