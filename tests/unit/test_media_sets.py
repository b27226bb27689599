"""Readers of published video and audio sets, and of CC3M: made-up files as their authors publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perceptune.errors import UserError
from shelves import MARK, media, put, task, there_and_back

pytestmark = pytest.mark.usefixtures("own_cache")

QA: list[dict[str, Any]] = [
    {"id": 7, "question": "what is a man doing?", "answer": "cooking", "video_id": 1, "category_id": 3},
    {"id": 8, "question": "où est l'été?", "answer": "là", "video_id": 2},
]


def msrvtt_qa(folder: Path, rows: Any = QA, **options: Any) -> Any:
    put(folder / "train_qa.json", rows)
    media(folder, "videos/all/video1.mp4", "videos/all/video2.mp4")
    return task("msrvtt-qa", dir=folder, **options)


def test_msrvtt_qa(tmp_path: Path) -> None:
    first, second = samples = msrvtt_qa(tmp_path).samples("train")
    assert first.media == {"video": tmp_path / "videos/all/video1.mp4"}
    assert (first.id, first.prompt, first.targets) == ("7", "what is a man doing?", ("cooking",))
    assert dict(first.meta) == {"category_id": 3}
    assert (second.prompt, second.targets) == ("où est l'été?", ("là",))
    there_and_back(samples, tmp_path)


def test_video_questions_are_judged_by_exact_match(tmp_path: Path) -> None:
    reader = msrvtt_qa(tmp_path)
    assert reader.score(["Cooking.", "ici"], reader.samples("train")).summary["accuracy"] == 0.5


def test_questions_of_the_papers_files(tmp_path: Path) -> None:
    rows = [
        {"video": "a/video1.mp4", "sent": "what?", "question_id": 5, "label": {"dog": 1.0}},
        {"video": "a/video2.mp4", "question": "who?", "question_id": 6, "label": {"man": 1.0}},
    ]
    put(tmp_path / "own.json", rows)
    media(tmp_path, "clips/a/video1.mp4", "clips/a/video2.mp4")
    for name in ("msrvtt-qa", "msvd-qa"):
        reader = task(name, dir=tmp_path, media="clips", template="{video}", annotations={"train": "own.json"})
        samples = reader.samples("train")
        assert [(s.id, s.prompt, s.targets) for s in samples] == [("5", "what?", ("dog",)), ("6", "who?", ("man",))]
        assert samples[0].media["video"] == tmp_path / "clips/a/video1.mp4"


def test_msvd_qa_finds_clips_by_their_names_at_youtube(tmp_path: Path) -> None:
    put(tmp_path / "test_qa.json", MARK + b'[{"id": 1, "question": "who?", "answer": "cat", "video_id": 2}]')
    put(tmp_path / "youtube_mapping.txt", "-4wsuPCjDBc_5_15 vid1\r\nR_x_0_9 vid2\r\n")
    media(tmp_path, "YouTubeClips/R_x_0_9.avi", "YouTubeClips/vid2.avi")
    [sample] = samples = task("msvd-qa", dir=tmp_path).samples("test")
    assert sample.media == {"video": tmp_path / "YouTubeClips/R_x_0_9.avi"}
    there_and_back(samples, tmp_path)
    put(tmp_path / "youtube_mapping.txt", "-4wsuPCjDBc_5_15 vid1\n")
    with pytest.raises(UserError, match=r"test_qa\.json, row 0: `video_id` 2: no video of this number in .*mapping"):
        task("msvd-qa", dir=tmp_path).samples("test")
    (tmp_path / "youtube_mapping.txt").unlink()
    assert task("msvd-qa", dir=tmp_path).samples("test")[0].media["video"].name == "vid2.avi"
    with pytest.raises(UserError, match=r"no `names\.txt`"):
        task("msvd-qa", dir=tmp_path, mapping="names.txt").samples("test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 7, "question": "a?", "answer": "b", "video_id": 2}, "row 2: the id `7` is that of .*row 0, too"),
        ({"question": "a?", "answer": "b", "video_id": 2}, "row 2: no key `question_id`"),
        ({"id": 9, "question": "a?", "answer": "b"}, "row 2: no key `video_id`"),
        ({"id": 9, "question": "a?", "video_id": 2}, "row 2: no key `answer`"),
        ({"id": 9, "question": ["a?"], "answer": "b", "video_id": 2}, "row 2: `question` is a list"),
        ({"id": 9, "question": "a?", "answer": "b", "video_id": 3}, r"row 2: .*no `video3\.mp4`; did you mean"),
        ("text", "row 2: a string, not an object"),
    ],
)
def test_errors_in_questions_name_file_and_row(row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"train_qa\.json.*{message}"):
        msrvtt_qa(tmp_path, [*QA, row]).samples("train")


def official(folder: Path) -> dict[str, Any]:
    """MSR-VTT's own form: blanks in its keys, sentences apart from videos."""
    names = {"train": ("video0", "video1"), "validate": ("video2",), "test": ("video3",)}
    videos = [
        {"video_id": name, "id": int(name[5:]), "category": 9, "split": split, "start time": 1.5, "end time": 11.0}
        for split, group in names.items()
        for name in group
    ]
    sentences = [
        {"sen_id": n, "video_id": f"video{n % 4}", "caption": f"a caption número {n}"} for n in reversed(range(8))
    ]
    media(folder, *(f"videos/all/video{n}.mp4" for n in range(4)))
    return {"info": {}, "videos": videos, "sentences": sentences}


