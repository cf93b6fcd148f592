"""Run folders made of attacks on a page, for check_report.py: every text that a report shows and that may come from
somebody else (groups, conditions, ids, replies, labels, names, warnings) is one of the payloads."""
import csv
import json
import os
import subprocess

FAR = "http://canary.invalid/"
HANDLERS = ["onerror", "onload", "onclick", "onmouseover", "onfocus", "ontoggle", "onanimationstart", "onbegin",
            "onpointerenter", "onscroll", "onwheel", "onresize", "oninput", "onpageshow", "onhashchange"]
TAGS = ["img src=x", "svg", "body", "video", "audio", "input autofocus", "details open", "marquee", "iframe", "object",
        "embed", "style", "math", "select autofocus", "textarea autofocus"]
FIXED = """<script>alert(1)</script>|</script><script>alert(1)</script>|<ScRiPt>alert(1)</sCrIpT>|<script src=FAR></script>
<script>document.title='ran'</script>|</title><script>alert(1)</script>|</style><script>alert(1)</script>
</pre><script>alert(1)</script>|</textarea><script>alert(1)</script>|</svg><script>alert(1)</script>|--><script>alert(1)</script>
<!--|<!--><img src=x onerror=alert(1)>|]]>|<![CDATA[<script>alert(1)</script>]]>|<?xml-stylesheet href="FAR"?>
<img src=FARa.png>|<img srcset="FARb.png 1x">|<link rel=stylesheet href=FARc.css>|<link rel=prefetch href=FARd>
<style>@import 'FARe.css';</style>|<style>*{background:url(FARf)}</style>|<base href=FAR>|<meta http-equiv=refresh content="0;url=FARg">
<meta http-equiv="Content-Security-Policy" content="default-src *">|<iframe src=FARh></iframe>|<iframe srcdoc="<script>alert(1)</script>">
<object data=FARi></object>|<embed src=FARj>|<form action=FARk><input name=q></form>|<a href=javascript:alert(1)>x</a>|javascript:alert(1)
data:text/html,<script>alert(1)</script>|<svg><use href="FARl#x"/></svg>|<svg><image href="FARm.png"/></svg>
<svg><animate onbegin=alert(1) attributeName=x dur=1s>|<svg><foreignObject><script>alert(1)</script></foreignObject></svg>
<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>|<noscript><p title="</noscript><img src=x onerror=alert(1)>">
<video poster=FARn></video>|<audio src=FARo></audio>|<input type=image src=FARp>|<body background=FARq>|<table background=FARr>
"><script>alert(1)</script>|'><script>alert(1)</script>|" onmouseover=alert(1) x="|' onfocus=alert(1) autofocus x='|`onload=alert(1)`
</td></tr></table><script>alert(1)</script>|<td class=l>|<b>bold</b>|<u>|</div></section></main>|&lt;script&gt;alert(1)&lt;/script&gt;
&#60;script&#62;alert(1)&#60;/script&#62;|&amp;lt;|&|&#x26;|&nbsp;|+ADw-script+AD4-alert(1)+ADw-/script+AD4-|{{7*7}}|${alert(1)}|<%= 7*7 %>|#{7*7}
=1+1|+1+1|-1+1|@SUM(A1)|=cmd|' /C calc'!A0|=HYPERLINK("FAR")|`touch ran`|$(touch ran)|"; system('touch ran'); #|$1+$2|%s%s%n|@{_^}|\\n\\x1b|C:\\x
""".replace("FAR", FAR)
SPECIAL = ["\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x1b]8;;" + FAR + "\x1b\\link\x1b]8;;\x1b\\", "a\rb", "a\nb\tc", "\x7f\x08",
           "\x85\x9b31m", "\u202ereversed\u202c", "\u2066isolate\u2069", "zero\u200bwidth\u200d\u2060", "\ufeffmark",
           "tags\U000e0041\U000e0042", "\u2028line\u2029", "\u00adsoft", "\ufffe", "\U0010ffff", "e\u0301\u0301\u0301\u0301",
           "\u0628\u0633\u0645", "\U0001f600", "\ufdfd", "a" * 5000, "<" * 2000, "&amp;" * 1000, "\u4e2d" * 900, " ", "",
           "'", "\"", "\\", "<", ">", "]]>", "null", "NaN", "-0", "1e999", "../../x"]


def payloads():
    found = [text for line in FIXED.strip().split("\n") for text in line.split("|") if text]
    for handler in HANDLERS:
        for tag in TAGS:
            found.append("<%s %s=alert(1)>" % (tag, handler))
    return list(dict.fromkeys(found + SPECIAL))


def hidden(c):
    """As engine/text.c: what a reader would not see, and what is no character."""
    return ((c & 0xfffe) == 0xfffe or c < 0x20 or 0x7f <= c < 0xa0 or c in (0xad, 0x61c, 0x180e, 0xfeff) or 0x200b <= c <= 0x200f or
            0x2028 <= c <= 0x202e or 0x2060 <= c <= 0x206f or 0xfff9 <= c <= 0xfffb or 0xe0000 <= c <= 0xe0fff)


