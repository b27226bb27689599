"""The key `train.pretrain_words`."""

from pydantic import Field

from perceptune.config.section import ConfigSection


class WordPretrainingConfig(ConfigSection):
    """Training of the mappers alone, before the first step, towards the LM's own states of the answers' words."""

    epochs: float = Field(2, gt=0, description="passes over the training samples, before those of the training")
    lr: float = Field(1e-3, gt=0, description="constant learning rate of the mappers")
    temperature: float = Field(0.07, gt=0, description="divides the cosines of slots and words")
    occurrences: int = Field(8, ge=1, description="occurrences of a word that its state is averaged over")