def test_msrvtt_captions(tmp_path: Path) -> None:
    document = official(tmp_path)
    put(tmp_path / "train_val_videodatainfo.json", document)
    put(tmp_path / "test_videodatainfo.json", document)
    reader = task("msrvtt-captions", dir=tmp_path)
    train = reader.samples("train")
    assert [sample.id for sample in train] == ["video0#0", "video0#1", "video1#0", "video1#1"]
    assert train[0].targets == ("a caption número 4",), "a sample for each caption, in the order of the file"
    for split, name in (("validation", "video2"), ("test", "video3")):
        [sample] = reader.samples(split)
        assert (sample.id, len(sample.targets)) == (name, 2), "a sample for each clip"
        there_and_back([sample], tmp_path)
    assert reader.metric == "CIDEr"


def test_msrvtt_1k_a(tmp_path: Path) -> None:
    document = official(tmp_path)
    half = len(document["videos"]) // 2
    for name, part in (("train_val", slice(half)), ("test", slice(half, None))):
        put(tmp_path / f"{name}_videodatainfo.json", {**document, "videos": document["videos"][part]})
    put(tmp_path / "MSRVTT_train.9k.csv", "video_id\r\nvideo3\r\nvideo0\r\n")
    put(tmp_path / "MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\nret0,msr1,video1,a caption\n")
    reader = task("msrvtt-captions", dir=tmp_path, partition="1k-A")
    assert reader.splits == ("train", "test")
    assert {sample.id.split("#")[0] for sample in reader.samples("train")} == {"video0", "video3"}
    assert [sample.id for sample in reader.samples("test")] == ["video1"]
    put(tmp_path / "MSRVTT_train.9k.csv", "video_id\nvideo0\nvideo9\n")
    with pytest.raises(UserError, match=r"train\.9k\.csv, line 3: `video9` is no video of "):
        task("msrvtt-captions", dir=tmp_path, partition="1k-A").samples("train")


