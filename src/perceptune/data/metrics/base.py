"""What a leaf file of a metric builds on."""

from __future__ import annotations

# Leaves import from here.
from perceptune.data.metrics._bleu import ORDERS as ORDERS
from perceptune.data.metrics._bleu import Bleu as Bleu
from perceptune.data.metrics._cider import Cider as Cider
from perceptune.data.metrics._groups import Groups as Groups
from perceptune.data.metrics._groups import averages as averages
from perceptune.data.metrics._groups import group_key as group_key
from perceptune.data.metrics._groups import scored_by_group as scored_by_group
from perceptune.data.metrics._groups import with_groups as with_groups
from perceptune.data.metrics._groups import zipped as zipped
from perceptune.data.metrics._java import find_java as find_java
from perceptune.data.metrics._java import java_version as java_version
from perceptune.data.metrics._java import package_folder as package_folder
from perceptune.data.metrics._ngrams import Captions as Captions
from perceptune.data.metrics._ngrams import Ints as Ints
from perceptune.data.metrics._ngrams import NGramTable as NGramTable
from perceptune.data.metrics._ngrams import Tokenizer as Tokenizer
from perceptune.data.metrics._ngrams import numbered as numbered
from perceptune.data.metrics._ngrams import rows_of as rows_of
from perceptune.data.metrics._ngrams import tables as tables
from perceptune.data.metrics._normal import normalise as normalise
from perceptune.data.metrics._normal import without_punctuation as without_punctuation
from perceptune.data.metrics._ptb import ptb_tokens as ptb_tokens
from perceptune.data.metrics._rouge_l import common_lengths as common_lengths
from perceptune.data.metrics._rouge_l import rouge_l as rouge_l
from perceptune.data.metrics._scored import Consistency as Consistency
from perceptune.data.metrics._scored import Corpus as Corpus
from perceptune.data.metrics._scored import Floats as Floats
from perceptune.data.metrics._scored import Needs as Needs
from perceptune.data.metrics._scored import Scored as Scored
