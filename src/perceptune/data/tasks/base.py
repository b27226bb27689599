"""What a leaf file of a task builds on."""

from __future__ import annotations

# Leaves import from here.
from perceptune.data.media.suffixes import MEDIA as MEDIA
from perceptune.data.media.suffixes import MODALITIES as MODALITIES
from perceptune.data.tasks._canonical import to_row as to_row
from perceptune.data.tasks._captions import Captioned as Captioned
from perceptune.data.tasks._captions import CaptionSet as CaptionSet
from perceptune.data.tasks._coco import coco_rows as coco_rows
from perceptune.data.tasks._files import GZIPPED as GZIPPED
from perceptune.data.tasks._files import Absent as Absent
from perceptune.data.tasks._files import is_file as is_file
from perceptune.data.tasks._files import missing as missing
from perceptune.data.tasks._files import plain as plain
from perceptune.data.tasks._flickr import FlickrSet as FlickrSet
from perceptune.data.tasks._karpathy import karpathy_rows as karpathy_rows
from perceptune.data.tasks._lazy_rows import KEYS as KEYS
from perceptune.data.tasks._lazy_rows import Converted as Converted
from perceptune.data.tasks._lazy_rows import LazyRows as LazyRows
from perceptune.data.tasks._lazy_rows import id_of as id_of
from perceptune.data.tasks._lazy_rows import media_of as media_of
from perceptune.data.tasks._questions import Asked as Asked
from perceptune.data.tasks._questions import QuestionSet as QuestionSet
from perceptune.data.tasks._rows import TableOptions as TableOptions
from perceptune.data.tasks._rows import dialect_of as dialect_of
from perceptune.data.tasks._rows import json_rows as json_rows
from perceptune.data.tasks._rows import read_json as read_json
from perceptune.data.tasks._rows import table_rows as table_rows
from perceptune.data.tasks._rows import text_lines as text_lines
from perceptune.data.tasks._sets import Files as Files
from perceptune.data.tasks._sets import MediaSet as MediaSet
from perceptune.data.tasks._sets import number_of as number_of
from perceptune.data.tasks._sets import text_of as text_of
from perceptune.data.tasks._streams import json_objects as json_objects
from perceptune.data.tasks._streams import parquet_rows as parquet_rows
from perceptune.data.tasks._task import ROUGE as ROUGE
from perceptune.data.tasks._task import Examined as Examined
from perceptune.data.tasks._task import GivenFiles as GivenFiles
from perceptune.data.tasks._task import Task as Task
from perceptune.data.tasks._task import check_metric as check_metric
from perceptune.data.tasks._task import check_split as check_split
from perceptune.data.tasks._task import exact_match as exact_match
from perceptune.data.tasks._turns import Conversations as Conversations
from perceptune.data.tasks._turns import Talk as Talk
from perceptune.data.tasks._turns import Turn as Turn
from perceptune.data.tasks._turns import turns_of as turns_of
from perceptune.data.tasks._video_questions import VideoQuestions as VideoQuestions
from perceptune.data.tasks._vqa_files import answers_of as answers_of
from perceptune.data.tasks._vqa_files import label_of as label_of
from perceptune.data.tasks._vqa_files import question_of as question_of
from perceptune.data.tasks._vqa_files import vqa_rows as vqa_rows