def test_msrvtt_captions_of_the_papers_files(tmp_path: Path) -> None:
    media(tmp_path, "videos/all/video0.mp4", "videos/all/video1.mp4")
    put(tmp_path / "train.json", [{"video": f"video{n % 2}.mp4", "caption": f"a {n}"} for n in range(3)])
    put(tmp_path / "test.json", [{"video": "video0.mp4", "caption": ["a", "b"]}])
    reader = task("msrvtt-captions", dir=tmp_path, annotations={"train": "train.json", "test": "test.json"})
    assert [(s.id, s.targets) for s in reader.samples("train")] == [
        ("video0#0", ("a 0",)),
        ("video0#1", ("a 2",)),
        ("video1#0", ("a 1",)),
    ]
    assert [(s.id, s.targets) for s in reader.samples("test")] == [("video0", ("a", "b"))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("sentences"), "no key `sentences`"),
        (lambda d: d["sentences"][7].update(caption=" ."), "`sentences`, row 7: `caption` holds no text"),
        (lambda d: d["videos"][0].pop("split"), "`videos`, row 0: no key `split`"),
        (lambda d: d["videos"].append({"video_id": "video5", "split": "train"}), "no sentence is about `video5`"),
        (lambda d: d["videos"][1].update({"end time": float("nan")}), "invalid JSON: NaN is no number"),
    ],
)
def test_errors_in_msrvtt_captions(change: Any, message: str, tmp_path: Path) -> None:
    document = official(tmp_path)
    change(document)
    put(tmp_path / "train_val_videodatainfo.json", document)
    with pytest.raises(UserError, match=rf"train_val_videodatainfo\.json.*{message}"):
        task("msrvtt-captions", dir=tmp_path).samples("train")


def audiocaps(folder: Path, **options: Any) -> Any:
    put(folder / "train.csv", 'audiocap_id,youtube_id,start_time,caption\r\n1,--L22,30,"Rain, été"\r\n2,gone,5,x\r\n')
    rows = "".join(f"{n},ab{n % 2},{n},A caption {n}\n" for n in range(4))
    put(folder / "test.csv", MARK + f"audiocap_id,youtube_id,start_time,caption\n{rows}".encode(), zipped=True)
    media(folder, "audios/--L22.wav", "audios/ab0.wav", "audios/ab1.wav")
    return task("audiocaps", dir=folder, **options)


def test_audiocaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = audiocaps(tmp_path)
    [sample] = reader.samples("train")
    assert (sample.id, sample.targets) == ("--L22#0", ("Rain, été",))
    assert sample.media == {"audio": tmp_path / "audios/--L22.wav"}
    assert "train: 1 media are missing; 1 samples are left out" in capsys.readouterr().err
    test = reader.samples("test")
    assert [(s.id, s.targets) for s in test] == [
        ("ab0", ("A caption 0", "A caption 2")),
        ("ab1", ("A caption 1", "A caption 3")),
    ]
    there_and_back(test, tmp_path)
    with pytest.raises(UserError, match=r"train\.csv, line 3: cannot read its audio .*gone\.wav"):
        audiocaps(tmp_path, skip_missing=0).samples("train")


def test_audiocaps_under_other_names(tmp_path: Path) -> None:
    media(tmp_path, "a/--L22_30.flac", "a/gone_5.flac")
    reader = audiocaps(tmp_path, media="a", template="{youtube_id}_{start}.flac")
    assert reader.samples("train")[0].media["audio"] == tmp_path / "a/--L22_30.flac"
    with pytest.raises(UserError, match=r"line 2: `template` .*no `strat`; did you mean `start`\?"):
        audiocaps(tmp_path, template="{youtube_id}_{strat}.flac").samples("train")


