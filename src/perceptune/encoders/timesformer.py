"""TimeSformer: attention over time, then over space, in each block."""

from typing import Any, ClassVar

from torch import Tensor, nn

from perceptune.encoders.base import BILINEAR, VideoEncoder
from perceptune.errors import UserError


class Timesformer(VideoEncoder):
    """[CLS] is token 0, one for the whole video. For more frames than it was trained with, time embeddings repeat."""

    MODELS: ClassVar = {"timesformer": "TimesformerModel"}
    BLOCKS = "encoder.layer"
    NORM = "layernorm"
    UNUSED = ("classifier.",)
    SIZES = True

    @classmethod
    def prepare(cls, config: Any) -> Any:
        """Refuses the variant without [CLS] of its own: it averages over frames."""
        if config.attention_type != "divided_space_time":
            raise UserError(f"TimeSformer with `attention_type` {config.attention_type}; known is divided_space_time")
        return config

    @classmethod
    def published(cls, config: Any) -> dict[str, Any]:
        """As of `facebook/timesformer-*`: the shortest edge at the model's size, then the centre."""
        crop = {"do_center_crop": True, "crop_size": config.image_size, "default_to_square": False}
        mean = {"image_mean": [0.45] * 3, "image_std": [0.225] * 3}
        return {"size": {"shortest_edge": config.image_size}, "resample": BILINEAR, **crop, **mean}

    def use_frames(self, frames: int) -> None:
        """The blocks read the number of frames, and the width in patches, off their config."""
        super().use_frames(frames)
        config: Any = self.tower.config
        config.num_frames, config.image_size = frames, self.transform.size[1]

    def skip_time(self) -> None:
        """A block is then a plain block of a Vision Transformer, if there is one frame."""
        self.skips_time = True

    def unmark_time(self) -> None:
        """As the official eP-ALM code treats images (`space_only_for_images`)."""
        self.marks_time = False
        self.tower.embeddings.attention_type = "space_only"  # of the embeddings alone: no time is added to one frame

    def embed(self, x: Tensor) -> Tensor:
        """(B, 1 + patches * frames, dim); tokens of one patch lie side by side."""
        return self.tower.embeddings(x)

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """A block over time and space, or over the space of one frame."""
        if not self.skips_time:
            return block(hidden)[0]
        layer: Any = block
        hidden = hidden + layer.attention(layer.layernorm_before(hidden))[0]
        return hidden + layer.output(layer.intermediate(layer.layernorm_after(hidden)))


ENCODER = Timesformer
MODEL_TYPES = tuple(ENCODER.MODELS)
