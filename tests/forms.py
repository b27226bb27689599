"""Small data sets in the forms that users have them in, with what is said of them."""

from __future__ import annotations

from folderforms import coco as coco
from formparts import COUNT as COUNT
from formparts import FORMS as FORMS
from formparts import caption as caption
from formparts import color as color
from formparts import lines as lines
from formparts import picture as picture
from formparts import pictures as pictures
from formparts import sound as sound
from formparts import table as table
from formparts import write as write
from rowforms import parquet as parquet
from rowforms import shard as shard

WITH_BROKEN_ROWS = {"tar"}  # which are left out of a training; `data check` counts them as errors
REPORTED = {"classes", "classes_in_splits", "coco_folder", "json_lines", "csv_of_labels", "parquet_folder", "tar"}