def test_audiocaps_of_the_papers_files(tmp_path: Path) -> None:
    media(tmp_path, "audios/x/a.wav")
    put(tmp_path / "val.json", [{"audio": "x/a.wav", "caption": ["one", "two"]}])
    put(tmp_path / "train.json", [{"audio": "x/a.wav", "caption": "one"}])
    reader = task("audiocaps", dir=tmp_path, annotations={"train": "train.json", "validation": "val.json"})
    assert [(s.id, s.targets) for s in reader.samples("train")] == [("a#0", ("one",))]
    assert [(s.id, s.targets) for s in reader.samples("validation")] == [("a", ("one", "two"))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3,x,7", "line 4: 3 columns, expected 4"),
        ("3,x,soon,b", "line 4: `start_time` is no whole number"),
        ("3,x,7, .", "line 4: `caption` holds no text"),
        ("3,x,7,b\xe9".encode("latin-1"), "line 4: not UTF-8"),
        ('3,x,7,"open', "line 4: unexpected end of data"),
    ],
)
def test_errors_in_audiocaps_name_the_line(line: str | bytes, message: str, tmp_path: Path) -> None:
    reader = audiocaps(tmp_path)
    data = (tmp_path / "train.csv").read_bytes()
    put(tmp_path / "train.csv", data + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(UserError, match=rf"train\.csv, {message}"):
        reader.samples("train")


def test_clotho(tmp_path: Path) -> None:
    header = "file_name," + ",".join(f"caption_{n}" for n in range(1, 6)) + "\n"
    put(tmp_path / "clotho_captions_development.csv", header + '"Distorted, noise.wav",a,b,c,d,"e, ö"\n')
    put(tmp_path / "clotho_captions_evaluation.csv", header + "x.wav,a,b,c,d,e\n")
    media(tmp_path, "development/Distorted, noise.wav", "evaluation/x.wav")
    reader = task("clotho", dir=tmp_path)
    train = reader.samples("train")
    assert [s.targets for s in train] == [("a",), ("b",), ("c",), ("d",), ("e, ö",)]
    assert train[0].media == {"audio": tmp_path / "development/Distorted, noise.wav"}
    [test] = reader.samples("test")
    assert test.targets == tuple("abcde")
    there_and_back([*train, test], tmp_path)
    put(tmp_path / "clotho_captions_evaluation.csv", header + "x.wav,a,b,c,d,\n")
    with pytest.raises(UserError, match="line 2: `caption_5` holds no text"):
        task("clotho", dir=tmp_path).samples("test")
    assert task("clotho", dir=tmp_path, skip_empty=True).samples("test")[0].targets == tuple("abcd")
    put(tmp_path / "clotho_captions_evaluation.csv", header + "x.wav,a,b,c,d,e\n" * 2)
    with pytest.raises(UserError, match=r"line 3: the id `x\.wav` is that of .*line 2, too"):
        task("clotho", dir=tmp_path).samples("test")


def test_cc3m(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ['a "quote" here\thttp://a.org/1.jpg', "été\thttp://a.org/2.jpg", "gone\thttp://a.org/3.jpg"]
    path = put(tmp_path / "Train_GCC.tsv", "\r\n".join(rows))
    media(tmp_path, "00000/000000000.jpg", "00000/000000001.jpg")
    samples = task("cc3m", train=path).samples("train")
    assert [(s.id, s.prompt, s.targets) for s in samples] == [
        ("000000000", "", ('a "quote" here',)),
        ("000000001", "", ("été",)),
    ]
    assert samples[1].media == {"image": tmp_path / "00000/000000001.jpg"}
    assert samples[1].meta == {"url": "http://a.org/2.jpg"}
    assert "train: 1 media are missing; 1 samples are left out" in capsys.readouterr().err
    there_and_back(samples, tmp_path)
    with pytest.raises(UserError, match=r"Train_GCC\.tsv, line 3: cannot read `image`"):
        task("cc3m", train=path, skip_missing=0).samples("train")
    with pytest.raises(UserError, match=r"line 1: `template` .* cannot be filled in: 'rwo'"):
        task("cc3m", train=path, template="{rwo}.jpg").samples("train")


def test_cc3m_with_files_in_place_of_addresses(tmp_path: Path) -> None:
    path = put(tmp_path / "own.tsv", "a cat\tx/1.jpg\n")
    media(tmp_path, "pictures/x/1.jpg")
    [sample] = task("cc3m", train=path, media=tmp_path / "pictures").samples("train")
    assert sample.media == {"image": tmp_path / "pictures/x/1.jpg"}
