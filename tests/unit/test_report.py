"""Reports: one file that needs nothing else, says what the run's files say, and lets no stranger's text through."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import perceptune
import support
from clips import clip, read
from perceptune.cli.main import run as cli
from perceptune.errors import UserError
from perceptune.tools.plots.layout import Mark
from perceptune.tools.report.charts import Bar, Series, bars, curves, trade_off
from perceptune.tools.report.gather import gather, read_run
from perceptune.tools.report.questions import by_type
from perceptune.tools.report.shots import shots, spectrogram
from sounds import encoded

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Elements with their attributes, texts, and whether each tag is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words, self._open = "", list[str]()
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def trained(dwarfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, evaluated with both controls, that is asked while it is trained."""
    folder = tmp_path_factory.mktemp("reported")
    data = support.save_data(folder / "data", rows=12)
    given = support.recipe(dwarfs / "lm", dwarfs / "encoder", data)
    given |= {"train": support.train_section(steps=40, batch_size=12, lr=3e-2, prompt_lr=3e-2), "eval": {"every": 20}}
    given["method"] = {"name": "epalm", "n_levels": 2, "connector_std": 0.3}
    perceptune.train(given, folder / "run")
    perceptune.evaluate(folder / "run", control=True, no_media=True, command="perceptune eval runs/x --control")
    rows = rows_of(folder / "run")
    for number, row in enumerate(rows):  # both kinds of answers, whatever a dwarf has learned
        row["scores"] = {"accuracy": float(number % 3 == 0)}
    rewrite(folder / "run", rows)
    return folder / "run"


def report(*words: Path | str) -> str:
    """The page that the command writes."""
    assert cli(["report", *map(str, words)]) == 0
    return (Path(words[0]) / "report.html").read_text()


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def rewrite(run: Path, rows: list[dict[str, Any]]) -> None:
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_page_needs_nothing_else(run: Path) -> None:
    text = report(run)
    page = Page(text)
    assert page.every("script") == page.every("link") == page.every("iframe") == []
    assert {image["src"][:11] for image in page.every("img") if image["src"]} == {"data:image/"}
    assert all(str(link["href"]).startswith("#") for link in page.every("a"))
    assert not re.search(r"url\(|@import|\son\w+=", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert len(text) < 200_000


def test_a_page_can_be_read_without_seeing_it(run: Path) -> None:
    page = Page(report(run))
    assert len(page.every("table")) == len(page.every("caption")) == len(page.every("thead")) >= 6
    assert {attributes.get("scope") for attributes in page.every("th")} == {"col", "row"}
    assert page.every("img")
    assert all(attributes["alt"] for attributes in page.every("img"))
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in page.every("svg"))
    assert page.every("html")[0]["lang"] == "en"
    anchors = {attributes["id"] for attributes in page.every("section")}
    assert {str(attributes["href"])[1:] for attributes in page.every("a")} <= anchors


def test_a_page_says_what_the_files_say(run: Path) -> None:
    words = Page(report(run)).words
    results, rows = json.loads((run / "results.json").read_text()), rows_of(run)
    right = sum(row["scores"]["accuracy"] == 1 for row in rows)
    assert 0 < right < len(rows), "both kinds of answers are shown"
    assert f"Right: {min(8, right)} of {right}" in words
    assert f"run: {len(rows) - right} wrong answers by kind" in words
    assert "Wrong (" in words
    low, high = results["gap_interval"]
    for part in (
        f"{results['accuracy']:.3f}",
        f"{results['accuracy_shuffled']:.3f}",
        f"{results['gap']:+.3f} ({low:+.3f} to {high:+.3f})",
        f"{results['accuracy_no_media']:.3f}",
        f"{json.loads((run / 'meta.json').read_text())['trained']:,}",
        "perceptune eval runs/x --control",
        f"perceptune train {run}/run.yaml --run {run}-again",
        f"perceptune verify {run}",
    ):
        assert part in words
    shuffled = [json.loads(line)["answer"] for line in (run / "predictions_shuffled.jsonl").read_text().splitlines()]
    assert any(f"with other media: {answer}" in words for answer in shuffled if answer)


