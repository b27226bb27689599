"""What a leaf file of a task builds on."""

from __future__ import annotations

# Leaves import from here.
from perceptune.tasks._canonical import to_row as to_row
from perceptune.tasks._captions import Captioned as Captioned
from perceptune.tasks._captions import CaptionSet as CaptionSet
from perceptune.tasks._files import Absent as Absent
from perceptune.tasks._files import is_file as is_file
from perceptune.tasks._files import missing as missing
from perceptune.tasks._files import plain as plain
from perceptune.tasks._questions import Asked as Asked
from perceptune.tasks._questions import QuestionSet as QuestionSet
from perceptune.tasks._rows import json_rows as json_rows
from perceptune.tasks._rows import read_json as read_json
from perceptune.tasks._rows import table_rows as table_rows
from perceptune.tasks._sets import MediaSet as MediaSet
from perceptune.tasks._sets import number_of as number_of
from perceptune.tasks._sets import text_of as text_of
from perceptune.tasks._task import Examined as Examined
from perceptune.tasks._task import GivenFiles as GivenFiles
from perceptune.tasks._task import Task as Task
from perceptune.tasks._task import check_metric as check_metric
from perceptune.tasks._task import check_split as check_split
from perceptune.tasks._task import exact_match as exact_match
