"""MSRVTT-QA (Xu et al., 2017): 244,000 questions about the 10,000 videos of MSR-VTT, made from their captions.

    train_qa.json  val_qa.json  test_qa.json        lists of {"id", "question", "answer", "video_id": 0, "category_id"}
    videos/all/video0.mp4                           another place or name by `media` and `template`

The files of eP-ALM (`video`, `sent`, `label`) are read, too: name them by `annotations`.
"""

from perceptune.data.records import Record
from perceptune.data.tasks.base import VideoQuestions


class MSRVTTQA(VideoQuestions):
    """MSRVTT-QA, scored by exact match. Fields of `template`: `video` (a file's name) and `video_id`."""

    template = "videos/all/{video}"

    def video(self, record: Record, number: str) -> str:
        return f"video{number.removeprefix('video')}.mp4"


TASK = MSRVTTQA