def shown(text):
    """The text as the page shows it: the same, with visible escapes for what is hidden."""
    return "".join(("\\x%02x" if ord(c) < 0x80 else "\\u{%x}") % ord(c) if hidden(ord(c)) and c not in "\n\t" else c
                   for c in text)


def cut(text, n_bytes):
    return text.encode()[:n_bytes].decode(errors="ignore")


class Turn:
    """The payloads one after the other, and again."""

    def __init__(self, texts, at):
        self.texts, self.at = texts, at

    def next(self, fits=lambda text: True):
        while True:
            self.at += 1
            text = self.texts[self.at % len(self.texts)]
            if fits(text):
                return text


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False)


def write_csv(path, header, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(header)
        writer.writerows(rows)


def measuring_step(program, folder, groups, turn):
    cells = [(layer, expert) for layer in range(2) for expert in range(4)]
    rows = [(layer, expert, group, p, 3 + (7 * layer + 5 * expert + 3 * p + g) % 11, 40)
            for g, group in enumerate(groups) for p in range(4) for layer, expert in cells]
    counts = os.path.join(folder, "counts.csv")
    write_csv(counts, ["layer", "expert", "group", "prompt", "selected", "tokens"], rows)
    subprocess.run([program, "analyze", counts, "--out", folder, "--set", "bootstraps=20", "--set", "permutations=20"],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    write_csv(os.path.join(folder, "scores.csv"), ["group", "layer", "expert", "score", "rank", turn.next()],
              [(group, layer, expert, 0.25, 1 + i, turn.next()) for group in groups
               for i, (layer, expert) in enumerate(cells)])
    write_csv(os.path.join(folder, "prompts.csv"), ["group", "index", "id", "tokens", "target_tokens", "truncated", "nll"],
              [(group, p, turn.next(), 10, 0, 0, "") for group in groups for p in range(4)])
    write_json(os.path.join(folder, "step.json"),
               {"kind": "activation", "model": turn.next(), "score": turn.next(), "family": turn.next(), "groups": groups,
                "n_layers": 2, "n_experts": 4, "n_experts_per_token": 2, "moe_layers": [0, 1],
                "switches": {"a" + turn.next(): turn.next(), "b" + turn.next(): [turn.next(), turn.next()]},
                "warnings": [turn.next() for _ in range(8)]})


def judging_step(folder, groups, turn, n_prompts=6):
    """Returns the replies that must come back."""
    name_fits = lambda text: "/" not in text and 0 < len(text.encode()) < 150 and "\0" not in text and text != "."
    conditions = []
    while len(conditions) < 9:
        name = turn.next(name_fits)
        if name not in conditions:
            conditions.append(name)
    os.makedirs(os.path.join(folder, "responses"))
    ids = {(group, p): "%d %s" % (p, turn.next()) for group in groups for p in range(n_prompts)}
    labels, replies = [], []
    for c, condition in enumerate(conditions):
        with open(os.path.join(folder, "responses", condition + ".jsonl"), "w", encoding="utf-8") as file:
            for group in groups:
                for p in range(n_prompts):
                    reply = turn.next()
                    replies.append(reply)
                    labels.append((condition, group, p, ids[group, p], turn.next() if c == 1 and p == 0 else "restricted",
                                   turn.next(), turn.next()))
                    file.write(json.dumps({"group": group, "index": p, "id": ids[group, p], "response": reply,
                                           "tokens": [1], "stopped": True}, ensure_ascii=False) + "\n")
    write_csv(os.path.join(folder, "labels.csv"), ["condition", "group", "index", "id", "label", "why", "human"], labels)
    head = ["condition", "kind", "group", "n", "restricted_before", "restricted_after", "change", "low", "high", "mcnemar_p"]
    rows = [(condition, "selected", group, n_prompts, 1, 1, 0, -0.1, 0.1, 1) for condition in conditions[1:]
            for group in groups]
    write_csv(os.path.join(folder, "outcomes.csv"), head, rows)
    write_csv(os.path.join(folder, "side_effects.csv"), ["condition", "kind", "group", "prompts", "change", "low", "high"],
              [(condition, turn.next(), group, 6, 0.1, 0, 0.2) for condition in conditions for group in groups])
    write_csv(os.path.join(folder, "conditions.csv"), ["condition", "kind", "n_cells", "traffic", "defined", "reason"],
              [(condition, turn.next(), 2, 0.1, 1, turn.next()) for condition in conditions])
    write_json(os.path.join(folder, "judge.json"), {"rules": turn.next(), "x" + turn.next(): turn.next()})
    write_json(os.path.join(folder, "step.json"), {"kind": "intervention", "model": turn.next(), "edit": turn.next(),
                                                   "warnings": [turn.next()], "switches": {}})
    return replies


SHAPE = {"n_layers": 2, "n_experts": 4, "n_experts_per_token": 2, "moe_layers": [0, 1]}
CELLS = [(layer, expert) for layer in range(2) for expert in range(4)]


def contrasting_step(folder, turn):
    parts = {part: {curve + end: 0.25 for curve in ("js", "overlap", "jaccard") for end in ("", "_low", "_high")}
             for part in ("contrast", "control", "difference")}
    one = {"definition": turn.next(), "n_wanted": 2, "n_selected": 2, "parameter_share": 0.1,
           "stable": {"n": 0, "mean_depth": None, "mean_depth_reason": turn.next()}}
    write_json(os.path.join(folder, "contrast.json"),
               {"contrast": turn.next(), "js_unit": turn.next(), "n_pairs": 4, "overlap_k": 2, "bootstrap": None,
                "bootstrap_reason": turn.next(), "overall": parts,
                "layers": [dict(parts, layer=layer) for layer in range(2)],
                "rankings": {"rate": one, "probability": one, "gradient": None, "gradient_reason": turn.next()},
                "between_rankings": [{"first": turn.next(), "second": turn.next(), "shared": 1, "jaccard": None,
                                      "jaccard_reason": turn.next()}], "warnings": [turn.next()]})
    write_csv(os.path.join(folder, "ranking.csv"),
              ["ranking", "rank", "layer", "expert", "score", "value", "value_low", "value_high", "frequency", "selected",
               turn.next()],
              [(ranking, 1 + i, layer, expert, 0.5, 0.5 - i, "", turn.next(), turn.next(), int(i < 2), turn.next())
               for ranking in ("rate", "probability") for i, (layer, expert) in enumerate(CELLS)])
    write_json(os.path.join(folder, "step.json"),
               dict(SHAPE, kind="contrast", model=turn.next(), score=turn.next(), alignment=turn.next(), n_pairs=4,
                    switches={"a" + turn.next(): turn.next()}, warnings=[turn.next() for _ in range(4)]))


def training_step(folder, turn):
    write_csv(os.path.join(folder, "training.csv"),
              ["step", "loss", "gradient_norm", "learning_rate", "examples", "held_out_loss", turn.next()],
              [(i, 1.5, turn.next(), 0.1, turn.next(), 2.5, turn.next()) for i in range(4)])
    write_csv(os.path.join(folder, "updates.csv"),
              ["layer", "expert", "projection", "rank", "parameters", "update_norm", "weight_norm"],
              [(layer, expert, turn.next(), turn.next(), 8, 0.5, 2) for layer, expert in CELLS])
    write_json(os.path.join(folder, "step.json"),
               dict(SHAPE, kind="tune", model=turn.next(), objective=turn.next(), ended=turn.next(), n_cells=turn.next(),
                    step_taken=turn.next(), held_out_least=None, held_out_least_reason=turn.next(),
                    switches={"control": turn.next(), "draw": turn.next(), "projections": [turn.next()], "b" + turn.next(): turn.next()}, warnings=[turn.next()]))


def utility_step(folder, turn):
    write_csv(os.path.join(folder, "utility.csv"),
              ["condition", "kind", "group", "measure", "n", "value", "low", "high", "chance", "change", "lost", turn.next()],
              [(condition, turn.next(), turn.next(), measure, 9, 0.5, 0.25, turn.next(), turn.next(), 0.1, turn.next(), 1)
               for measure in ("accuracy", "nll") for condition in ("baseline", "tune.adapter", turn.next())])
    write_json(os.path.join(folder, "step.json"), {"kind": "utility", "model": turn.next(), "definition": turn.next(),
                                                   "switches": {"c" + turn.next(): turn.next()}, "warnings": [turn.next()]})


def make_folder(program, folder, number):
    """A run folder, another for every number. Returns the replies that its page must show."""
    texts = payloads()
    turn = Turn(texts, 37 * number)
    group_fits = lambda text: text not in ("", "shared") and len(text) < 300
    groups = [turn.next(group_fits), turn.next(group_fits)]
    for name in ("measure", "judge", "ask", "tune", "use"):
        os.makedirs(os.path.join(folder, name))
    measuring_step(program, os.path.join(folder, "measure"), groups, turn)
    replies = judging_step(os.path.join(folder, "judge"), groups, turn)
    contrasting_step(os.path.join(folder, "ask"), turn)
    training_step(os.path.join(folder, "tune"), turn)
    utility_step(os.path.join(folder, "use"), turn)
    write_json(os.path.join(folder, "job.json"),
               {"schema_version": 1, "note": turn.next(), "all": texts,
                "steps": [{"name": "measure", "kind": "activation"}, {"name": "judge", "kind": "intervention"},
                          {"name": "ask", "kind": "contrast"}, {"name": "tune", "kind": "tune"},
                          {"name": "use", "kind": "utility"}]})
    write_json(os.path.join(folder, "manifest.json"),
               {"version": turn.next(), "device": turn.next(), "inputs": [
                   {"name": turn.next(), "bytes": 1, "sha256": turn.next(), "sha256_of": turn.next()} for _ in range(5)]})
    return replies