def test_types_of_questions_have_rows_of_their_own(run: Path) -> None:
    rows = rows_of(run)
    for number, row in enumerate(rows):
        row["meta"] = {"answer_type": "first" if number < 4 else "rest"}
        row["scores"] = {"accuracy": float(number < 3)}
    rewrite(run, rows)
    [table] = by_type(read_run("x", run))
    assert [row[:3] for row in table.rows] == [["rest", "8", "0.000"], ["first", "4", "0.750"]]
    blind = {
        row["id"]: row["scores"]["accuracy"] for row in map(json.loads, _lines(run / "predictions_shuffled.jsonl"))
    }
    expected = sum(blind[row["id"]] for row in rows[:4]) / 4
    assert table.rows[1][table.heading.index("media shuffled")] == f"{expected:.3f}"
    assert table.rows[1][5].startswith(f"{0.75 - expected:+.3f} (")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


EVIL = "</td><script>alert(1)</script> | `tick` ![x](http://evil) \ud800"


def test_a_strangers_text_is_only_text(run: Path, tmp_path: Path) -> None:
    rows = rows_of(run)
    named = tmp_path / '"><img src=x onerror=alert(1)>.png'
    Image.new("RGB", (8, 8)).save(named)
    for row in rows:
        row |= {"answer": EVIL, "prompt": EVIL, "id": EVIL, "targets": [EVIL], "media": {"image": str(named)}}
        row["meta"] = {"answer_type": EVIL}
    rewrite(run, rows)
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"command": EVIL + "```", "split": EVIL}))
    page = Page(report(run, "--markdown", tmp_path / "r.md"))
    assert page.every("script") == []
    assert all(set(attributes) == {"src", "alt"} for attributes in page.every("img"))
    assert "<script>alert(1)</script>" in page.words
    told = (tmp_path / "r.md").read_text()
    outside = re.sub(r"^(`{3,})bash\n.*?^\1$", "", told, flags=re.M | re.S)
    assert "<script" not in outside
    assert "![x]" not in outside
    table = next(part for part in outside.split("\n\n") if part.startswith("| media"))
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()} == {6}


def test_what_is_missing_is_said_and_the_rest_is_shown(run: Path) -> None:
    rows = rows_of(run)
    rows[0]["media"] = {"image": "/nowhere/gone.png"}
    rows[1]["media"] = {}
    rewrite(run, rows)
    with (run / "predictions.jsonl").open("a") as file:
        file.write("torn\n[1]\n")
    words = Page(report(run, "--samples", "12")).words
    assert "/nowhere/gone.png: no such file" in words
    assert "inside the data set" in words
    assert "2 damaged lines were left out" in words
    for name in ("predictions.jsonl", "results.json", "log.jsonl", "method.safetensors"):
        (run / name).unlink()
        words = Page(report(run)).words
    for part in ("It was not evaluated", "no predictions", "No log of a training", "method.safetensors cannot be read"):
        assert part in words
    (run / "results.json").write_text("{}")
    assert "results.json: damaged" in Page(report(run)).words


def test_media_can_be_left_out(run: Path) -> None:
    assert Page(report(run, "--no-media")).every("img") == []


def test_several_runs_stand_side_by_side(trained: Path, tmp_path: Path) -> None:
    a, b = (shutil.copytree(trained, tmp_path / name / "run") for name in ("first", "second"))
    page = Page(report(a, b))
    alts = [str(attributes["aria-label"]) for attributes in page.every("svg")]
    assert len(alts) == 8, "bars, trade-off, loss, accuracy while training; of each a narrow one"
    assert all("first/run" in alt and "second/run" in alt for alt in alts)


