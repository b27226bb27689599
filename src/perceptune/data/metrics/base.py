"""The classes and functions for leaf files of metrics."""

# Leaves import from here.
from perceptune.data.metrics._bleu import ORDERS, Bleu
from perceptune.data.metrics._characters import character_tokens, lacks_blanks
from perceptune.data.metrics._cider import Cider
from perceptune.data.metrics._cider_index import CiderIndex
from perceptune.data.metrics._groups import Groups, averages, group_key, score_of, scored_by_group, with_groups, zipped
from perceptune.data.metrics._java import find_java, java_version, package_folder
from perceptune.data.metrics._ngrams import Captions, Ints, NGramTable, Tokenizer, numbered, rows_of, tables
from perceptune.data.metrics._normal import normalise, squeezed, without_punctuation
from perceptune.data.metrics._pairwise_cider import DocumentFrequencies, pairwise_cider
from perceptune.data.metrics._ptb import ptb_text, ptb_tokens
from perceptune.data.metrics._rouge_l import common_lengths, rouge_l
from perceptune.data.metrics._scored import Consistency, Corpus, Floats, MetricOptions, Needs, References, Scored
