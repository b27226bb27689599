"""The classes and functions for leaf files of tasks."""

# Leaves import from here.
from perceptune.data.media.suffixes import MEDIA, MODALITIES
from perceptune.data.tasks._canonical import is_row, to_messages, to_row
from perceptune.data.tasks._captions import Captioned, CaptionSet
from perceptune.data.tasks._chat_rows import is_conversation
from perceptune.data.tasks._coco import coco_rows
from perceptune.data.tasks._columns import KEYS, ColumnOptions, id_of, local, media_of
from perceptune.data.tasks._files import GZIPPED, Absent, is_file, missing, plain, reading
from perceptune.data.tasks._flickr import FlickrSet
from perceptune.data.tasks._karpathy import karpathy_rows
from perceptune.data.tasks._lazy_rows import Converted, LazyRows
from perceptune.data.tasks._marks import place_files, place_media, with_tags
from perceptune.data.tasks._questions import Asked, QuestionSet, answers_of, label_of
from perceptune.data.tasks._rows import TableOptions, dialect_of, json_rows, read_json, table_rows, text_lines
from perceptune.data.tasks._scores import CAPTION_METRICS, ROUGE, exact_match
from perceptune.data.tasks._sets import MediaSet, files_of, number_of, text_of
from perceptune.data.tasks._sources import InvalidRows, Sources, class_name, listed_names
from perceptune.data.tasks._streams import json_objects, parquet_rows
from perceptune.data.tasks._tables import Table
from perceptune.data.tasks._tags import cut_tags
from perceptune.data.tasks._task import Examined, GivenFiles, Task, check_split
from perceptune.data.tasks._turns import Conversations
from perceptune.data.tasks._video_questions import VideoQuestions
from perceptune.data.tasks._vqa_files import VQAFiles
