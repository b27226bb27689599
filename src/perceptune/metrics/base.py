"""What a leaf file of a metric builds on."""

from __future__ import annotations

# Leaves import from here.
from perceptune.metrics._groups import Groups as Groups
from perceptune.metrics._groups import averages as averages
from perceptune.metrics._groups import group_key as group_key
from perceptune.metrics._groups import scored_by_group as scored_by_group
from perceptune.metrics._groups import zipped as zipped
from perceptune.metrics._scored import Corpus as Corpus
from perceptune.metrics._scored import Scored as Scored
