"""What a leaf file of a metric builds on."""

from __future__ import annotations

# Leaves import from here.
from perceptune.metrics._scored import Corpus as Corpus
from perceptune.metrics._scored import Scored as Scored
