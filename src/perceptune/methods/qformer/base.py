"""Imports for the leaf files of methods on a Q-Former."""

# Leaves import from here.
from perceptune.lm.frozen_blip import FrozenBlip, Instruction
from perceptune.methods.base import Site
from perceptune.methods.parts.unfrozen import UnfrozenParameters
from perceptune.methods.qformer._bottleneck import Bottleneck, BottleneckOptions
from perceptune.methods.qformer._experts import ExpertsOptions, GatedExperts, ReleasedExperts
from perceptune.methods.qformer._method import ENHANCED, QFormerMethod, QFormerOptions, QFormerOutput, TrainingPass
from perceptune.methods.qformer._naming import word_grounding_loss
from perceptune.methods.qformer._peft import config_of, wrapped
from perceptune.methods.qformer._query_transform import QueryTransform
