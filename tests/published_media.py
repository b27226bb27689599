"""Made-up files of published sets of clips and sounds, added to `published.READERS`."""

from __future__ import annotations

from typing import Any

from published import add

_QA: list[dict[str, Any]] = [
    {"id": 7, "question": "what is a man doing?", "answer": "cooking", "video_id": 1, "category_id": 3},
    {"id": 8, "question": "où est l'été?", "answer": "là", "video_id": 2},
]
_WRONG_QA = (
    ("train_qa.json", '"id": 8', '"id": 7', "row 1: the id `7` is that of .*row 0, too"),
    ("train_qa.json", '"video_id": 2', '"vido_id": 2', "row 1: no key `video_id`, but `vido_id`"),
    ("train_qa.json", '"answer": "là"', '"answer": ["là"]', "row 1: `answer` is a list"),
)
_PAPER_QA = [{"video": "x/1.mp4", "sent": "what?", "question_id": 5, "label": {"dog": 1.0, "à": 0.3}}]
_SPLITS = ("train", "val", "test")

add(
    "msrvtt-qa",
    "msrvtt-qa",
    {f"{split}_qa.json": _QA for split in _SPLITS},
    "videos/all/video1.mp4 videos/all/video2.mp4",
    wrong=_WRONG_QA,
)
add(
    "msrvtt-qa epalm",
    "msrvtt-qa",
    {f"annotation/{split}.json": _PAPER_QA for split in _SPLITS},
    "videos/all/x/1.mp4",
    options={
        "annotations": {
            split: f"annotation/{name}.json"
            for split, name in zip(("train", "validation", "test"), _SPLITS, strict=True)
        }
    },
    wrong=(("annotation/val.json", '"dog": 1.0', '"dog": 2.0', "row 0: `label`: the worth of `dog`"),),
)
add(
    "msvd-qa",
    "msvd-qa",
    {**{f"{split}_qa.json": _QA for split in _SPLITS}, "youtube_mapping.txt": "-4ws_5_15 vid1\nR_x_0_9 vid2\n"},
    "YouTubeClips/-4ws_5_15.avi YouTubeClips/R_x_0_9.avi",
    options={"mapping": "youtube_mapping.txt"},
    wrong=(*_WRONG_QA, ("youtube_mapping.txt", "vid2", "vid1", "line 2: `vid1` names two videos")),
)
_MSRVTT = {
    "info": {},
    "videos": [
        {"video_id": f"video{n}", "id": n, "category": 9, "split": split, "start time": 1.5, "end time": 11.0}
        for n, split in enumerate(("train", "validate", "test"))
    ],
    "sentences": [{"sen_id": n, "video_id": f"video{n % 3}", "caption": f"número {n}"} for n in reversed(range(6))],
}
add(
    "msrvtt-captions",
    "msrvtt-captions",
    {"train_val_videodatainfo.json": _MSRVTT, "test_videodatainfo.json": _MSRVTT},
    "videos/all/video0.mp4 videos/all/video1.mp4 videos/all/video2.mp4",
    wrong=(
        ("train_val_videodatainfo.json", '"sentences"', '"sentence"', "no key `sentences`, but `sentence`"),
        ("train_val_videodatainfo.json", '"split": "train"', '"splt": "train"', "`videos`, row 0: no key `split`"),
    ),
    empty=("train_val_videodatainfo.json", "número 0", " ."),
)
_CLIPS = 'audiocap_id,youtube_id,start_time,caption\n1,--L22,30,"Rain, été"\n2,ab1,5,x\n'
add(
    "audiocaps",
    "audiocaps",
    {
        "train.csv": _CLIPS.replace("\n2,ab1,5,x", "\n2,ab1,5,x\n3,cd,0,y"),
        "val.csv": f"{_CLIPS}3,--L22,30,again\n",
        "test.csv": _CLIPS,
    },
    "audios/--L22.wav audios/cd.wav audios/ab1.wav",
    options={"skip_missing": 0},
    wrong=(
        ("train.csv", "3,cd,0,y", "3,cd,0", "line 4: 3 columns, expected 4"),
        ("train.csv", "cd,0,y", "cd,soon,y", "line 4: `start_time` is no whole number"),
    ),
    empty=("train.csv", "cd,0,y", "cd,0, ."),
)
_FIVE = "file_name," + ",".join(f"caption_{n}" for n in range(1, 6)) + "\n"
add(
    "clotho",
    "clotho",
    {
        "clotho_captions_development.csv": f'{_FIVE}a.wav,a1,b,c,d,"e, ö"\n',
        "clotho_captions_validation.csv": f"{_FIVE}b.wav,a,b,c,d,e\n",
        "clotho_captions_evaluation.csv": f"{_FIVE}c.wav,a,b,c,d,e\nd.wav,a,b,c,d,e\n",
    },
    "development/a.wav validation/b.wav evaluation/c.wav evaluation/d.wav",
    wrong=(("clotho_captions_evaluation.csv", "d.wav", "c.wav", r"line 3: the id `c\.wav` is that of .*line 2, too"),),
    empty=("clotho_captions_development.csv", "a1", " ."),
)