def test_a_comparison_is_drawn_from_its_table(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    for label in ("epalm", "a-later-row"):
        shutil.copytree(trained, out / f"runs/{label}/lr=1/seed-0")
    rows = [
        {"label": label, "method": "epalm", "trained": 1000 * 10**i, "share": 0.01, "accuracy": 0.5 + i / 10,
         "samples_per_second": 9.0, "spread": None, "interval": [0.4, 0.7 + i / 10], "difference": i / 10,
         "difference_interval": [0.0, 0.2], "setting": {}, "by_seed": {"0": 0.5}}
        for i, label in enumerate(["epalm", "mag<ma>", "a-later-row"])
    ]  # fmt: skip
    table = {"metric": "accuracy", "test_on": "test", "test_samples": 8, "select_on": None, "settings": [{}],
             "seeds": [0], "train_samples": 40, "batch_size": 4, "rows": rows}  # fmt: skip
    (out / "compare.json").write_text(json.dumps(table))
    page = Page(report(out))
    alts = [str(attributes["aria-label"]) for attributes in page.every("svg")]
    assert any("mag<ma>: 0.600 with 10,000" in alt for alt in alts)
    assert "+0.100 (+0.000 to +0.200)" in page.words
    assert page.every("img"), "answers of the tested run"
    _, [found] = gather([str(out)])
    assert [run.name for run in found.runs] == ["epalm", "a-later-row"], "in the table's order"
    (out / "compare.json").write_text('{"metric": "accuracy", "rows": []}')
    with pytest.raises(UserError, match=r"compare\.json: damaged"):
        gather([str(out)])


def test_a_folder_that_is_no_run_is_refused_with_the_nearest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["report", str(run.parent / "rum")]) == 2
    said = capsys.readouterr().err
    assert f"rum` is neither a run folder nor one of a comparison; did you mean `{run}`?" in said
    assert cli(["report", str(run), "--samples", "0"]) == 2


def widths(svg: str) -> list[float]:
    return [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', svg)]


def test_bars_are_as_long_as_their_values() -> None:
    made = bars([Bar("a", 0.2), Bar("b", 0.8, (0.7, 0.9), 0.1)], "accuracy")
    for svg in (made.svg, made.narrow):
        short, long = widths(svg)
        assert long / short == pytest.approx(4, rel=0.01)
        assert svg.count("whisker") == 3
        assert svg.count('"blind"') == 1
    assert "b: 0.800 (0.700 to 0.900)" in made.alt


def test_points_stand_where_their_values_are() -> None:
    made = trade_off([Mark("a", 1000, 0.2), Mark("b", 100_000, 0.6), Mark("c", 10_000, 0.4)], "accuracy")
    places = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', made.svg)]
    (ax, ay), (bx, by), (cx, cy) = places
    assert cx == pytest.approx((ax + bx) / 2, abs=0.2)
    assert cy == pytest.approx((ay + by) / 2, abs=0.2)
    assert by < ay, "more is higher"


def test_long_curves_are_thinned_to_their_ends() -> None:
    points = [(float(i), 5.0 - i / 2500) for i in range(10_001)]
    [curve] = [p for p in re.findall(r'points="([^"]*)" class="curve s0"', curves([Series("x", points)], "loss").svg) if
               p.count(",") > 2]  # fmt: skip
    places = [tuple(map(float, place.split(","))) for place in curve.split()]
    assert 300 < len(places) <= 401
    assert [y for _, y in places] == sorted(y for _, y in places), "a falling loss falls"


def picture_in(uri: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(uri.partition(";base64,")[2])))


def test_a_rising_tone_rises_in_its_spectrogram(tmp_path: Path) -> None:
    time = np.arange(32_000) / 16_000
    (tmp_path / "rise.wav").write_bytes(encoded(0.5 * np.sin(2 * np.pi * (200 * time + 1500 * time**2))))
    picture, seconds = spectrogram(tmp_path / "rise.wav")
    assert seconds == 2.0
    loudest = np.asarray(picture.convert("L")).argmax(0)[8:-8]
    assert loudest[0] > loudest[len(loudest) // 2] > loudest[-1], "rows count from the top"
    [(uri, alt)] = shots("audio", tmp_path / "rise.wav", "x")
    assert "2.0 seconds" in alt
    assert picture_in(uri).size == (224, 112)


def test_a_clip_is_shown_by_frames_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip(range(12)))
    found = shots("video", tmp_path / "clip.mp4", "x")
    assert [read(picture_in(uri)) for uri, _ in found] == [2, 6, 10]
    assert [alt.partition(" of ")[0] for _, alt in found] == ["frame 1", "frame 2", "frame 3"]
